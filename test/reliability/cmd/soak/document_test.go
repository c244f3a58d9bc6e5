package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/btrfs-csi/btrfs-csi/test/reliability/crashstates"
	"github.com/btrfs-csi/btrfs-csi/test/reliability/writelog"
)

// TestDocumentCrashStates: the figures stand in their place, and nowhere else.
func TestDocumentCrashStates(t *testing.T) {
	text, err := os.ReadFile("../../../../docs/reliability.md")
	no(t, err)
	dir := t.TempDir()
	no(t, os.WriteFile(filepath.Join(dir, "reliability.md"), text, 0o600))
	document, err := openDocument(dir)
	no(t, err)
	r := crashstates.Report{Version: "btrfs-csi v9", Histories: 4711, Killed: 1, Of: [3]int{9, 74, 579}, Drawn: -1, Counts: writelog.Counts{Runs: 4712},
		Mutants: []crashstates.Found{{Name: "a fault", Histories: 1, Runs: 2, Message: "found"}}}
	no(t, document.writeCrashStates(r))
	next, err := os.ReadFile(filepath.Join(dir, "reliability.md"))
	no(t, err)
	for _, want := range []string{"btrfs-csi v9", "4711", "4712", "| a fault | 1 histories, 2 states | found |", "0 of 579"} {
		if strings.Count(string(next), want) != 1 {
			t.Errorf("%q is not there once", want)
		}
	}
	before, _, _ := strings.Cut(string(text), crashSection.begin)
	_, after, _ := strings.Cut(string(text), crashSection.end)
	if !strings.HasPrefix(string(next), before) || !strings.HasSuffix(string(next), after) {
		t.Error("something else has changed")
	}
}

func no(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
