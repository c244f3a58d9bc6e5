package mirror

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/btrfs-csi/btrfs-csi/api/v1alpha1"
	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
)

// TestBeingBound: a PersistentVolume that Kubernetes is about to bind is left alone
// until that is done, and no longer.
func TestBeingBound(t *testing.T) {
	entry, patched := entryOf(meta.Volume("pvc-1")), "PATCH "+persistentVolumes+"/pvc-1"
	entry.UUID = "u-1"
	for _, c := range []struct {
		name    string
		claimed bool
		phase   corev1.PersistentVolumePhase
		patched bool
	}{
		{name: "just made", claimed: true},
		{name: "pending", claimed: true, phase: corev1.VolumePending},
		{name: "available, for a claim", claimed: true, phase: corev1.VolumeAvailable},
		{name: "available, for any claim", phase: corev1.VolumeAvailable, patched: true},
		{name: "bound", claimed: true, phase: corev1.VolumeBound, patched: true},
	} {
		l := newLab(t, newFakeNode(entry), Options{})
		v := volumeOf("pvc-1", l.cluster.Driver)
		v.CreationTimestamp, v.Status.Phase = metav1.Now(), c.phase
		if c.claimed {
			v.Spec.ClaimRef = &corev1.ObjectReference{Name: "data"}
		}
		l.api.put(persistentVolumes, v)
		l.see()
		l.no(l.subvolumes.publish(t.Context(), entry.Ref()))
		if written := l.api.written(); slices.Contains(written, patched) != c.patched {
			t.Errorf("%s: want it patched: %v, got %q", c.name, c.patched, written)
		}
	}
}

// TestBoundIsLookedAt: what was left alone comes again when it is bound.
func TestBoundIsLookedAt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLabOf(t, "node-1", nil, nowhere(t), newFakeNode(), Options{})
		was := volumeOf("pvc-1", l.cluster.Driver)
		is := was.DeepCopy()
		is.Status.Phase = corev1.VolumeBound
		l.subvolumes.volumeChanged(was, is)
		time.Sleep(calm)
		synctest.Wait()
		if l.subvolumes.queue.Len() != 1 {
			t.Error("it is not looked at")
		}
	})
}

// TestTakeOver: of a pool that has come from another node all is told as it is here,
// also what was deleted or lost on the way.
func TestTakeOver(t *testing.T) {
	here, lost, deleted, elsewhere := entryOf(meta.Volume("here")), entryOf(meta.Volume("lost")), entryOf(meta.Volume("deleted")), entryOf(meta.Volume("elsewhere"))
	elsewhere.PoolID = "pool-2"
	l := newLab(t, newFakeNode(here, lost), Options{})
	l.node.lost = map[meta.Ref]bool{lost.Ref(): true}
	l.node.pools = []PoolReport{{Name: "fast", ID: "pool-1", State: "Ready"}}
	for _, entry := range []meta.Entry{here, lost, deleted, elsewhere} {
		s := mirrored(entry, map[string]string{v1alpha1.AnnotationOrphanedSince: "then", v1alpha1.AnnotationCondemnedSince: "then", v1alpha1.AnnotationObject: "pv", v1alpha1.AnnotationUUID: "u"})
		s.Spec.NodeName, s.Status.State = "node-2", string(Ready)
		l.api.put(subvolumeObjects, s)
	}
	for range 2 {
		l.resync()
	}
	written, object := l.api.written(), subvolumeObjects+"/deleted"
	if update, removal := slices.Index(written, "PUT "+object), slices.Index(written, "DELETE "+object); update < 0 || removal < update {
		t.Errorf("want it taken over before it is deleted, which is refused for what is another node's; got %q", written)
	}
	for _, c := range []struct{ name, node, pool, state string }{
		{"here", "node-1", "default", "Ready"}, // the pool's name is that of the entry
		{"lost", "node-1", "fast", "Lost"},
		{"deleted", "", "", ""},
		{"elsewhere", "node-2", "default", "Ready"},
	} {
		s, err := l.cluster.API.Subvolumes().Get(t.Context(), c.name, metav1.GetOptions{})
		if c.node == "" {
			if !apierrors.IsNotFound(err) {
				t.Errorf("%s is still there", c.name)
			}
			continue
		}
		l.no(err)
		if s.Spec.NodeName != c.node || s.Spec.Pool != c.pool || s.Status.State != c.state {
			t.Errorf("%s: got %q of node %q, pool %q", c.name, s.Status.State, s.Spec.NodeName, s.Spec.Pool)
		}
		// Nothing of what another node wrote has anything deleted here.
		if own := c.node == "node-1"; own == (s.Annotations[v1alpha1.AnnotationCondemnedSince] != "" || s.Annotations[v1alpha1.AnnotationObject] != "") {
			t.Errorf("%s: got the annotations %v", c.name, s.Annotations)
		}
	}
}

// TestLostComesBack: the object of what is lost, too, is written again.
func TestLostComesBack(t *testing.T) {
	entry := entryOf(meta.Volume("pvc-1"))
	l := newLab(t, newFakeNode(entry), Options{})
	l.node.lost = map[meta.Ref]bool{entry.Ref(): true}
	l.no(l.subvolumes.publish(t.Context(), entry.Ref()))
	s, err := l.cluster.API.Subvolumes().Get(t.Context(), "pvc-1", metav1.GetOptions{})
	l.no(err)
	if s.Status.State != string(Lost) || s.Status.Size.Value() != entry.Size || s.Spec.PoolID != "pool-1" || s.Annotations[v1alpha1.AnnotationSubvolumeID] != "" {
		t.Errorf("got %+v", s)
	}
}
