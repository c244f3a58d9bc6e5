package driver

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs"
	"github.com/btrfs-csi/btrfs-csi/pkg/meta/called"
	"github.com/btrfs-csi/btrfs-csi/pkg/meta/index"
	"github.com/btrfs-csi/btrfs-csi/pkg/pool"
	"github.com/btrfs-csi/btrfs-csi/pkg/snapshot"
)

// TestCalls counts with full quota, on a real btrfs. Nothing runs beside what is counted.
func TestCalls(t *testing.T) {
	r := newRig(t, rigOptions{quota: btrfs.QuotaFull})
	for i := range 3 {
		r.create(fmt.Sprint("pvc-", i))
	}
	time.Sleep(2 * time.Second) // the index is written behind
	at := filepath.Join(t.TempDir(), "index.db")
	called.During(os.Stdout, "start", func() {
		host, err := pool.NewHost(r.state, btrfs.QuotaFull)
		must(t, err)
		index, _, err := index.Open(at)
		must(t, err)
		e, err := snapshot.Open(t.Context(), host, index, snapshot.Patience(time.Minute))
		must(t, err)
		t.Cleanup(func() { _ = e.Close() })
	})
	called.During(os.Stdout, "CreateVolume", func() { r.create("pvc-counted") })
}
