package pool_test

import (
	"fmt"
	"testing"

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs"
	"github.com/btrfs-csi/btrfs-csi/pkg/pool"
)

// TestState: the worst problem of a pool is its state, and Conditions has all of them in order.
func TestState(t *testing.T) {
	missing, failing := btrfs.Device{ID: 2, Missing: true}, btrfs.Device{ID: 1, Path: "/dev/a", WriteErrors: 2}
	readOnly := btrfs.Space{Room: btrfs.Room{Size: 1 << 30, ReadOnly: true, Metadata: 31 << 20}}
	for name, c := range map[string]struct {
		status         pool.Status
		state, reasons string
	}{
		"ready":                    {pool.Status{Name: "a"}, "Ready", "[]"},
		"silent":                   {pool.Status{Name: "a", Error: "since noon", Silent: true, Devices: []btrfs.Device{missing}}, "Silent", "[PoolSilent]"},
		"unusable":                 {pool.Status{Name: "a", Error: "not on btrfs"}, "Unusable", "[PoolUnusable]"},
		"inconsistent":             {pool.Status{Name: "a", Quota: btrfs.QuotaStatus{Inconsistent: true}}, "QuotaInconsistent", "[QuotaInconsistent]"},
		"without metadata":         {pool.Status{Name: "a", Space: btrfs.Space{Room: btrfs.Room{Size: 1 << 30, Available: 1 << 29, Metadata: 32<<20 - 1}}}, "MetadataFull", "[MetadataFull]"},
		"metadata at the headroom": {pool.Status{Name: "a", Space: btrfs.Space{Room: btrfs.Room{Size: 1 << 30, Metadata: 32 << 20}}}, "Ready", "[]"},
		"a full file":              {pool.Status{Name: "a", Space: btrfs.Space{Room: btrfs.Room{Size: 1 << 30, Backing: &btrfs.Backing{Path: "/a.img"}}}}, "BackingFull", "[BackingFull]"},
		"all that is wrong": {pool.Status{Name: "a", Space: readOnly, Devices: []btrfs.Device{failing, missing}}, "ReadOnly",
			"[PoolReadOnly DeviceMissing MetadataFull DeviceErrors]"},
	} {
		t.Run(name, func(t *testing.T) {
			state, message := c.status.State()
			var reasons []string
			for _, condition := range c.status.Conditions() {
				reasons = append(reasons, condition.Problem.Reason())
			}
			if state != c.state || fmt.Sprint(reasons) != c.reasons || (message == "") != (state == "Ready") {
				t.Errorf("got %s (%s), %v, wanted %s, %s", state, message, reasons, c.state, c.reasons)
			}
		})
	}
}
