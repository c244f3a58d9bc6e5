// Package snapshotter gives the engine containerd's snapshots.Snapshotter
// interface.
//
// # Mapping
//
//	containerd           engine
//	Prepare(key, "")     Prepare: an empty active
//	Prepare(key, parent) Prepare: an active made from the committed parent
//	View(key, parent)    View
//	View(key, "")        Prepare: an empty active, which is always mounted read-only
//	Commit(name, key)    Commit, then Remove of the active
//	Remove(key)          Remove
//	Mounts(key)          Mounts, as a bind mount
//	Usage(key)           Usage of an active; see Usage
//	Stat, Walk           Stat, Walk
//	Update               none: the engine does not change a record
//
// # Where data is stored
//
//	name, kind, created   the engine's record: Name, Labels[containerd/kind], Created
//	parent                Labels[containerd/parent], because the source of a committed is
//	                      its active, which is gone
//	labels                Labels[containerd/label/<key>]
//	labels after Update   containerd.db, a bbolt file in the state directory
//	children              memory, built from the records by New
//
// All operations except Update write only through the engine, and are durable by the
// engine's one commit.
//
// # Caveats
//
// The engine and its state directory belong to the Snapshotter. Volumes of another user
// are not listed, and their names cannot be used as keys. All pools must be mounted when
// New is called.
//
// Commit is two operations of the engine. After a crash between them, or a removal that
// fails, both the committed snapshot and the active exist. The Snapshotter removes only
// what a caller asked to remove.
//
// A volume has a size, a snapshot of containerd does not. An active without a parent
// gets the engine's DefaultSize, a child the size of its parent. The label
// containerd.io/snapshot/max-size has no effect, because a child cannot be smaller than
// its parent. With quota none, sizes are not enforced.
//
// The labels and names of a snapshot must fit in a record of the engine
// (meta.MaxRecordSize), else the error is InvalidArgument.
package snapshotter
