package main

import (
	"context"
	"fmt"
)

// The operations. Each works on one item: item i has a volume, a snapshot of it,
// a clone of the volume, a volume restored from the snapshot, and a view of it.
const (
	opCreate         = "create"          // the volume
	opSnapshot       = "snapshot"        // of the volume
	opClone          = "clone"           // of the volume
	opRestore        = "restore"         // of the snapshot, read-write
	opView           = "view"            // of the snapshot, read-only
	opDelete         = "delete"          // the clone
	opDeleteSnapshot = "delete snapshot" // the snapshot
	opExpand         = "expand"          // the volume, by a MiB each time
	opStats          = "stats"           // of one volume, whatever the item
	opList           = "list"            // all volumes, whatever the item
	opMounts         = "mounts"          // returns what to mount for the volume

	opSnapshotAgain = "snapshot again" // of volume 0, whatever the item

	// What is not timed.
	opExisting = "existing" // makes a volume that is only there
	opPublish  = "publish"  // item 0 only: mounts the volume that opStats asks for
	opTidy     = "tidy"     // takes away what was made from the snapshot
	opClear    = "clear"    // takes away all that the item has
)

// preparations are what has to be done, untimed, before an operation.
var preparations = map[string]string{opStats: opPublish, opDeleteSnapshot: opTidy}

func existingName(i int) string { return fmt.Sprintf("existing-%d", i) }
func volumeName(i int) string   { return fmt.Sprintf("volume-%d", i) }
func snapshotName(i int) string { return fmt.Sprintf("snapshot-%d", i) }
func cloneName(i int) string    { return fmt.Sprintf("clone-%d", i) }
func restoredName(i int) string { return fmt.Sprintf("restored-%d", i) }
func viewName(i int) string     { return fmt.Sprintf("view-%d", i) }

// copyNames are what item i may have that was made from its snapshot.
func copyNames(i int) []string { return []string{viewName(i), restoredName(i), cloneName(i)} }

// volumeSize is that of every volume, in bytes. What is measured does not depend on
// it, but under simple quota a volume is charged for all that its snapshots hold.
const volumeSize = 8 << 30

// operation works on item i. Many items are worked on at the same time.
type operation func(ctx context.Context, i int) error

// side is one of those who are compared: it makes, changes and removes volumes
// and snapshots on the filesystem of a rig.
type side interface {
	// operations returns what the side can do, by name.
	operations() map[string]operation
	close() error
}

// opener opens a side on a rig that it has for itself.
type opener func(ctx context.Context, r *rig) (side, error)

// The sides, by name.
const (
	sideDriver      = "btrfs-csi"
	sideEngine      = "engine"
	sideContainerd  = "containerd"
	sideAdapter     = "engine as a snapshotter"
	sideRawSeparate = "raw, separate directories"
	sideRawFlat     = "raw, one directory"
	sideCopy        = "cp --reflink=never"
	sideLibrary     = "containerd/btrfs SubvolDelete"
)

// sides returns who can be compared. The driver is that of a binary.
func sides(binary string) map[string]opener {
	return map[string]opener{
		sideDriver:      openDriver(binary),
		sideEngine:      openEngine,
		sideContainerd:  openContainerd,
		sideAdapter:     openAdapter,
		sideRawSeparate: openRaw(true),
		sideRawFlat:     openRaw(false),
	}
}

// filler returns who makes the volumes that are to exist before name is opened.
func filler(name string) string {
	if name == sideDriver {
		return sideEngine // the same on disk, and sooner there
	}
	return name
}
