package main

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"net/url"
	"time"

	"meshca/peers/internal/bench"
)

// issueLoadingEachTime reads the CA from PEM for every certificate, as Kuma's built-in CA does.
func issueLoadingEachTime() (func() error, error) {
	ca, err := bench.NewCA()
	if err != nil {
		return nil, err
	}
	return func() error {
		pair, err := tls.X509KeyPair(ca.CertificatePEM, ca.KeyPEM)
		if err != nil {
			return err
		}
		certificate, err := x509.ParseCertificate(pair.Certificate[0])
		if err != nil {
			return err
		}
		return issue(certificate, pair.PrivateKey)
	}, nil
}

// issueKeepingTheCA has the CA at hand, which is the best that a Go control plane can do.
func issueKeepingTheCA() (func() error, error) {
	ca, err := bench.NewCA()
	if err != nil {
		return nil, err
	}
	return func() error { return issue(ca.Certificate, ca.Key) }, nil
}

func issue(ca *x509.Certificate, caKey crypto.PrivateKey) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	serial, err := bench.NewSerial()
	if err != nil {
		return err
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber:          serial,
		URIs:                  []*url.URL{bench.Workload},
		NotBefore:             now.Add(-10 * time.Second),
		NotAfter:              now.Add(bench.Lifetime),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca, key.Public(), caKey)
	if err != nil {
		return err
	}
	issuedCertificate = bench.CertificateToPEM(der)
	issuedKey, err = bench.KeyToPEM(key)
	return err
}

// What was made last, so that making it cannot be optimised away.
var issuedCertificate, issuedKey []byte
