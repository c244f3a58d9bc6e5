package client

import (
	"context"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
)

// Locate returns the node that serves a volume or snapshot, and its pool. Both are empty if the
// cluster does not know it.
func (c *Cluster) Locate(ctx context.Context, ref meta.Ref) (node, poolID string, err error) {
	if !c.PersistentVolumes.HasSynced() {
		return "", "", ErrNotSynced
	}
	s, err := c.API.Subvolumes().Get(ctx, SubvolumeName(ref), metav1.GetOptions{})
	switch {
	case err == nil:
		node, err = c.ownerOf(ctx, s.Spec.PoolID, s.Spec.NodeName)
		return node, s.Spec.PoolID, err
	case !apierrors.IsNotFound(err):
		return "", "", err
	}
	// The Subvolume is published some time after the volume was created. Until then the
	// PersistentVolume or VolumeSnapshotContent names the pool.
	if ref.Class == meta.Snapshots {
		for _, content := range c.ContentsOf(ref.ID) {
			return content.Labels[LabelManagedBy], "", nil
		}
		return "", "", nil
	}
	for _, v := range c.VolumesOf(ref.ID) {
		poolID = c.PoolID(v)
		node, err = c.ownerOf(ctx, poolID, "")
		return node, poolID, err
	}
	return "", "", nil
}

// ownerOf returns the node that owns a pool; if none does, the last owner.
func (c *Cluster) ownerOf(ctx context.Context, poolID, last string) (string, error) {
	if poolID == "" {
		return last, nil
	}
	pool, err := c.API.Pools().Get(ctx, poolID, metav1.GetOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return "", err
	}
	if err == nil && pool.Spec.NodeName != "" {
		return pool.Spec.NodeName, nil
	}
	return last, nil
}
