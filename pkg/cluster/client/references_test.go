package client_test

import (
	"slices"
	"testing"
	"time"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/btrfs-csi/btrfs-csi/pkg/cluster/client"
	"github.com/btrfs-csi/btrfs-csi/pkg/cluster/clustertest"
	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
)

// TestVolumeIsKept: a volume is kept by each PersistentVolume with its handle, of any name, that is
// not deleted with it.
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
		l := clustertest.New(t, clustertest.NewNode())
		released := clustertest.Volume("pvc-1", l.Cluster.Driver)
		released.Status.Phase, released.Spec.PersistentVolumeReclaimPolicy = corev1.VolumeReleased, corev1.PersistentVolumeReclaimDelete
		other := clustertest.Volume("pvc-1", l.Cluster.Driver)
		other.Name, other.Status.Phase, other.Spec.PersistentVolumeReclaimPolicy = "db-data", c.phase, c.policy
		foreign := clustertest.Volume("pvc-1", "other.example.org")
		foreign.Name = "foreign"
		for _, v := range []*corev1.PersistentVolume{released, other, foreign} {
			l.API.Put(clustertest.PersistentVolumes, v)
		}
		l.See()
		names, err := client.KeptBy(l.Cluster, t.Context(), meta.Volume("pvc-1"))
		l.No(err)
		if kept := slices.Equal(names, []string{"db-data"}); kept != c.kept || !kept && len(names) > 0 {
			t.Errorf("%s with the policy %s: kept by %q, want it kept: %v", c.phase, c.policy, names, c.kept)
		}
	}
}

// TestVolumesOfAreInOrder: the first PersistentVolume of a handle is the same each time. Its
// name is published, which would be written without end.
func TestVolumesOfAreInOrder(t *testing.T) {
	l := clustertest.New(t, clustertest.NewNode())
	for _, name := range []string{"b", "a", "c"} {
		v := clustertest.Volume("pvc-1", l.Cluster.Driver)
		v.Name = name
		l.API.Put(clustertest.PersistentVolumes, v)
	}
	l.See()
	for range 30 {
		for i, v := range l.Cluster.VolumesOf("pvc-1") {
			if want := string(rune('a' + i)); v.Name != want {
				t.Fatalf("number %d is %q, wanted %q", i, v.Name, want)
			}
		}
	}
}

// TestKeptAsOfNow: KeptBy asks the API server, because the cache may be behind.
func TestKeptAsOfNow(t *testing.T) {
	l := clustertest.New(t, clustertest.NewNode())
	bound := clustertest.Volume("pvc-1", l.Cluster.Driver)
	bound.Status.Phase, bound.Spec.PersistentVolumeReclaimPolicy = corev1.VolumeBound, corev1.PersistentVolumeReclaimDelete
	l.API.Put(clustertest.PersistentVolumes, bound)
	l.See()
	released := bound.DeepCopy()
	released.Status.Phase = corev1.VolumeReleased
	l.API.Put(clustertest.PersistentVolumes, released)
	if names, err := client.KeptBy(l.Cluster, t.Context(), meta.Volume("pvc-1")); err != nil || len(names) > 0 {
		t.Errorf("released meanwhile: kept by %q, %v", names, err)
	}
	l.API.Delete(clustertest.PersistentVolumes, "pvc-1")
	if names, err := client.KeptBy(l.Cluster, t.Context(), meta.Volume("pvc-1")); err != nil || len(names) > 0 {
		t.Errorf("deleted meanwhile: kept by %q, %v", names, err)
	}
	l.API.Refuse(clustertest.PersistentVolumes, true)
	if _, err := client.KeptBy(l.Cluster, t.Context(), meta.Volume("pvc-1")); err == nil {
		t.Error("nobody can say whether it is kept, and it is not")
	}
}

// TestSnapshotIsKept: a snapshot is kept by each VolumeSnapshotContent with its handle that is not
// deleted with it.
func TestSnapshotIsKept(t *testing.T) {
	for name, c := range map[string]struct {
		deleted bool
		policy  snapshotv1.DeletionPolicy
		group   string
		kept    bool
	}{
		"deleted":               {true, snapshotv1.VolumeSnapshotContentDelete, "", false},
		"deleted, but retained": {true, snapshotv1.VolumeSnapshotContentRetain, "", true},
		"in use":                {false, snapshotv1.VolumeSnapshotContentDelete, "", true},
		"member of a group":     {false, snapshotv1.VolumeSnapshotContentDelete, "group", false}, // it goes after the group
	} {
		l := clustertest.New(t, clustertest.NewNode())
		content := clustertest.Content("snapshot-1", l.Cluster.Driver)
		content.Spec.DeletionPolicy = c.policy
		if c.group != "" {
			content.Annotations = map[string]string{client.AnnotationGroupHandle: c.group}
		}
		if c.deleted {
			content.DeletionTimestamp = &metav1.Time{Time: time.Now()}
		}
		l.API.Put(clustertest.Contents, content)
		l.See()
		names, err := client.KeptBy(l.Cluster, t.Context(), meta.Snapshot("snapshot-1"))
		l.No(err)
		if kept := len(names) == 1; kept != c.kept {
			t.Errorf("%s: kept by %q, want it kept: %v", name, names, c.kept)
		}
	}
}
