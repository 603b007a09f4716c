package main

import (
	"fmt"
	"strings"
	"text/template"
)

// The default of a MeshIdentity on Kubernetes.
const path = "/ns/{{ .Namespace }}/sa/{{ .ServiceAccount }}"

// The labels of the same Dataplane as on the other side.
var labels = map[string]string{
	"app":                         "cart",
	"k8s.kuma.io/namespace":       "shop",
	"k8s.kuma.io/service-account": "cart",
	"kuma.io/mesh":                "default",
	"kuma.io/workload":            "cart",
	"kuma.io/zone":                "eu-1",
}

type pathData struct {
	TrustDomain    string
	Namespace      string
	ServiceAccount string
	Workload       string
}

// What was rendered last.
var rendered string

func parse() (*template.Template, error) {
	return template.New("path").Option("missingkey=error").Funcs(template.FuncMap{
		"label": func(key string) (string, error) {
			if value, ok := labels[key]; ok {
				return value, nil
			}
			return "", fmt.Errorf("no label %q", key)
		},
	}).Parse(path)
}

func render(parsed *template.Template) error {
	var text strings.Builder
	err := parsed.Execute(&text, pathData{
		TrustDomain:    "default.eu-1.mesh.local",
		Namespace:      labels["k8s.kuma.io/namespace"],
		ServiceAccount: labels["k8s.kuma.io/service-account"],
		Workload:       labels["kuma.io/workload"],
	})
	rendered = text.String()
	return err
}

// renderParsed parses once, when the resource arrives.
func renderParsed() (func() error, error) {
	parsed, err := parse()
	if err != nil {
		return nil, err
	}
	return func() error { return render(parsed) }, nil
}

// parseAndRender parses for every proxy, as Kuma does.
func parseAndRender() (func() error, error) {
	return func() error {
		parsed, err := parse()
		if err != nil {
			return err
		}
		return render(parsed)
	}, nil
}
