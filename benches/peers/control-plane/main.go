// Go's standard library, and the YAML library of the Kubernetes world, doing what a control plane
// written in Go does with them. Its one argument is the file of the documents to read.
package main

import (
	"fmt"
	"os"

	"meshca/peers/internal/bench"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: control-plane FILE, where FILE holds a JSON list of documents")
		os.Exit(2)
	}
	bench.Serve(map[string]bench.SetUp{
		"issue":             issueLoadingEachTime,
		"issue-ca-kept":     issueKeepingTheCA,
		"template-parsed":   renderParsed,
		"template-per-call": parseAndRender,
		"resources":         func() (func() error, error) { return readResources(os.Args[1]) },
	})
}
