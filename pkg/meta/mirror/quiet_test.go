package mirror

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
)

// resync does all that is done every few minutes, to the end.
func (l *lab) resync() {
	l.Helper()
	_, err := l.syncPools(l.Context())
	l.no(err)
	l.see()
	l.syncAll(l.Context())
	for l.subvolumes.queue.Len() > 0 {
		ref, _ := l.subvolumes.queue.Get()
		l.no(l.subvolumes.publish(l.Context(), ref))
		l.subvolumes.queue.Done(ref)
	}
	l.see()
	l.no(l.labels.Reconcile(l.Context()))
	l.orphans.Reconcile(l.Context())
	l.see()
}

// TestQuiet: what has not changed is not written again, however often all is
// compared. Each write would come with each resync, of each node, for ever.
func TestQuiet(t *testing.T) {
	volume, snapshot, orphan := entryOf(meta.Volume("pvc-1")), entryOf(meta.Snapshot("snapshot-1")), entryOf(meta.Volume("pvc-3"))
	volume.Labels = map[string]string{"pvc/name": "data", "pvc/namespace": "db"}
	volume.Lineage = meta.Lineage{SubvolumeID: 257, UUID: "u-1", CreatedTransid: 9}
	snapshot.Source, snapshot.Lineage = volume.Ref(), meta.Lineage{SubvolumeID: 258, UUID: "u-2", ParentUUID: "u-1", CreatedTransid: 10}
	view := entryOf(meta.Volume("pvc-2"))
	view.Kind, view.Source, view.ReceivedUUID = meta.View, snapshot.Ref(), "u-9"

	l := newLab(t, newFakeNode(volume, snapshot, view, orphan), Options{Orphans: DeleteOrphans, OrphanGrace: grace})
	l.node.pools = []PoolReport{{Name: "default", ID: "pool-1", State: "Ready", Quota: "full", Size: 10 << 30, Available: 7777777777}}
	l.api.put(nodeObjects, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "node-1", Labels: map[string]string{l.cluster.TopologyPrefix + "gone": "here"}}})
	for _, handle := range []string{"pvc-1", "pvc-2"} {
		bound := volumeOf(handle, l.cluster.Driver)
		bound.Spec.ClaimRef, bound.Status.Phase = &corev1.ObjectReference{Name: "data"}, corev1.VolumeBound
		l.api.put(persistentVolumes, bound)
	}
	l.api.put(contentObjects, contentOf("snapshot-1", l.cluster.Driver))
	l.see()

	expect := func(when string, parts ...string) {
		t.Helper()
		l.resync()
		written := strings.Join(l.api.written(), "\n")
		if len(parts) == 0 && written != "" {
			t.Errorf("%s: got\n%s", when, written)
		}
		for _, part := range parts {
			if !strings.Contains(written, part) {
				t.Errorf("%s: want %s, got\n%s", when, part, written)
			}
		}
	}
	expect("at first", "POST "+poolObjects, "PUT "+poolObjects+"/pool-1/status",
		"POST "+subvolumeObjects, "PUT "+subvolumeObjects+"/pvc-1/status", "PUT "+subvolumeObjects+"/pvc-2/status", "PUT "+subvolumeObjects+"/snapshot-1/status",
		"PATCH "+subvolumeObjects+"/pvc-3", "PATCH "+persistentVolumes+"/pvc-1", "PATCH "+persistentVolumes+"/pvc-2", "PATCH "+contentObjects+"/snapshot-1", "PATCH "+nodeObjects+"/node-1")
	expect("nothing has changed")
	expect("nothing has changed again")

	l.node.pools[0].Available += 1 << 10
	expect("a write that is no news")
	l.node.pools[0].Available -= 1 << 30
	expect("a write that is", "PUT "+poolObjects+"/pool-1/status")
	volume.Size *= 2
	l.node.entries[volume.Ref()] = volume
	expect("expanded", "PUT "+subvolumeObjects+"/pvc-1/status", "PUT "+subvolumeObjects+"/pvc-1")
	l.no(l.node.Remove(t.Context(), view.Ref()))
	expect("removed", "DELETE "+subvolumeObjects+"/pvc-2")
	expect("nothing has changed since")
}
