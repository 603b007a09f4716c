package main

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"sort"
)

type certificateAnswer struct {
	Subject     string   `json:"subject"`
	Issuer      string   `json:"issuer"`
	Serial      string   `json:"serial"`
	NotBefore   int64    `json:"not_before"`
	NotAfter    int64    `json:"not_after"`
	URIs        []string `json:"uris"`
	DNSNames    []string `json:"dns_names"`
	OtherNames  int      `json:"other_names"`
	CommonName  string   `json:"common_name"`
	IsCA        bool     `json:"is_ca"`
	MaxPathLen  int      `json:"max_path_len"`
	KeyUsages   []string `json:"key_usages"`
	Purposes    []string `json:"purposes"`
	Key         string   `json:"key"`
	Signature   string   `json:"signature"`
	NotHandled  int      `json:"not_handled"`
	SubjectKey  bool     `json:"subject_key_id"`
	AuthorityOK bool     `json:"authority_key_id_matches"`
	// The certificates from this one to the root.
	Path int `json:"path"`
}

var usages = map[x509.KeyUsage]string{
	x509.KeyUsageDigitalSignature:  "digitalSignature",
	x509.KeyUsageContentCommitment: "contentCommitment",
	x509.KeyUsageKeyEncipherment:   "keyEncipherment",
	x509.KeyUsageDataEncipherment:  "dataEncipherment",
	x509.KeyUsageKeyAgreement:      "keyAgreement",
	x509.KeyUsageCertSign:          "keyCertSign",
	x509.KeyUsageCRLSign:           "cRLSign",
	x509.KeyUsageEncipherOnly:      "encipherOnly",
	x509.KeyUsageDecipherOnly:      "decipherOnly",
}

var purposes = map[x509.ExtKeyUsage]string{
	x509.ExtKeyUsageServerAuth: "serverAuth",
	x509.ExtKeyUsageClientAuth: "clientAuth",
}

func parse(text string) ([]*x509.Certificate, error) {
	var certificates []*x509.Certificate
	rest := []byte(text)
	for {
		var block *pem.Block
		block, rest = pem.Decode(rest)
		if block == nil {
			return certificates, nil
		}
		certificate, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("certificate %d: %w", len(certificates)+1, err)
		}
		certificates = append(certificates, certificate)
	}
}

// readCertificate verifies the first certificate of the chain to the roots, for each of its purposes alone and for
// each of its DNS names.
func readCertificate(q question) (*certificateAnswer, error) {
	chain, err := parse(q.Chain)
	if err != nil {
		return nil, err
	}
	trusted, err := parse(q.Roots)
	if err != nil {
		return nil, err
	}
	if len(chain) == 0 || len(trusted) == 0 {
		return nil, errors.New("there is no certificate")
	}
	roots, intermediates := x509.NewCertPool(), x509.NewCertPool()
	for _, root := range trusted {
		roots.AddCert(root)
	}
	for _, intermediate := range chain[1:] {
		intermediates.AddCert(intermediate)
	}
	leaf := chain[0]
	wanted := leaf.ExtKeyUsage
	if len(wanted) == 0 {
		wanted = []x509.ExtKeyUsage{x509.ExtKeyUsageAny}
	}
	answer := &certificateAnswer{}
	for _, purpose := range wanted {
		for _, name := range append([]string{""}, leaf.DNSNames...) {
			paths, err := leaf.Verify(x509.VerifyOptions{
				Roots:         roots,
				Intermediates: intermediates,
				DNSName:       name,
				KeyUsages:     []x509.ExtKeyUsage{purpose},
			})
			if err != nil {
				return nil, fmt.Errorf("for purpose %d and name %q: %w", purpose, name, err)
			}
			answer.Path = len(paths[0])
			parent := paths[0][min(1, len(paths[0])-1)]
			answer.AuthorityOK = string(leaf.AuthorityKeyId) == string(parent.SubjectKeyId)
		}
	}

	answer.Subject = leaf.Subject.String()
	answer.Issuer = leaf.Issuer.String()
	answer.Serial = fmt.Sprintf("%x", leaf.SerialNumber)
	answer.NotBefore = leaf.NotBefore.Unix()
	answer.NotAfter = leaf.NotAfter.Unix()
	for _, uri := range leaf.URIs {
		answer.URIs = append(answer.URIs, uri.String())
	}
	answer.DNSNames = leaf.DNSNames
	answer.OtherNames = len(leaf.EmailAddresses) + len(leaf.IPAddresses)
	answer.CommonName = leaf.Subject.CommonName
	answer.IsCA = leaf.BasicConstraintsValid && leaf.IsCA
	answer.MaxPathLen = leaf.MaxPathLen
	for usage, name := range usages {
		if leaf.KeyUsage&usage != 0 {
			answer.KeyUsages = append(answer.KeyUsages, name)
		}
	}
	sort.Strings(answer.KeyUsages)
	for _, purpose := range leaf.ExtKeyUsage {
		name, known := purposes[purpose]
		if !known {
			name = fmt.Sprintf("purpose %d", purpose)
		}
		answer.Purposes = append(answer.Purposes, name)
	}
	for range leaf.UnknownExtKeyUsage {
		answer.Purposes = append(answer.Purposes, "unknown")
	}
	sort.Strings(answer.Purposes)
	answer.Key = leaf.PublicKeyAlgorithm.String()
	answer.Signature = leaf.SignatureAlgorithm.String()
	answer.NotHandled = len(leaf.UnhandledCriticalExtensions)
	answer.SubjectKey = len(leaf.SubjectKeyId) > 0
	return answer, nil
}
