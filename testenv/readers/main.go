// Readers judges what meshca writes with other people's code: crypto/x509, go-spiffe and text/template.
//
// It reads questions as JSON, one in a line, and answers each in a line.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
)

// question has a kind and what that kind needs.
type question struct {
	Ask string `json:"ask"`
	// Text is a SPIFFE ID, the name of a trust domain, a bundle in the SPIFFE format, or an address.
	Text        string `json:"text"`
	TrustDomain string `json:"trust_domain"`
	// Chain, Key and Roots are PEM.
	Chain string `json:"chain"`
	Key   string `json:"key"`
	Roots string `json:"roots"`
	// Server says which end of TLS to be.
	Server bool `json:"server"`
	// Template is what text/template is to render.
	Template *templateQuestion `json:"template"`
}

func answer(q question) (any, error) {
	switch q.Ask {
	case "id":
		return readID(q.Text)
	case "trust domain":
		return readTrustDomain(q.Text)
	case "svid":
		return readSVID(q)
	case "certificate":
		return readCertificate(q)
	case "peer":
		return readPeer(q), nil
	case "bundle":
		return readBundle(q)
	case "handshake":
		return shakeHands(q)
	case "template":
		return q.Template.render()
	default:
		return nil, fmt.Errorf("unknown question %q", q.Ask)
	}
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run() error {
	out := bufio.NewWriter(os.Stdout)
	encoder := json.NewEncoder(out)
	encoder.SetEscapeHTML(false)
	decoder := json.NewDecoder(bufio.NewReader(os.Stdin))
	for decoder.More() {
		var q question
		if err := decoder.Decode(&q); err != nil {
			return err
		}
		reply := struct {
			Value any    `json:"value,omitempty"`
			Error string `json:"error,omitempty"`
		}{}
		value, err := answer(q)
		if err != nil {
			reply.Error = err.Error()
		} else {
			reply.Value = value
		}
		if err := encoder.Encode(reply); err != nil {
			return err
		}
	}
	return out.Flush()
}
