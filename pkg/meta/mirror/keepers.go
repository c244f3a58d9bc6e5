package mirror

import (
	"context"
	"errors"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
)

// KeptBy returns the PersistentVolumes or VolumeSnapshotContents that stand for a
// volume or snapshot and do not go with it. Who asks for the deletion has seen one
// that does, and knows of no other: two of them can have one handle.
func (m *Mirror) KeptBy(ctx context.Context, ref meta.Ref) ([]string, error) {
	if !m.volumes.HasSynced() || ref.Class == meta.Snapshots && !m.contents.served.Load() {
		return nil, errors.New("what the cluster knows has not been read yet")
	}
	return m.keptBy(ctx, ref)
}

func (m *Mirror) keptBy(ctx context.Context, ref meta.Ref) (names []string, err error) {
	if ref.Class == meta.Snapshots {
		for _, content := range m.contents.ofHandle(ref.ID) {
			names, err = keeps(ctx, names, content, goesToo, m.clients.contents().Get)
			if err != nil {
				return nil, err
			}
		}
		return names, nil
	}
	for _, v := range m.volumesOf(ref.ID) {
		names, err = keeps(ctx, names, v, isReleased, m.clients.volumes().Get)
		if err != nil {
			return nil, err
		}
	}
	return names, nil
}

// keeps adds the name of an object that does not go. The cache may lag behind who
// asks for the deletion, so the API server has the last word on one that stays.
func keeps[O metav1.Object](ctx context.Context, names []string, o O, goes func(O) bool, get func(context.Context, string, metav1.GetOptions) (O, error)) ([]string, error) {
	if goes(o) {
		return names, nil
	}
	now, err := get(ctx, o.GetName(), metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return names, nil
	case err != nil:
		return nil, err
	case goes(now):
		return names, nil
	}
	return append(names, o.GetName()), nil
}

// isReleased reports whether a PersistentVolume is deleted with its volume.
func isReleased(v *corev1.PersistentVolume) bool {
	return (v.Status.Phase == corev1.VolumeReleased || v.Status.Phase == corev1.VolumeFailed) &&
		v.Spec.PersistentVolumeReclaimPolicy == corev1.PersistentVolumeReclaimDelete
}

// goesToo reports whether a VolumeSnapshotContent is deleted with its snapshot.
func goesToo(content *snapshotv1.VolumeSnapshotContent) bool {
	return content.DeletionTimestamp != nil && content.Spec.DeletionPolicy == snapshotv1.VolumeSnapshotContentDelete
}
