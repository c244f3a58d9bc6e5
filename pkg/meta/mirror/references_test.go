package mirror

import (
	"slices"
	"testing"
	"time"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
)

// TestVolumeIsKept: by any PersistentVolume of its handle that is not deleted with
// it, whatever its name.
func TestVolumeIsKept(t *testing.T) {
	for _, c := range []struct {
		phase  corev1.PersistentVolumePhase
		policy corev1.PersistentVolumeReclaimPolicy
		kept   bool
	}{
		{corev1.VolumeReleased, corev1.PersistentVolumeReclaimDelete, false},
		{corev1.VolumeFailed, corev1.PersistentVolumeReclaimDelete, false},
		{corev1.VolumeReleased, corev1.PersistentVolumeReclaimRetain, true},
		{corev1.VolumeBound, corev1.PersistentVolumeReclaimDelete, true},
		{corev1.VolumeAvailable, corev1.PersistentVolumeReclaimDelete, true},
		{"", corev1.PersistentVolumeReclaimRetain, true},
	} {
		l := newLab(t, newFakeNode(), Options{})
		released := volumeOf("pvc-1", l.cluster.Driver)
		released.Status.Phase, released.Spec.PersistentVolumeReclaimPolicy = corev1.VolumeReleased, corev1.PersistentVolumeReclaimDelete
		other := volumeOf("pvc-1", l.cluster.Driver)
		other.Name, other.Status.Phase, other.Spec.PersistentVolumeReclaimPolicy = "db-data", c.phase, c.policy
		foreign := volumeOf("pvc-1", "other.example.org")
		foreign.Name = "foreign"
		for _, v := range []*corev1.PersistentVolume{released, other, foreign} {
			l.api.put(persistentVolumes, v)
		}
		l.see()
		names, err := l.cluster.keptBy(t.Context(), meta.Volume("pvc-1"))
		l.no(err)
		if kept := slices.Equal(names, []string{"db-data"}); kept != c.kept || !kept && len(names) > 0 {
			t.Errorf("%s with the policy %s: kept by %q, want it kept: %v", c.phase, c.policy, names, c.kept)
		}
	}
}

// TestKeptAsOfNow: the cache lags behind, the API server does not.
func TestKeptAsOfNow(t *testing.T) {
	l := newLab(t, newFakeNode(), Options{})
	bound := volumeOf("pvc-1", l.cluster.Driver)
	bound.Status.Phase, bound.Spec.PersistentVolumeReclaimPolicy = corev1.VolumeBound, corev1.PersistentVolumeReclaimDelete
	l.api.put(persistentVolumes, bound)
	l.see()
	released := bound.DeepCopy()
	released.Status.Phase = corev1.VolumeReleased
	l.api.put(persistentVolumes, released)
	if names, err := l.cluster.keptBy(t.Context(), meta.Volume("pvc-1")); err != nil || len(names) > 0 {
		t.Errorf("released meanwhile: kept by %q, %v", names, err)
	}
	delete(l.api.objects, persistentVolumes+"/pvc-1")
	if names, err := l.cluster.keptBy(t.Context(), meta.Volume("pvc-1")); err != nil || len(names) > 0 {
		t.Errorf("deleted meanwhile: kept by %q, %v", names, err)
	}
	l.api.refuses[persistentVolumes] = true
	if _, err := l.cluster.keptBy(t.Context(), meta.Volume("pvc-1")); err == nil {
		t.Error("nobody can say whether it is kept, and it is not")
	}
}

// TestSnapshotIsKept: by any VolumeSnapshotContent of its handle that is not deleted
// with it.
func TestSnapshotIsKept(t *testing.T) {
	for name, c := range map[string]struct {
		deleted bool
		policy  snapshotv1.DeletionPolicy
		kept    bool
	}{
		"deleted":               {true, snapshotv1.VolumeSnapshotContentDelete, false},
		"deleted, but retained": {true, snapshotv1.VolumeSnapshotContentRetain, true},
		"in use":                {false, snapshotv1.VolumeSnapshotContentDelete, true},
	} {
		l := newLab(t, newFakeNode(), Options{})
		content := contentOf("snapshot-1", l.cluster.Driver)
		content.Spec.DeletionPolicy = c.policy
		if c.deleted {
			content.DeletionTimestamp = &metav1.Time{Time: time.Now()}
		}
		l.api.put(contentObjects, content)
		l.see()
		names, err := l.cluster.keptBy(t.Context(), meta.Snapshot("snapshot-1"))
		l.no(err)
		if kept := len(names) == 1; kept != c.kept {
			t.Errorf("%s: kept by %q, want it kept: %v", name, names, c.kept)
		}
	}
}
