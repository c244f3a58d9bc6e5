package main

import (
	"context"
	"fmt"
)

// The operations. Each uses one item. Item i has a volume, a snapshot of it, a clone of the volume, a
// restore of the snapshot, and a view of it.
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
	opMounts         = "mounts"          // returns the mounts of the volume

	opSnapshotAgain = "snapshot again" // of volume 0, whatever the item

	// These are not timed.
	opExisting = "existing" // creates an existing volume
	opPublish  = "publish"  // item 0 only: mounts the volume that opStats asks for
	opTidy     = "tidy"     // removes the copies of the snapshot
	opClear    = "clear"    // removes all that the item has
)

// preparations are the untimed operations that must precede an operation.
var preparations = map[string]string{opStats: opPublish, opDeleteSnapshot: opTidy}

func existingName(i int) string { return fmt.Sprintf("existing-%d", i) }
func volumeName(i int) string   { return fmt.Sprintf("volume-%d", i) }
func snapshotName(i int) string { return fmt.Sprintf("snapshot-%d", i) }
func cloneName(i int) string    { return fmt.Sprintf("clone-%d", i) }
func restoredName(i int) string { return fmt.Sprintf("restored-%d", i) }
func viewName(i int) string     { return fmt.Sprintf("view-%d", i) }

// copyNames returns the names of the copies that item i may have.
func copyNames(i int) []string { return []string{viewName(i), restoredName(i), cloneName(i)} }

// volumeSize is the size of each volume, in bytes. The results do not depend on it. Under simple quota
// it must suffice for the data of all snapshots of the volume.
const volumeSize = 8 << 30

// operation runs on item i. It may run on many items concurrently.
type operation func(ctx context.Context, i int) error

// side is one of those that are compared. It creates, changes and removes volumes and snapshots on the
// filesystem of a rig.
type side interface {
	// operations returns the operations of the side, by name.
	operations() map[string]operation
	close() error
}

// opener opens a side on a rig that no other side uses.
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

// sides returns all sides. binary is the driver.
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

// filler returns the side that creates the existing volumes for a side.
func filler(name string) string {
	if name == sideDriver {
		return sideEngine // the result is the same as of the driver, and faster
	}
	return name
}
