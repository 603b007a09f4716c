package bench

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net/url"
	"time"
)

// Lifetime is that of every leaf.
const Lifetime = 24 * time.Hour

// Workload is the SPIFFE ID of every leaf.
var Workload = &url.URL{Scheme: "spiffe", Host: "default.eu-1.mesh.local", Path: "/ns/shop/sa/cart"}

// CA is a self-signed P-256 CA.
type CA struct {
	Certificate    *x509.Certificate
	Key            *ecdsa.PrivateKey
	CertificatePEM []byte
	KeyPEM         []byte
}

// NewCA makes one.
func NewCA() (*CA, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	serial, err := NewSerial()
	if err != nil {
		return nil, err
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{Organization: []string{"peers"}, OrganizationalUnit: []string{"Mesh"}, CommonName: "default"},
		URIs:                  []*url.URL{{Scheme: "spiffe", Host: Workload.Host}},
		NotBefore:             now.Add(-10 * time.Second),
		NotAfter:              now.Add(10 * 365 * 24 * time.Hour),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	keyPEM, err := KeyToPEM(key)
	if err != nil {
		return nil, err
	}
	return &CA{Certificate: certificate, Key: key, CertificatePEM: CertificateToPEM(der), KeyPEM: keyPEM}, nil
}

// NewSerial draws 128 random bits.
func NewSerial() (*big.Int, error) {
	return rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 128))
}

// CertificateToPEM encodes a certificate.
func CertificateToPEM(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

// KeyToPEM encodes a key as PKCS#8.
func KeyToPEM(key *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}
