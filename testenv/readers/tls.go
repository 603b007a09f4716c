package main

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"time"
)

type handshakeAnswer struct {
	// The group of the key exchange, by Go's name.
	Group   string `json:"group"`
	Version string `json:"version"`
}

// shakeHands connects, and is the TLS client or the TLS server of that connection, as the question says.
func shakeHands(q question) (*handshakeAnswer, error) {
	own, err := tls.X509KeyPair([]byte(q.Chain), []byte(q.Key))
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM([]byte(q.Roots)) {
		return nil, errors.New("no roots")
	}
	tcp, err := net.DialTimeout("tcp", q.Text, 10*time.Second)
	if err != nil {
		return nil, err
	}
	defer tcp.Close()
	if err := tcp.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		return nil, err
	}
	config := &tls.Config{
		Certificates: []tls.Certificate{own},
		// Certificates of workloads have no names of hosts; the path is verified below.
		InsecureSkipVerify: true,
		ClientAuth:         tls.RequireAnyClientCert,
		VerifyConnection: func(state tls.ConnectionState) error {
			_, err := state.PeerCertificates[0].Verify(x509.VerifyOptions{
				Roots:     roots,
				KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
			})
			return err
		},
	}
	connection := tls.Client(tcp, config)
	if q.Server {
		connection = tls.Server(tcp, config)
	}
	if err := connection.Handshake(); err != nil {
		return nil, err
	}
	// The other side has accepted this one when it says something.
	if _, err := connection.Read(make([]byte, 1)); err != nil {
		return nil, err
	}
	state := connection.ConnectionState()
	return &handshakeAnswer{Group: state.CurveID.String(), Version: tls.VersionName(state.Version)}, nil
}
