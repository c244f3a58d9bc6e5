package v1alpha1

const annotationPrefix = "btrfs-csi.github.io/"

// The lineage: annotations of a Subvolume, and of the PersistentVolume or
// VolumeSnapshotContent that stands for the same volume or snapshot. UUIDs and
// IDs are those of btrfs, in the form of `btrfs subvolume show`. None is there
// without a value.
const (
	// AnnotationParent is the handle of the volume or snapshot that this was made from.
	AnnotationParent = annotationPrefix + "parent"
	// AnnotationUUID of the subvolume.
	AnnotationUUID = annotationPrefix + "uuid"
	// AnnotationParentUUID is the UUID of the subvolume that this is a snapshot of, which
	// may be gone.
	AnnotationParentUUID = annotationPrefix + "parent-uuid"
	// AnnotationReceivedUUID is the UUID of the subvolume that was sent, on one received.
	AnnotationReceivedUUID = annotationPrefix + "received-uuid"
	// AnnotationSubvolumeID is the number of the subvolume in its pool.
	AnnotationSubvolumeID = annotationPrefix + "subvolume-id"
	// AnnotationCreatedTransid is the transaction that it was made in, equal for all
	// snapshots that were taken at one instant.
	AnnotationCreatedTransid = annotationPrefix + "created-transid"
)

// More annotations of a Subvolume.
const (
	// AnnotationRequestedBy is the namespace and name of the PersistentVolumeClaim or
	// VolumeSnapshot that it was made for.
	AnnotationRequestedBy = annotationPrefix + "requested-by"
	// AnnotationExpandRequest is another one for each attempt at a larger size.
	AnnotationExpandRequest = annotationPrefix + "expand-request"
	// AnnotationObject is the name of the PersistentVolume or VolumeSnapshotContent that
	// stands for it, or did.
	AnnotationObject = annotationPrefix + "object"
	// AnnotationOrphanedSince is the time (RFC 3339) when it was first seen that the
	// cluster knows nothing of the volume or snapshot.
	AnnotationOrphanedSince = annotationPrefix + "orphaned-since"
	// AnnotationMarkedForDeletionSince is the time (RFC 3339) when it was marked for deletion. Its
	// time of grace begins then.
	AnnotationMarkedForDeletionSince = annotationPrefix + "marked-for-deletion-since"
)

// AnnotationTakenFrom is an annotation of a Pool: the node that owned it when another one
// took it over, since that was not ready, or somebody had deleted the Pool. It gets the pool
// back if it still has it.
const AnnotationTakenFrom = annotationPrefix + "taken-from"
