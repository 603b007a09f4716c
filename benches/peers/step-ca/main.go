// step-ca as a library: its authority signs a CSR in this process, without a server, a database or
// a provisioner in between.
package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"net/url"
	"time"

	"github.com/smallstep/certificates/authority"
	"github.com/smallstep/certificates/authority/provisioner"
	"go.step.sm/crypto/x509util"

	"meshca/peers/internal/bench"
)

func main() {
	bench.Serve(map[string]bench.SetUp{"issue": issue})
}

// What was made last.
var issuedCertificate, issuedKey []byte

func issue() (func() error, error) {
	ca, err := bench.NewCA()
	if err != nil {
		return nil, err
	}
	signer, err := authority.NewEmbedded(
		authority.WithX509RootCerts(ca.Certificate),
		authority.WithX509Signer(ca.Certificate, ca.Key),
		authority.WithQuietInit(),
	)
	if err != nil {
		return nil, err
	}
	// What a provisioner adds: its template, and the lifetime.
	template, err := provisioner.TemplateOptions(nil, x509util.CreateTemplateData("", []string{bench.Workload.String()}))
	if err != nil {
		return nil, err
	}
	lifetime := provisioner.CertificateModifierFunc(func(leaf *x509.Certificate, _ provisioner.SignOptions) error {
		now := time.Now()
		leaf.NotBefore, leaf.NotAfter = now.Add(-10*time.Second), now.Add(bench.Lifetime)
		return nil
	})
	return func() error {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return err
		}
		der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{URIs: []*url.URL{bench.Workload}}, key)
		if err != nil {
			return err
		}
		csr, err := x509.ParseCertificateRequest(der)
		if err != nil {
			return err
		}
		chain, err := signer.Sign(csr, provisioner.SignOptions{}, template, lifetime)
		if err != nil {
			return err
		}
		issuedCertificate = bench.CertificateToPEM(chain[0].Raw)
		issuedKey, err = bench.KeyToPEM(key)
		return err
	}, nil
}
