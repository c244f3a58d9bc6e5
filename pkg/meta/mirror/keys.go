package mirror

import (
	"crypto/sha256"
	"encoding/hex"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
)

const prefix = "btrfs-csi.github.io/"

// The lineage: annotations of a Subvolume, and of the PersistentVolume or
// VolumeSnapshotContent that stands for the same volume or snapshot. UUIDs and
// IDs are those of btrfs, in the form of `btrfs subvolume show`. None is there
// without a value.
const (
	// Parent is the handle of the volume or snapshot that this was made from.
	Parent = prefix + "parent"
	// UUID of the subvolume.
	UUID = prefix + "uuid"
	// ParentUUID is the UUID of the subvolume that this is a snapshot of, which
	// may be gone.
	ParentUUID = prefix + "parent-uuid"
	// ReceivedUUID is the UUID of the subvolume that was sent, on one received.
	ReceivedUUID = prefix + "received-uuid"
	// SubvolumeID is the number of the subvolume in its pool.
	SubvolumeID = prefix + "subvolume-id"
	// CreatedTransid is the transaction that it was made in, equal for all
	// snapshots that were taken at one instant.
	CreatedTransid = prefix + "created-transid"
)

// More annotations of a Subvolume.
const (
	// Claim is the namespace and name of the PersistentVolumeClaim or
	// VolumeSnapshot that it was made for.
	Claim = prefix + "claim"
	// ExpandRequest is another one for each attempt at a larger size.
	ExpandRequest = prefix + "expand-request"
	// Object is the name of the PersistentVolume or VolumeSnapshotContent that
	// stands for it, or did.
	Object = prefix + "object"
	// OrphanedSince is the time (RFC 3339) when it was first seen that the
	// cluster knows nothing of the volume or snapshot.
	OrphanedSince = prefix + "orphaned-since"
	// CondemnedSince is the time (RFC 3339) from when the grace before it is
	// deleted counts.
	CondemnedSince = prefix + "condemned-since"
)

// TakenFrom is an annotation of a Pool: the node that had the claim when another
// took it, since it was not ready, or somebody had deleted the Pool. It gets it back
// when it has the pool still.
const TakenFrom = prefix + "taken-from"

// Annotations and labels of others.
const (
	// selectedNode is the node that the provisioner makes the volume of a claim on.
	selectedNode = "volume.kubernetes.io/selected-node"
	// managedBy is the node whose snapshotter looks after a VolumeSnapshotContent.
	managedBy = "snapshot.storage.kubernetes.io/managed-by"
)

// lineage returns the annotations of an entry; an empty value is for a key that
// shall not be there.
func lineage(e meta.Entry) map[string]string {
	return map[string]string{
		Parent:         e.Source.ID,
		UUID:           e.UUID,
		ParentUUID:     e.ParentUUID,
		ReceivedUUID:   e.ReceivedUUID,
		SubvolumeID:    number(e.SubvolumeID),
		CreatedTransid: number(e.CreatedTransid),
	}
}

// number returns n, or nothing for the zero that stands for nothing.
func number(n uint64) string {
	if n == 0 {
		return ""
	}
	return strconv.FormatUint(n, 10)
}

// lineageTouched reports whether somebody else's hand has been at the lineage of
// an object, or it was never written.
func lineageTouched(before, now map[string]string) bool {
	for key := range lineage(meta.Entry{}) {
		if before[key] != now[key] {
			return true
		}
	}
	return false
}

// claimOf returns what an entry was made for; empty where the sidecars did not say.
func claimOf(e meta.Entry) string {
	kind := "pvc"
	if e.Kind == meta.Committed {
		kind = "volumesnapshot"
	}
	namespace, name := e.Labels[kind+"/namespace"], e.Labels[kind+"/name"]
	if name == "" {
		return ""
	}
	return namespace + "/" + name
}

const (
	snapshotPrefix = "snapshot-"
	hashedPrefix   = "subvolume-"
)

// ObjectName returns the name of the Subvolume of a volume or snapshot: its
// handle, as it is for all that the sidecars name, else a hash of it. The same
// handle may stand for a volume and a snapshot; they never meet.
func ObjectName(ref meta.Ref) string {
	plain := len(validation.IsDNS1123Subdomain(ref.ID)) == 0 && !strings.HasPrefix(ref.ID, hashedPrefix)
	if plain && strings.HasPrefix(ref.ID, snapshotPrefix) == (ref.Class == meta.Snapshots) {
		return ref.ID
	}
	sum := sha256.Sum256([]byte(string(ref.Class) + "/" + ref.ID))
	return hashedPrefix + hex.EncodeToString(sum[:])
}
