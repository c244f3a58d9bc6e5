package driver

import (
	"context"
	"fmt"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
	"github.com/btrfs-csi/btrfs-csi/pkg/pool"
)

// silentEngine is an engine whose only disk does not answer.
type silentEngine struct{ Engine }

var errSilentDisk = fmt.Errorf("pool %q: %w", "default", pool.ErrSilent)

func (silentEngine) Stat(context.Context, meta.Ref) (meta.Entry, error) {
	return meta.Entry{}, errSilentDisk
}

func (silentEngine) Pools(context.Context) []pool.Status {
	return []pool.Status{{Name: "default", ID: "here", Error: errSilentDisk.Error(), Silent: true}}
}

// TestHealthOfASilentDisk: the health of the storage and of its volumes have the same
// reason.
func TestHealthOfASilentDisk(t *testing.T) {
	d, err := New(silentEngine{}, Options{NodeID: "node", Version: "test", KubeletDir: t.TempDir()})
	must(t, err)
	storage, err := (&node{Driver: d}).NodeGetStorageHealth(t.Context(), &csi.NodeGetStorageHealthRequest{})
	must(t, err)
	volume, err := (&controller{Driver: d}).ControllerGetVolumeHealth(t.Context(), &csi.ControllerGetVolumeHealthRequest{VolumeId: "pvc"})
	must(t, err)
	backends, statuses := storage.GetBackendHealth(), volume.GetVolumeHealth().GetHealthStatuses()
	if len(backends) != 1 || len(statuses) != 1 || backends[0].GetReason() != "PoolSilent" || statuses[0].GetReason() != "PoolSilent" ||
		statuses[0].GetStatus() != csi.VolumeHealthErrorType_INACCESSIBLE {
		t.Errorf("storage: %v, volume: %v", backends, statuses)
	}
}
