package main

import (
	"crypto/x509"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

// peerAnswer says why a peer with these certificates is refused; nothing where it is not.
type peerAnswer struct {
	Client string `json:"client"`
	Server string `json:"server"`
	SPIFFE string `json:"spiffe"`
}

func readPeer(q question) peerAnswer {
	var answer peerAnswer
	refuse := func(where *string, err error) {
		if err != nil {
			*where = err.Error()
		}
	}
	chain, err := parse(q.Chain)
	if err != nil {
		return peerAnswer{err.Error(), err.Error(), err.Error()}
	}
	trusted, err := parse(q.Roots)
	if err != nil {
		return peerAnswer{err.Error(), err.Error(), err.Error()}
	}
	verify := func(purpose x509.ExtKeyUsage) error {
		roots, intermediates := x509.NewCertPool(), x509.NewCertPool()
		for _, root := range trusted {
			roots.AddCert(root)
		}
		for _, intermediate := range chain[1:] {
			intermediates.AddCert(intermediate)
		}
		_, err := chain[0].Verify(x509.VerifyOptions{
			Roots:         roots,
			Intermediates: intermediates,
			KeyUsages:     []x509.ExtKeyUsage{purpose},
		})
		return err
	}
	refuse(&answer.Client, verify(x509.ExtKeyUsageClientAuth))
	refuse(&answer.Server, verify(x509.ExtKeyUsageServerAuth))
	td, err := spiffeid.TrustDomainFromString(q.TrustDomain)
	if err == nil {
		_, _, err = x509svid.Verify(chain, x509bundle.FromX509Authorities(td, trusted))
	}
	refuse(&answer.SPIFFE, err)
	return answer
}
