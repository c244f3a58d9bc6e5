package clustertest

import (
	"time"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/btrfs-csi/btrfs-csi/api/v1alpha1"
	"github.com/btrfs-csi/btrfs-csi/pkg/cluster/client"
	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
)

// Entry returns an entry that was created a day ago in the pool "pool-1".
func Entry(ref meta.Ref) meta.Entry {
	kind := meta.Active
	if ref.Class == meta.Snapshots {
		kind = meta.Committed
	}
	return meta.Entry{
		Record: meta.Record{ID: ref.ID, Kind: kind, Size: 1 << 30, Created: time.Now().Add(-24 * time.Hour)},
		Pool:   "default", PoolID: "pool-1",
	}
}

// Subvolume returns the Subvolume of an entry on "node-1", with annotations.
func Subvolume(e meta.Entry, annotations map[string]string) *v1alpha1.Subvolume {
	return &v1alpha1.Subvolume{
		ObjectMeta: metav1.ObjectMeta{Name: client.SubvolumeName(e.Ref()), Annotations: annotations},
		Spec:       v1alpha1.SubvolumeSpec{ID: e.ID, Kind: e.Kind.String(), NodeName: "node-1", Pool: e.Pool, PoolID: e.PoolID},
	}
}

// Volume returns the PersistentVolume of a handle.
func Volume(handle, driver string) *corev1.PersistentVolume {
	return &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: handle},
		Spec: corev1.PersistentVolumeSpec{PersistentVolumeSource: corev1.PersistentVolumeSource{
			CSI: &corev1.CSIPersistentVolumeSource{Driver: driver, VolumeHandle: handle},
		}},
	}
}

// Content returns the VolumeSnapshotContent of a handle.
func Content(handle, driver string) *snapshotv1.VolumeSnapshotContent {
	return &snapshotv1.VolumeSnapshotContent{
		ObjectMeta: metav1.ObjectMeta{Name: handle},
		Spec:       snapshotv1.VolumeSnapshotContentSpec{Driver: driver},
		Status:     &snapshotv1.VolumeSnapshotContentStatus{SnapshotHandle: &handle},
	}
}

// ReadyNode returns a Node.
func ReadyNode(name string) *corev1.Node {
	return &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Status:     corev1.NodeStatus{Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}}},
	}
}
