//go:build e2e

package e2e

import (
	"fmt"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/btrfs-csi/btrfs-csi/test/e2e/cluster"
)

const gib = 1 << 30

// available returns the capacity of a pool: the free space of its filesystem without the headroom.
func available(t *testing.T, node *cluster.Node, pool string) int64 {
	t.Helper()
	const mib = 1 << 20
	var free, all, block int64
	text := onNode(t, node, "sync -f /var/lib/btrfs-csi/pools/"+pool+" && stat -f -c '%a %b %S' /var/lib/btrfs-csi/pools/"+pool)
	if _, err := fmt.Sscan(text, &free, &all, &block); err != nil {
		t.Fatalf("stat of pool %s on %s: %q: %v", pool, node.Name, text, err)
	}
	size := all * block
	return free*block - min(max(size/100, 64*mib), gib, size/16)
}

// capacities returns the CSIStorageCapacities of a class on a node.
func capacities(node *cluster.Node, class string) (found []storagev1.CSIStorageCapacity, err error) {
	n, err := api().CoreV1().Nodes().Get(ctx, node.Name, metav1.GetOptions{})
	if err != nil {
		return nil, err
	}
	list, err := api().StorageV1().CSIStorageCapacities(driverNamespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	for _, c := range list.Items {
		selector, err := metav1.LabelSelectorAsSelector(c.NodeTopology)
		if err != nil {
			return nil, err
		}
		if c.StorageClassName == class && selector.Matches(labels.Set(n.Labels)) {
			found = append(found, c)
		}
	}
	return found, nil
}

// awaitRoom waits until the published capacity of a class on a node is that of the pool, within what the
// filesystem may use for itself meanwhile.
func awaitRoom(t *testing.T, node *cluster.Node, class, pool string) {
	t.Helper()
	began := time.Now()
	eventually(t, "the capacity of class "+class+" on "+node.Name+" is that of pool "+pool, func() error {
		want := int64(0)
		if pool != "" {
			want = available(t, node, pool)
		}
		found, err := capacities(node, class)
		if err != nil {
			return err
		}
		if len(found) != 1 {
			return fmt.Errorf("%d objects say it, want 1: %+v", len(found), found)
		}
		have := found[0].Capacity.Value()
		if off := want - have; off < -want/50 || off > want/50 {
			return fmt.Errorf("it is %d, the pool has %d", have, want)
		}
		return nil
	})
	t.Logf("capacity of pool %q on %s is known after %.1f s", pool, node.Name, time.Since(began).Seconds())
}

// The published capacity of each node and class follows the free space, and the scheduler uses it.
func TestCapacity(t *testing.T) {
	small, large := lab.Nodes[0], lab.Nodes[1]
	newDrive(t, small, "room", gib)
	newDrive(t, large, "room", 4*gib)
	newDrive(t, large, "only", 2*gib)
	room, only := newClass(t, map[string]string{"pool": "room"}), newClass(t, map[string]string{"pool": "only"})
	s := newSpace(t)
	for _, n := range lab.Nodes {
		awaitRoom(t, n, class, "default")
		awaitRoom(t, n, room, "room")
	}
	awaitRoom(t, large, only, "only")
	awaitRoom(t, small, only, "")

	// The volume fits on one node only, and the other is not tried.
	for _, name := range []string{"fits", "fits-too"} {
		s.claim(name, ofClass(room), size("3Gi"))
		s.pod(name)
		s.ran(name, large)
		if events := s.events("PersistentVolumeClaim", name, "ProvisioningFailed"); len(events) > 0 {
			t.Errorf("claim %s was tried where there is no room: %q", name, events)
		}
	}
	s.sh("fits", "fallocate -l 2G /data/file && sync")
	awaitRoom(t, large, room, "room")
	if left := available(t, large, "room"); left > 2*gib {
		t.Errorf("2 of 4 GiB are written, %d bytes are said to be left", left)
	}

	// The volume fits on no node, until one gets a larger disk.
	s.claim("waits", ofClass(room), size("3Gi"))
	s.pod("waits")
	s.event("Pod", "waits", "FailedScheduling", "did not have enough free storage")
	never(t, 2*time.Second, api().CoreV1().PersistentVolumeClaims(s.ns), "waits", "be bound", func(c *corev1.PersistentVolumeClaim) bool {
		return c.Status.Phase == corev1.ClaimBound
	})
	s.deletePod("fits")
	s.clear("fits")
	s.ran("waits", large)
}

// A claim with a selected node without space has an Event that says so.
func TestTooLarge(t *testing.T) {
	t.Parallel()
	s := newSpace(t)
	s.claim("huge", size("100Ti"), selected(lab.Nodes[1]))
	s.event("PersistentVolumeClaim", "huge", "ProvisioningFailed", "not enough space", `pool "default"`)
	// The scheduler selects a node again.
	await(t, api().CoreV1().PersistentVolumeClaims(s.ns), "huge", "have no node", func(c *corev1.PersistentVolumeClaim) bool {
		return c.Annotations["volume.kubernetes.io/selected-node"] == "" && c.Status.Phase == corev1.ClaimPending
	})
	s.pod("huge")
	s.event("Pod", "huge", "FailedScheduling", "did not have enough free storage")
}
