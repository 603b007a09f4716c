package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

type idAnswer struct {
	ID          string `json:"id"`
	TrustDomain string `json:"trust_domain"`
	Path        string `json:"path"`
}

func readID(text string) (*idAnswer, error) {
	id, err := spiffeid.FromString(text)
	if err != nil {
		return nil, err
	}
	return &idAnswer{ID: id.String(), TrustDomain: id.TrustDomain().Name(), Path: id.Path()}, nil
}

func readTrustDomain(text string) (string, error) {
	td, err := spiffeid.TrustDomainFromString(text)
	if err != nil {
		return "", err
	}
	return td.Name(), nil
}

type svidAnswer struct {
	ID string `json:"id"`
	// The certificates from the leaf to the root.
	Path int `json:"path"`
}

// readSVID parses the chain with its key, which go-spiffe compares with the certificate's, and verifies it.
func readSVID(q question) (*svidAnswer, error) {
	td, err := spiffeid.TrustDomainFromString(q.TrustDomain)
	if err != nil {
		return nil, err
	}
	svid, err := x509svid.Parse([]byte(q.Chain), []byte(q.Key))
	if err != nil {
		return nil, err
	}
	bundle, err := x509bundle.Parse(td, []byte(q.Roots))
	if err != nil {
		return nil, err
	}
	id, chains, err := x509svid.Verify(svid.Certificates, bundle)
	if err != nil {
		return nil, err
	}
	if id != svid.ID {
		return nil, errors.New("two IDs: " + id.String() + " and " + svid.ID.String())
	}
	return &svidAnswer{ID: id.String(), Path: len(chains[0])}, nil
}

type bundleAnswer struct {
	// SHA-256 of the certificates.
	Authorities []string `json:"authorities"`
	Sequence    *uint64  `json:"sequence"`
	RefreshHint *float64 `json:"refresh_hint"`
	Marshalled  string   `json:"marshalled"`
	PEM         string   `json:"pem"`
}

// readBundle reads a bundle in the SPIFFE format and as PEM, and writes it again.
func readBundle(q question) (*bundleAnswer, error) {
	td, err := spiffeid.TrustDomainFromString(q.TrustDomain)
	if err != nil {
		return nil, err
	}
	bundle, err := spiffebundle.Parse(td, []byte(q.Text))
	if err != nil {
		return nil, err
	}
	answer := &bundleAnswer{}
	for _, authority := range bundle.X509Authorities() {
		sum := sha256.Sum256(authority.Raw)
		answer.Authorities = append(answer.Authorities, hex.EncodeToString(sum[:]))
	}
	if sequence, ok := bundle.SequenceNumber(); ok {
		answer.Sequence = &sequence
	}
	if hint, ok := bundle.RefreshHint(); ok {
		seconds := hint.Seconds()
		answer.RefreshHint = &seconds
	}
	marshalled, err := bundle.Marshal()
	if err != nil {
		return nil, err
	}
	answer.Marshalled = string(marshalled)
	if q.Roots == "" {
		return answer, nil
	}
	fromPEM, err := x509bundle.Parse(td, []byte(q.Roots))
	if err != nil {
		return nil, err
	}
	if !bundle.X509Bundle().Equal(fromPEM) {
		return nil, errors.New("the two formats hold different certificates")
	}
	again, err := fromPEM.Marshal()
	if err != nil {
		return nil, err
	}
	answer.PEM = string(bytes.TrimSpace(again)) + "\n"
	return answer, nil
}
