package main

import (
	"strings"
	"testing"
)

func TestCheck(t *testing.T) {
	const pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\n"
	for name, c := range map[string]struct {
		manifests string
		n         int
		fault     string // empty: none
	}{
		"objects, and a comment":   {pod + "---\n# nothing\n---\n" + pod + "spec: {priority: 1}\n", 2, ""},
		"a field that is not":      {pod + "spec: {urgency: 1}\n", 1, `unknown field "spec.urgency"`},
		"a field of another type":  {pod + "spec: {priority: high}\n", 1, "cannot unmarshal string"},
		"a field that comes twice": {pod + "spec: {priority: 1, priority: 1}\n", 1, `"priority" already set`},
		"a kind that is not":       {"apiVersion: v1\nkind: Pot\nmetadata: {name: a}\n", 1, `no kind "Pot"`},
		"a rule":                   {"apiVersion: monitoring.coreos.com/v1\nkind: PrometheusRule\nspec: {group: []}\n", 1, `unknown field "spec.group"`},
	} {
		t.Run(name, func(t *testing.T) {
			n, err := check(strings.NewReader(c.manifests))
			if n != c.n || (err == nil) != (c.fault == "") || (err != nil && !strings.Contains(err.Error(), c.fault)) {
				t.Errorf("got %d objects, %v", n, err)
			}
		})
	}
}
