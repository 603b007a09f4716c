// Certmanager is cert-manager's own controllers for CertificateRequests, without the rest of it.
//
// The main of the real controller is in no published module. This one runs the same packages: the issuers of kind CA and
// SelfSigned, namespaced and cluster-wide, and the approver. Left out are Certificates, ACME, Venafi, Vault, the webhook
// and leader election. Its flags are those of the real one, but for --crds:
//
//	certmanager --kubeconfig=FILE [--crds=FOLDER] [--cluster-resource-namespace=NAME] [--controllers=LIST]
//	    [--kube-api-qps=20] [--kube-api-burst=50]
//	certmanager version
//
// --controllers takes names, `*` for all, and `-name` for all but this one: without the approver, for one, requests wait
// for somebody else's approval.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	apiextensions "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apiextensions-apiserver/pkg/client/clientset/clientset"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/yaml"

	"github.com/cert-manager/cert-manager/pkg/controller"
	_ "github.com/cert-manager/cert-manager/pkg/controller/certificaterequests/approver"
	_ "github.com/cert-manager/cert-manager/pkg/controller/certificaterequests/ca"
	_ "github.com/cert-manager/cert-manager/pkg/controller/certificaterequests/selfsigned"
	_ "github.com/cert-manager/cert-manager/pkg/controller/clusterissuers"
	_ "github.com/cert-manager/cert-manager/pkg/controller/issuers"
	_ "github.com/cert-manager/cert-manager/pkg/issuer/ca"
	_ "github.com/cert-manager/cert-manager/pkg/issuer/selfsigned"
	"github.com/cert-manager/cert-manager/pkg/logs"
	"github.com/cert-manager/cert-manager/pkg/util"
)

// workers of each controller; the real one's default.
const workers = 5

func main() {
	util.AppVersion = version()
	if len(os.Args) == 2 && os.Args[1] == "version" {
		fmt.Printf("cert-manager %s, from its Go module, with the controllers %s\n",
			util.AppVersion, strings.Join(known(), ", "))
		return
	}
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "cert-manager:", err)
		os.Exit(1)
	}
}

// version is that of the module that this program is built from.
func version() string {
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, module := range info.Deps {
			if module.Path == "github.com/cert-manager/cert-manager" {
				return module.Version
			}
		}
	}
	return "unknown"
}

func run() error {
	kubeconfig := flag.String("kubeconfig", "", "how to reach the API server")
	crds := flag.String("crds", "", "folder with the CustomResourceDefinitions to create first")
	namespace := flag.String("cluster-resource-namespace", "kube-system", "where the secrets of ClusterIssuers are")
	list := flag.String("controllers", "*", "which to run")
	qps := flag.Float64("kube-api-qps", 20, "requests to the API server per second, of each controller")
	burst := flag.Int("kube-api-burst", 50, "how many of them at once")
	flag.Parse()
	if flag.NArg() > 0 {
		return fmt.Errorf("what is %q? All settings are flags", flag.Arg(0))
	}
	names, err := choose(*list)
	if err != nil {
		return err
	}
	logs.InitLogs()
	defer logs.FlushLogs()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()

	if *crds != "" {
		if err := create(ctx, *kubeconfig, *crds); err != nil {
			return err
		}
	}
	factory, err := controller.NewContextFactory(ctx, controller.ContextOptions{
		Kubeconfig:         *kubeconfig,
		KubernetesAPIQPS:   float32(*qps),
		KubernetesAPIBurst: *burst,
		IssuerOptions:      controller.IssuerOptions{ClusterResourceNamespace: *namespace},
	})
	if err != nil {
		return err
	}
	controllers := make(map[string]controller.Interface)
	for _, name := range names {
		if controllers[name], err = controller.Known()[name](factory); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	shared, err := factory.Build()
	if err != nil {
		return err
	}
	shared.SharedInformerFactory.Start(ctx.Done())
	shared.KubeSharedInformerFactory.Start(ctx.Done())
	shared.KubeSharedInformerFactory.WaitForCacheSync(ctx.Done())
	logs.Log.Info("running", "version", util.AppVersion, "controllers", names)

	ctx, fail := context.WithCancelCause(ctx)
	var running sync.WaitGroup
	for name, it := range controllers {
		running.Go(func() {
			if err := it.Run(workers, ctx); err != nil {
				fail(fmt.Errorf("%s: %w", name, err))
			}
		})
	}
	running.Wait()
	if cause := context.Cause(ctx); !errors.Is(cause, context.Canceled) {
		return cause
	}
	return nil
}

func known() []string {
	return slices.Sorted(maps.Keys(controller.Known()))
}

// choose reads --controllers.
func choose(list string) ([]string, error) {
	chosen := make(map[string]bool)
	for name := range strings.SplitSeq(list, ",") {
		wanted, without := strings.CutPrefix(name, "-")
		switch {
		case name == "*":
			for _, name := range known() {
				chosen[name] = true
			}
		case controller.Known()[wanted] == nil:
			return nil, fmt.Errorf("--controllers: there is no %q, only %s", wanted, strings.Join(known(), ", "))
		case without:
			delete(chosen, wanted)
		default:
			chosen[wanted] = true
		}
	}
	return slices.Sorted(maps.Keys(chosen)), nil
}

// create makes the CustomResourceDefinitions in a folder, and waits until they can be used.
func create(ctx context.Context, kubeconfig, folder string) error {
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return err
	}
	api, err := clientset.NewForConfig(config)
	if err != nil {
		return err
	}
	definitions := api.ApiextensionsV1().CustomResourceDefinitions()
	files, err := filepath.Glob(filepath.Join(folder, "*.yaml"))
	if err != nil {
		return err
	}
	if len(files) == 0 {
		return fmt.Errorf("--crds: there is no .yaml in %s", folder)
	}
	var names []string
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		definition := new(apiextensions.CustomResourceDefinition)
		if err := yaml.UnmarshalStrict(text, definition); err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
		_, err = definitions.Create(ctx, definition, metav1.CreateOptions{})
		if err != nil && !apierrors.IsAlreadyExists(err) {
			return fmt.Errorf("%s: %w", file, err)
		}
		names = append(names, definition.Name)
	}
	for _, name := range names {
		established := func(ctx context.Context) (bool, error) {
			definition, err := definitions.Get(ctx, name, metav1.GetOptions{})
			if err != nil {
				return false, err
			}
			return slices.ContainsFunc(definition.Status.Conditions, func(it apiextensions.CustomResourceDefinitionCondition) bool {
				return it.Type == apiextensions.Established && it.Status == apiextensions.ConditionTrue
			}), nil
		}
		err := wait.PollUntilContextTimeout(ctx, 50*time.Millisecond, time.Minute, true, established)
		if err != nil {
			return fmt.Errorf("%s cannot be used yet: %w", name, err)
		}
	}
	return nil
}
