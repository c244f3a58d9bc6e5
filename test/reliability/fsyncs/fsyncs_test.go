package fsyncs

import (
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs/btrfstest"
	"github.com/btrfs-csi/btrfs-csi/test/reliability/node/nodetest"
	"github.com/btrfs-csi/btrfs-csi/test/reliability/writelog"
)

func TestMain(m *testing.M) {
	writelog.Main()
	os.Exit(btrfstest.Main(m.Run))
}

// TestFsyncs checks that a missing fsync is found. Some fsyncs of the kernel return too early, too (see
// docs/reliability.md). The test only logs those.
func TestFsyncs(t *testing.T) {
	btrfstest.RequireRoot(t)
	for _, forget := range []bool{false, true} {
		r, err := Run(t.Context(), Options{Dir: t.TempDir(), Writers: 3, Rounds: 15, Seed: 1, forget: forget})
		nodetest.No(t, err)
		if r.Fsyncs != 45 || r.States < 15 {
			t.Errorf("%d fsyncs, %d states", r.Fsyncs, r.States)
		}
		t.Logf("forgotten: %v, %d fsyncs returned early\n%s", forget, len(r.Early), strings.Join(r.Early, "\n"))
		ofFirst := func(story string) bool {
			return strings.Contains(story, "\nwriter0 holds") && strings.Contains(story, "writes") && strings.Contains(story, "flush\n")
		}
		if forget && !slices.ContainsFunc(r.Early, ofFirst) {
			t.Error("what the first writer did not sync was not found")
		}
	}
}
