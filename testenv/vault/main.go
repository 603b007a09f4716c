// Vault is HashiCorp Vault's own server with the few backends that the tests use.
//
// It is the same code as the real binary, but compiles in half the time and is a quarter as large: it links the PKI
// engine and the auth methods kubernetes, approle, cert, aws and jwt, and leaves out the other sixty plugins. It takes the
// real binary's command line and configuration, as far as the tests use them, so that either can run:
//
//	vault server -config=FILE
//	vault version
package main

import (
	"crypto/tls"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"
	credjwt "github.com/hashicorp/vault-plugin-auth-jwt"
	credkubernetes "github.com/hashicorp/vault-plugin-auth-kubernetes"
	"github.com/hashicorp/vault/audit"
	"github.com/hashicorp/vault/builtin/credential/approle"
	credaws "github.com/hashicorp/vault/builtin/credential/aws"
	credcert "github.com/hashicorp/vault/builtin/credential/cert"
	"github.com/hashicorp/vault/builtin/logical/pki"
	vhttp "github.com/hashicorp/vault/http"
	"github.com/hashicorp/vault/internalshared/configutil"
	"github.com/hashicorp/vault/sdk/helper/consts"
	"github.com/hashicorp/vault/sdk/logical"
	"github.com/hashicorp/vault/sdk/physical"
	"github.com/hashicorp/vault/sdk/physical/file"
	"github.com/hashicorp/vault/sdk/physical/inmem"
	"github.com/hashicorp/vault/vault"
	"github.com/hashicorp/vault/version"
)

var (
	secretEngines = map[string]logical.Factory{"pki": pki.Factory}
	authMethods   = map[string]logical.Factory{
		"approle":    approle.Factory,
		"aws":        credaws.Factory,
		"cert":       credcert.Factory,
		"jwt":        credjwt.Factory,
		"kubernetes": credkubernetes.Factory,
	}
)

// config is the real binary's, in JSON.
type config struct {
	Storage  map[string]map[string]string `json:"storage"`
	Listener struct {
		TCP struct {
			Address     string `json:"address"`
			TLSDisable  bool   `json:"tls_disable"`
			TLSCertFile string `json:"tls_cert_file"`
			TLSKeyFile  string `json:"tls_key_file"`
		} `json:"tcp"`
	} `json:"listener"`
	DisableMlock bool   `json:"disable_mlock"`
	APIAddr      string `json:"api_addr"`
	LogLevel     string `json:"log_level"`
}

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "vault:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	switch {
	case len(args) == 1 && args[0] == "version":
		fmt.Printf("Vault v%s, from its Go module, with a few backends\n", version.GetVersion().Version)
		return nil
	case len(args) > 0 && args[0] == "server":
		flags := flag.NewFlagSet("server", flag.ContinueOnError)
		path := flags.String("config", "", "the configuration, in JSON")
		if err := flags.Parse(args[1:]); err != nil {
			return err
		}
		return serve(*path)
	default:
		return errors.New("want `server -config=FILE` or `version`")
	}
}

func serve(path string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var config config
	if err := json.Unmarshal(text, &config); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	logger := hclog.New(&hclog.LoggerOptions{Output: os.Stderr, Level: hclog.LevelFromString(config.LogLevel)})
	storage, kind, err := openStorage(config.Storage, logger)
	if err != nil {
		return err
	}
	listener, err := listen(config)
	if err != nil {
		return err
	}
	core, err := vault.NewCore(&vault.CoreConfig{
		AuditBackends:      map[string]audit.Factory{"file": audit.NewFileBackend},
		BuiltinRegistry:    registry{},
		CredentialBackends: authMethods,
		DisableMlock:       true,
		LogicalBackends:    secretEngines,
		Logger:             logger,
		Physical:           storage,
		RedirectAddr:       config.APIAddr,
		StorageType:        kind,
	})
	if err != nil {
		return err
	}
	server := &http.Server{
		Handler: vhttp.Handler.Handler(&vault.HandlerProperties{
			Core: core,
			ListenerConfig: &configutil.Listener{
				Address:    config.Listener.TCP.Address,
				TLSDisable: config.Listener.TCP.TLSDisable,
			},
		}),
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       5 * time.Minute,
		ErrorLog:          logger.StandardLogger(nil),
	}
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGINT, syscall.SIGTERM)
	go func() {
		<-stop
		server.Close()
	}()
	logger.Info("listening", "address", listener.Addr())
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return core.Shutdown()
}

func openStorage(storage map[string]map[string]string, logger hclog.Logger) (physical.Backend, string, error) {
	for kind, settings := range storage {
		switch kind {
		case "file":
			backend, err := file.NewFileBackend(settings, logger)
			return backend, kind, err
		case "inmem":
			backend, err := inmem.NewInmem(settings, logger)
			return backend, kind, err
		}
	}
	return nil, "", errors.New("storage must be `file` or `inmem`")
}

func listen(config config) (net.Listener, error) {
	tcp := config.Listener.TCP
	listener, err := net.Listen("tcp", tcp.Address)
	if err != nil || tcp.TLSDisable {
		return listener, err
	}
	pair, err := tls.LoadX509KeyPair(tcp.TLSCertFile, tcp.TLSKeyFile)
	if err != nil {
		return nil, err
	}
	// As the real listener: the auth method `cert` judges what the client shows.
	settings := &tls.Config{Certificates: []tls.Certificate{pair}, ClientAuth: tls.RequestClientCert}
	return tls.NewListener(listener, settings), nil
}

// registry tells the core which plugins are built in.
type registry struct{}

func (registry) backends(kind consts.PluginType) map[string]logical.Factory {
	switch kind {
	case consts.PluginTypeCredential:
		return authMethods
	case consts.PluginTypeSecrets:
		return secretEngines
	}
	return nil
}

func (r registry) Contains(name string, kind consts.PluginType) bool {
	_, ok := r.backends(kind)[name]
	return ok
}

func (r registry) Get(name string, kind consts.PluginType) (func() (interface{}, error), bool) {
	factory, ok := r.backends(kind)[name]
	return func() (interface{}, error) { return factory, nil }, ok
}

func (r registry) Keys(kind consts.PluginType) []string {
	var keys []string
	for name := range r.backends(kind) {
		keys = append(keys, name)
	}
	return keys
}

func (r registry) DeprecationStatus(name string, kind consts.PluginType) (consts.DeprecationStatus, bool) {
	return consts.Supported, r.Contains(name, kind)
}

func (registry) IsBuiltinEntPlugin(string, consts.PluginType) bool {
	return false
}
