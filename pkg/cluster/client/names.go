package client

import (
	"crypto/sha256"
	"encoding/hex"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/btrfs-csi/btrfs-csi/api/v1alpha1"
	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
)

const (
	// AnnotationSelectedNode of a claim names the node whose csi-provisioner creates the volume.
	AnnotationSelectedNode = "volume.kubernetes.io/selected-node"
	// LabelManagedBy of a VolumeSnapshotContent names the node whose csi-snapshotter handles it.
	LabelManagedBy = "snapshot.storage.kubernetes.io/managed-by"
	// AnnotationGroupHandle of a VolumeSnapshotContent is the handle of the group that it was made
	// for. The snapshot-controller writes it.
	AnnotationGroupHandle = "groupsnapshot.storage.k8s.io/volumeGroupSnapshotHandle"
	// AnnotationGroupBeingDeleted of a VolumeGroupSnapshotContent means that its VolumeGroupSnapshot
	// is being deleted.
	AnnotationGroupBeingDeleted = "groupsnapshot.storage.kubernetes.io/volumegroupsnapshot-being-deleted"
	// FinalizerGroup keeps a VolumeGroupSnapshotContent until its group is deleted.
	FinalizerGroup = "groupsnapshot.storage.kubernetes.io/volumegroupsnapshotcontent-bound-protection"

	// groupPrefix and the UID of a VolumeGroupSnapshot are the name of its group, as csi-snapshotter
	// has it.
	groupPrefix = "groupsnapshot-"
)

// RefOf returns the volume or snapshot of a Subvolume.
func RefOf(s *v1alpha1.Subvolume) meta.Ref {
	if s.Spec.Kind == meta.Committed.String() {
		return meta.Snapshot(s.Spec.ID)
	}
	return meta.Volume(s.Spec.ID)
}

const (
	snapshotPrefix = "snapshot-"
	hashedPrefix   = "subvolume-"
)

// SubvolumeName returns the name of the Subvolume of a volume or snapshot. It is the handle if the
// sidecars chose it, else a hash, so that a volume and a snapshot of one handle have different
// names.
func SubvolumeName(ref meta.Ref) string {
	plain := len(validation.IsDNS1123Subdomain(ref.ID)) == 0 && !strings.HasPrefix(ref.ID, hashedPrefix)
	if plain && strings.HasPrefix(ref.ID, snapshotPrefix) == (ref.Class == meta.Snapshots) {
		return ref.ID
	}
	sum := sha256.Sum256([]byte(string(ref.Class) + "/" + ref.ID))
	return hashedPrefix + hex.EncodeToString(sum[:])
}
