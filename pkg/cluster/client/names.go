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
	// AnnotationSelectedNode is the annotation of a claim that names the node on which the
	// provisioner makes its volume.
	AnnotationSelectedNode = "volume.kubernetes.io/selected-node"
	// LabelManagedBy is the label of a VolumeSnapshotContent that names the node whose
	// snapshotter looks after it.
	LabelManagedBy = "snapshot.storage.kubernetes.io/managed-by"
)

// RefOf returns the volume or snapshot that a Subvolume stands for.
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

// SubvolumeName returns the name of the Subvolume of a volume or snapshot: its
// handle, as it is for all that the sidecars name, else a hash of it. A volume and a
// snapshot of one handle have different names.
func SubvolumeName(ref meta.Ref) string {
	plain := len(validation.IsDNS1123Subdomain(ref.ID)) == 0 && !strings.HasPrefix(ref.ID, hashedPrefix)
	if plain && strings.HasPrefix(ref.ID, snapshotPrefix) == (ref.Class == meta.Snapshots) {
		return ref.ID
	}
	sum := sha256.Sum256([]byte(string(ref.Class) + "/" + ref.ID))
	return hashedPrefix + hex.EncodeToString(sum[:])
}
