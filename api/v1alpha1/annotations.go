package v1alpha1

const annotationPrefix = "btrfs-csi.github.io/"

// The lineage: annotations of a Subvolume, and of the PersistentVolume or VolumeSnapshotContent of the
// same volume or snapshot. UUIDs and IDs are those of btrfs, in the form of `btrfs subvolume show`. An
// annotation without a value is absent.
const (
	// AnnotationParent is the handle of the source.
	AnnotationParent = annotationPrefix + "parent"
	// AnnotationUUID of the subvolume.
	AnnotationUUID = annotationPrefix + "uuid"
	// AnnotationParentUUID is the UUID of the subvolume that this is a btrfs snapshot of. That
	// subvolume may be gone.
	AnnotationParentUUID = annotationPrefix + "parent-uuid"
	// AnnotationReceivedUUID is, for a received subvolume, the UUID of the one that was sent.
	AnnotationReceivedUUID = annotationPrefix + "received-uuid"
	// AnnotationSubvolumeID is the ID of the subvolume in its filesystem.
	AnnotationSubvolumeID = annotationPrefix + "subvolume-id"
	// AnnotationCreatedTransid is the transaction of its creation. Snapshots with equal ones were taken
	// at one instant.
	AnnotationCreatedTransid = annotationPrefix + "created-transid"
)

// More annotations of a Subvolume.
const (
	// AnnotationRequestedBy is the "namespace/name" of the PersistentVolumeClaim of a volume or of the
	// VolumeSnapshot of a snapshot.
	AnnotationRequestedBy = annotationPrefix + "requested-by"
	// AnnotationExpandRequest identifies a request for a larger size. Each attempt has a new one.
	AnnotationExpandRequest = annotationPrefix + "expand-request"
	// AnnotationObject is the name of its PersistentVolume or VolumeSnapshotContent, which may be gone.
	AnnotationObject = annotationPrefix + "object"
	// AnnotationOrphanedSince is the time (RFC 3339) when it was first found to be an orphan.
	AnnotationOrphanedSince = annotationPrefix + "orphaned-since"
	// AnnotationMarkedForDeletionSince is the time (RFC 3339) when it was marked for deletion, and its
	// time of grace began.
	AnnotationMarkedForDeletionSince = annotationPrefix + "marked-for-deletion-since"
)

// AnnotationTakenFrom of a Pool names the previous owner, if the present one took the Pool over because
// that node was not ready or somebody had deleted the Pool. If the previous owner still has the pool it
// takes it back.
const AnnotationTakenFrom = annotationPrefix + "taken-from"
