package wiring

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/uuid"

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs"
	"github.com/btrfs-csi/btrfs-csi/pkg/cluster/node"
	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
	"github.com/btrfs-csi/btrfs-csi/pkg/meta/index"
	"github.com/btrfs-csi/btrfs-csi/pkg/pool"
	"github.com/btrfs-csi/btrfs-csi/pkg/snapshot"
)

// TestForgottenIsGoneToTheCluster: an ID that may be in a forgotten absent pool is gone to
// the controllers. Otherwise no deletion would ever complete in the cluster.
func TestForgottenIsGoneToTheCluster(t *testing.T) {
	state := t.TempDir()
	known := filepath.Join(state, "known")
	if err := os.MkdirAll(known, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(known, uuid.NewString()), []byte("away\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	host, err := pool.NewHost(state, btrfs.QuotaNone)
	if err != nil {
		t.Fatal(err)
	}
	index, _, err := index.Open(filepath.Join(state, "index.db"))
	if err != nil {
		t.Fatal(err)
	}
	e, err := snapshot.Open(t.Context(), host, index)
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	if _, state := (&localNode{engine: e}).Look(t.Context(), meta.Volume("pvc")); state != node.Gone {
		t.Errorf("it is %s", state)
	}
}
