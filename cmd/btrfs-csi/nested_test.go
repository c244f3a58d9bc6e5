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
)

// TestServeInAVolume runs a driver with its state directory in a published volume of
// another one, as with kind, or with CI in a claim.
func TestServeInAVolume(t *testing.T) {
	outer := newVictim(t, "full")
	outer.make("outer", nil, writer, thing{"active", "", 16 * mebi})
	outer.must(stage(outer, "outer"))
	outer.must(publish(outer, "outer"))
	inner := &victim{t: t, state: outer.target("outer"), kubelet: t.TempDir(), quota: "none", there: map[string]thing{}}
	t.Cleanup(func() {
		btrfstest.UnmountAll(t, inner.staging("inner"))
		btrfstest.UnmountAll(t, inner.target("inner"))
	})
	inner.start()
	inner.make("inner", nil, writer, thing{"active", "", 16 * mebi})
	inner.write("inner", "kept")
	inner.must(stage(inner, "inner"))
	inner.must(publish(inner, "inner"))

	wantInUse(t, inner, "inner", inner.kubelet)
	wantInUse(t, outer, "outer", outer.kubelet)
	inner.driver.stop(t)
	outer.must(unpublish(outer, "outer"))
	outer.must(unstage(outer, "outer"))
	wantInUse(t, outer, "outer", inner.kubelet) // in use by what is mounted of it alone
	data, err := os.ReadFile(filepath.Join(inner.target("inner"), "data"))
	if err != nil || string(data) != "kept" {
		t.Errorf("inner has %q, %v", data, err)
	}

	outer.must(stage(outer, "outer"))
	outer.must(publish(outer, "outer"))
	inner.start()
	inner.must(unpublish(inner, "inner"))
	inner.must(unstage(inner, "inner"))
	if staged, published := mounts(t, inner.staging("inner")), mounts(t, inner.target("inner")); staged+published > 0 {
		t.Errorf("inner is mounted %d and %d times", staged, published)
	}
	inner.must(deleteVolume(inner, "inner"))
	inner.driver.stop(t)
	outer.must(unpublish(outer, "outer"))
	outer.must(unstage(outer, "outer"))
	outer.must(deleteVolume(outer, "outer"))
}

func deleteVolume(v *victim, id string) error {
	_, err := v.driver.client.DeleteVolume(v.t.Context(), &csi.DeleteVolumeRequest{VolumeId: id})
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
