package main

import (
	"fmt"
	"strings"
	"text/template"
)

// templateQuestion is a template and what it is rendered with. Which functions and variables there are depends on
// the kind of the template; that a missing one is an error does not.
type templateQuestion struct {
	Text      string              `json:"text"`
	Functions []string            `json:"functions"`
	Variables map[string]string   `json:"variables"`
	Labels    map[string]string   `json:"labels"`
	Tags      map[string][]string `json:"tags"`
}

func (q *templateQuestion) render() (string, error) {
	all := template.FuncMap{
		"label": func(key string) (string, error) {
			value, ok := q.Labels[key]
			if !ok {
				return "", fmt.Errorf("no label %q", key)
			}
			return value, nil
		},
		"tag": func(key string) (string, error) {
			values := q.Tags[key]
			if len(values) != 1 {
				return "", fmt.Errorf("%d values of tag %q", len(values), key)
			}
			return values[0], nil
		},
		// In the order of a pipe: what is worked on comes last.
		"replace": func(old, new, text string) string {
			return strings.ReplaceAll(text, old, new)
		},
	}
	functions := template.FuncMap{}
	for _, name := range q.Functions {
		functions[name] = all[name]
	}
	parsed, err := template.New("").Funcs(functions).Option("missingkey=error").Parse(q.Text)
	if err != nil {
		return "", err
	}
	var out strings.Builder
	if err := parsed.Execute(&out, q.Variables); err != nil {
		return "", err
	}
	return out.String(), nil
}
