package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs/btrfstest"
	"github.com/btrfs-csi/btrfs-csi/test/testkit"
)

// TestServeInAVolume runs a driver with its state directory in a volume of another one, as
// with kind.
func TestServeInAVolume(t *testing.T) {
	outer := newVictim(t, "full")
	outer.make("outer", nil, testkit.Writer, thing{"active", "", 16 * mebi})
	outer.mount("outer")
	inner := &victim{Node: newNode(t, outer.Target("outer")), t: t, quota: "none", there: map[string]thing{}}
	t.Cleanup(func() {
		btrfstest.UnmountAll(t, inner.Staging("inner"))
		btrfstest.UnmountAll(t, inner.Target("inner"))
	})
	inner.start()
	inner.make("inner", nil, testkit.Writer, thing{"active", "", 16 * mebi})
	inner.write("inner", "kept")
	inner.mount("inner")

	wantInUse(t, inner, "inner", inner.Kubelet)
	wantInUse(t, outer, "outer", outer.Kubelet)
	inner.driver.stop(t)
	outer.unmount("outer")
	wantInUse(t, outer, "outer", inner.Kubelet) // only mounts of this volume count
	data, err := os.ReadFile(filepath.Join(inner.Target("inner"), "data"))
	if err != nil || string(data) != "kept" {
		t.Errorf("inner has %q, %v", data, err)
	}

	outer.mount("outer")
	inner.start()
	inner.unmount("inner")
	if staged, published := mounts(t, inner.Staging("inner")), mounts(t, inner.Target("inner")); staged+published > 0 {
		t.Errorf("inner is mounted %d and %d times", staged, published)
	}
	inner.must(deleteVolume(inner, "inner"))
	inner.driver.stop(t)
	outer.unmount("outer")
	outer.must(deleteVolume(outer, "outer"))
}

func deleteVolume(v *victim, id string) error {
	_, err := v.driver.DeleteVolume(v.t.Context(), &csi.DeleteVolumeRequest{VolumeId: id})
	return err
}

// wantInUse fails the test unless a volume cannot be deleted, since it is mounted below a
// directory.
func wantInUse(t *testing.T, v *victim, id, below string) {
	t.Helper()
	err := deleteVolume(v, id)
	if status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), below) {
		t.Errorf("delete of %s: got %v, want FAILED_PRECONDITION with %s", id, err, below)
	}
}
