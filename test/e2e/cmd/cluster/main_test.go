package main

import (
	"context"
	"slices"
	"testing"
)

// TestArgumentsOfOthers checks that arguments after the name of a program go to it, and arguments before it do
// not.
func TestArgumentsOfOthers(t *testing.T) {
	t.Setenv("HELM", "helm")
	for _, c := range []struct {
		args  []string
		want  []string
		named string
	}{
		{[]string{"kubectl", "get", "pods"}, []string{"kubectl", "get", "pods"}, defaultName},
		{[]string{"kubectl", "-n", "kube-system", "get", "pods", "-A"}, []string{"kubectl", "-n", "kube-system", "get", "pods", "-A"}, defaultName},
		{[]string{"kubectl", "--help"}, []string{"kubectl", "--help"}, defaultName},
		{[]string{"kubectl", "exec", "pod", "--", "ls", "--name"}, []string{"kubectl", "exec", "pod", "--", "ls", "--name"}, defaultName},
		{[]string{"--name", "other", "kubectl", "--name", "x"}, []string{"kubectl", "--name", "x"}, "other"},
		{[]string{"--name=other", "helm", "-n", "x", "list"}, []string{"helm", "-n", "x", "list"}, "other"},
	} {
		var got []string
		root := newCommand(func(_ context.Context, program string, args ...string) error {
			got = append([]string{program}, args...)
			return nil
		})
		root.SetArgs(c.args)
		if err := root.ExecuteContext(t.Context()); err != nil || !slices.Equal(got, c.want) || name != c.named {
			t.Errorf("%q: ran %q in cluster %q (%v), want %q in %q", c.args, got, name, err, c.want, c.named)
		}
	}
}
