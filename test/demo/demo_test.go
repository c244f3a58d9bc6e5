package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs/btrfstest"
	"github.com/btrfs-csi/btrfs-csi/test/testkit"
)

func TestMain(m *testing.M) { os.Exit(btrfstest.Main(m.Run)) }

func TestDemo(t *testing.T) {
	btrfstest.RequireRoot(t)
	binary := filepath.Join(t.TempDir(), "btrfs-csi")
	if err := testkit.Build(t.Context(), "../..", binary); err != nil {
		t.Fatal(err)
	}
	t.Setenv("TMPDIR", t.TempDir())
	var out strings.Builder
	if err := run(t.Context(), binary, &out); err != nil {
		t.Fatalf("%v\n%s", err, &out)
	}
	for _, want := range []string{"disk quota exceeded", "200 are there, each once", "└── restored", "Nothing is wrong.", "0 volumes are left", "Nothing is left mounted"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is not in the output:\n%s", want, &out)
		}
	}
	if left, _ := os.ReadDir(os.Getenv("TMPDIR")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}
