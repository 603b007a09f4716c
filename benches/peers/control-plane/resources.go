package main

import (
	"encoding/json"
	"fmt"
	"os"

	"sigs.k8s.io/yaml"
)

// The resources as a Go control plane types them.

type metadata struct {
	Name        string            `json:"name"`
	Namespace   string            `json:"namespace,omitempty"`
	Labels      map[string]string `json:"labels,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

type envelope struct {
	APIVersion string   `json:"apiVersion"`
	Kind       string   `json:"kind"`
	Metadata   metadata `json:"metadata"`
}

type mesh struct {
	envelope `json:",inline"`
	Spec     struct {
		MeshServices *struct {
			Mode string `json:"mode"`
		} `json:"meshServices,omitempty"`
		MTLS *struct {
			EnabledBackend string    `json:"enabledBackend"`
			SkipValidation bool      `json:"skipValidation,omitempty"`
			Backends       []backend `json:"backends"`
		} `json:"mtls,omitempty"`
	} `json:"spec"`
}

type backend struct {
	Name   string `json:"name"`
	Type   string `json:"type"`
	Mode   string `json:"mode,omitempty"`
	DpCert *struct {
		Rotation struct {
			Expiration string `json:"expiration"`
		} `json:"rotation"`
		RequestTimeout string `json:"requestTimeout,omitempty"`
	} `json:"dpCert,omitempty"`
	Conf *struct {
		FromCp *struct {
			Address    string `json:"address"`
			PKI        string `json:"pki,omitempty"`
			Role       string `json:"role"`
			CommonName string `json:"commonName,omitempty"`
			Auth       struct {
				Token *dataSource `json:"token,omitempty"`
			} `json:"auth"`
			TLS *struct {
				CaCert     *dataSource `json:"caCert,omitempty"`
				SkipVerify bool        `json:"skipVerify,omitempty"`
			} `json:"tls,omitempty"`
		} `json:"fromCp,omitempty"`
		CaCert *struct {
			RSABits    int    `json:"RSAbits,omitempty"`
			Expiration string `json:"expiration,omitempty"`
		} `json:"caCert,omitempty"`
		IssuerRef *struct {
			Name  string `json:"name"`
			Kind  string `json:"kind,omitempty"`
			Group string `json:"group,omitempty"`
		} `json:"issuerRef,omitempty"`
	} `json:"conf,omitempty"`
}

type dataSource struct {
	Secret       string `json:"secret,omitempty"`
	File         string `json:"file,omitempty"`
	Inline       []byte `json:"inline,omitempty"`
	InlineString string `json:"inlineString,omitempty"`
}

type meshIdentity struct {
	envelope `json:",inline"`
	Spec     struct {
		Selector struct {
			Dataplane *struct {
				MatchLabels map[string]string `json:"matchLabels"`
			} `json:"dataplane,omitempty"`
		} `json:"selector"`
		SpiffeID *struct {
			TrustDomain string `json:"trustDomain,omitempty"`
			Path        string `json:"path,omitempty"`
		} `json:"spiffeID,omitempty"`
		Provider *struct {
			Type    string `json:"type"`
			Bundled *struct {
				MeshTrustCreation       string `json:"meshTrustCreation,omitempty"`
				InsecureAllowSelfSigned bool   `json:"insecureAllowSelfSigned,omitempty"`
				CertificateParameters   *struct {
					Expiry string `json:"expiry"`
				} `json:"certificateParameters,omitempty"`
				Autogenerate *struct {
					Enabled bool `json:"enabled"`
				} `json:"autogenerate,omitempty"`
				CA *struct {
					Certificate secureDataSource `json:"certificate"`
					PrivateKey  secureDataSource `json:"privateKey"`
				} `json:"ca,omitempty"`
			} `json:"bundled,omitempty"`
		} `json:"provider,omitempty"`
	} `json:"spec"`
}

type secureDataSource struct {
	Type      string `json:"type"`
	SecretRef *struct {
		Kind string `json:"kind"`
		Name string `json:"name"`
	} `json:"secretRef,omitempty"`
}

type meshTrust struct {
	envelope `json:",inline"`
	Spec     struct {
		TrustDomain string `json:"trustDomain"`
		CABundles   []struct {
			Type string `json:"type"`
			PEM  *struct {
				Value string `json:"value"`
			} `json:"pem,omitempty"`
		} `json:"caBundles"`
	} `json:"spec"`
}

// What was read last.
var last any

// readResources reads all documents, each straight into its own type: that the kind is known
// beforehand spares it a first look. Nothing is validated beyond names and types of fields.
func readResources(file string) (func() error, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var documents []string
	if err := json.Unmarshal(text, &documents); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	type document struct {
		text  []byte
		empty func() any
	}
	known := make([]document, 0, len(documents))
	for _, text := range documents {
		var kind struct {
			Kind string `json:"kind"`
		}
		if err := yaml.Unmarshal([]byte(text), &kind); err != nil {
			return nil, err
		}
		var empty func() any
		switch kind.Kind {
		case "Mesh":
			empty = func() any { return new(mesh) }
		case "MeshIdentity":
			empty = func() any { return new(meshIdentity) }
		case "MeshTrust":
			empty = func() any { return new(meshTrust) }
		default:
			return nil, fmt.Errorf("a document is of the unknown kind %q", kind.Kind)
		}
		known = append(known, document{[]byte(text), empty})
	}
	return func() error {
		for _, document := range known {
			resource := document.empty()
			if err := yaml.UnmarshalStrict(document.text, resource); err != nil {
				return err
			}
			last = resource
		}
		return nil
	}, nil
}
