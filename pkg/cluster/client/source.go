package client

import (
	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"

	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
)

// The kinds of sources.
const (
	KindSnapshot = "VolumeSnapshot"
	KindClaim    = "PersistentVolumeClaim"
)

// Source is the snapshot or claim, in the namespace of a claim, that the claim copies.
type Source struct{ Kind, Name string }

func (s Source) key(namespace string) string { return s.Kind + "/" + namespace + "/" + s.Name }

// SourceOf returns the source of a claim; false if it has none, or one of a kind that no CSI driver
// copies.
func SourceOf(claim *corev1.PersistentVolumeClaim) (Source, bool) {
	ref := claim.Spec.DataSource
	if ref == nil {
		return Source{}, false
	}
	group := ""
	if ref.APIGroup != nil {
		group = *ref.APIGroup
	}
	switch {
	case ref.Kind == KindSnapshot && group == snapshotv1.GroupName, ref.Kind == KindClaim && group == "":
		return Source{ref.Kind, ref.Name}, true
	}
	return Source{}, false
}

// IsPending reports whether a claim waits for its volume.
func IsPending(claim *corev1.PersistentVolumeClaim) bool {
	return claim.Spec.VolumeName == "" && claim.DeletionTimestamp == nil
}

// sourceKeyOf returns the key of bySource for a pending claim, "" if it has no source.
func sourceKeyOf(claim *corev1.PersistentVolumeClaim) string {
	if s, ok := SourceOf(claim); ok && IsPending(claim) {
		return s.key(claim.Namespace)
	}
	return ""
}

// ClaimsFrom returns the pending claims with a source.
func (c *Cluster) ClaimsFrom(s Source, namespace string) []*corev1.PersistentVolumeClaim {
	return c.Claims.ByIndex(bySource, s.key(namespace))
}

// ClassOf returns the StorageClass of a claim; nil if it is unknown or of another driver.
func (c *Cluster) ClassOf(claim *corev1.PersistentVolumeClaim) *storagev1.StorageClass {
	if claim.Spec.StorageClassName == nil {
		return nil
	}
	class, ok := c.Classes.Get(*claim.Spec.StorageClassName)
	if !ok || class.Provisioner != c.Driver {
		return nil
	}
	return class
}

// Resolve returns the volume or snapshot of a source; false if it is not bound to one of this
// driver.
func (c *Cluster) Resolve(s Source, namespace string) (meta.Ref, bool) {
	if s.Kind == KindSnapshot {
		return c.resolveSnapshot(namespace + "/" + s.Name)
	}
	claim, ok := c.Claims.Get(namespace + "/" + s.Name)
	if !ok {
		return meta.Ref{}, false
	}
	v, ok := c.PersistentVolumes.Get(claim.Spec.VolumeName)
	if !ok {
		return meta.Ref{}, false
	}
	handle := c.VolumeHandle(v)
	return meta.Volume(handle), handle != ""
}

func (c *Cluster) resolveSnapshot(key string) (meta.Ref, bool) {
	snapshot, ok := c.Snapshots.Get(key)
	if !ok || snapshot.Status == nil || snapshot.Status.BoundVolumeSnapshotContentName == nil {
		return meta.Ref{}, false
	}
	content, ok := c.Contents.Get(*snapshot.Status.BoundVolumeSnapshotContentName)
	if !ok {
		return meta.Ref{}, false
	}
	handle := c.SnapshotHandle(content)
	return meta.Snapshot(handle), handle != ""
}
