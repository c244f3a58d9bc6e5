package client

import (
	"context"
	"errors"

	groupv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumegroupsnapshot/v1"
	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
)

// VolumesOf returns the PersistentVolumes with a handle. There may be several.
func (c *Cluster) VolumesOf(handle string) []*corev1.PersistentVolume {
	return c.PersistentVolumes.ByIndex(byHandle, handle)
}

// ContentsOf returns the VolumeSnapshotContents with a handle.
func (c *Cluster) ContentsOf(handle string) []*snapshotv1.VolumeSnapshotContent {
	return c.Contents.ByIndex(byHandle, handle)
}

// GroupContentsOf returns the VolumeGroupSnapshotContents with a handle.
func (c *Cluster) GroupContentsOf(handle string) []*groupv1.VolumeGroupSnapshotContent {
	return c.GroupContents.ByIndex(byHandle, handle)
}

// ErrNotSynced means that the caches are not filled yet.
var ErrNotSynced = errors.New("the cluster has not been read yet")

// KeptBy returns the names of the PersistentVolumes or VolumeSnapshotContents that still need a
// volume or snapshot. The sidecar that asks for the deletion looks only at its own object, and
// others may have the same handle.
func (c *Cluster) KeptBy(ctx context.Context, ref meta.Ref) ([]string, error) {
	if !c.PersistentVolumes.HasSynced() || ref.Class == meta.Snapshots && !c.SnapshotsSynced.Load() {
		return nil, ErrNotSynced
	}
	return c.keptBy(ctx, ref)
}

func (c *Cluster) keptBy(ctx context.Context, ref meta.Ref) (names []string, err error) {
	if ref.Class == meta.Snapshots {
		for _, content := range c.ContentsOf(ref.ID) {
			names, err = keeps(ctx, names, content, goesWithSnapshot, c.API.Contents().Get)
			if err != nil {
				return nil, err
			}
		}
		return names, nil
	}
	for _, v := range c.VolumesOf(ref.ID) {
		names, err = keeps(ctx, names, v, goesWithVolume, c.API.PersistentVolumes().Get)
		if err != nil {
			return nil, err
		}
	}
	return names, nil
}

// keeps adds the name of an object that still needs the volume. The cache may be behind, so keeps
// asks the API server before it adds one.
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

// goesWithVolume reports whether a PersistentVolume is deleted with its volume.
func goesWithVolume(v *corev1.PersistentVolume) bool {
	return (v.Status.Phase == corev1.VolumeReleased || v.Status.Phase == corev1.VolumeFailed) &&
		v.Spec.PersistentVolumeReclaimPolicy == corev1.PersistentVolumeReclaimDelete
}

// goesWithSnapshot reports whether a VolumeSnapshotContent is deleted with its snapshot. That of a
// member of a group is deleted after the group, which alone deletes the snapshot.
func goesWithSnapshot(content *snapshotv1.VolumeSnapshotContent) bool {
	return content.Annotations[AnnotationGroupHandle] != "" || content.DeletionTimestamp != nil && content.Spec.DeletionPolicy == snapshotv1.VolumeSnapshotContentDelete
}
