package mirror

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
)

// TestBeingBound: a PersistentVolume that Kubernetes is about to bind is left alone
// until that is done, and no longer.
func TestBeingBound(t *testing.T) {
	entry, patched := entryOf(meta.Volume("pvc-1")), "PATCH "+persistentVolumes+"/pvc-1"
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
		v := volumeOf("pvc-1", l.options.Driver)
		v.CreationTimestamp, v.Status.Phase = metav1.Now(), c.phase
		if c.claimed {
			v.Spec.ClaimRef = &corev1.ObjectReference{Name: "data"}
		}
		l.api.put(persistentVolumes, v)
		l.see()
		l.no(l.syncSubvolume(t.Context(), entry.Ref()))
		if written := l.api.written(); slices.Contains(written, patched) != c.patched {
			t.Errorf("%s: want it patched: %v, got %q", c.name, c.patched, written)
		}
	}
}

// TestBoundIsLookedAt: what was left alone comes again when it is bound.
func TestBoundIsLookedAt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLabOf(t, "node-1", nil, nowhere(t), newFakeNode(), Options{})
		was := volumeOf("pvc-1", l.options.Driver)
		is := was.DeepCopy()
		is.Status.Phase = corev1.VolumeBound
		l.volumeChanged(was, is)
		time.Sleep(settle)
		synctest.Wait()
		if l.queue.Len() != 1 {
			t.Error("it is not looked at")
		}
	})
}
