// Package snapshotter gives the engine containerd's snapshots.Snapshotter
// interface.
//
// # Mapping
//
//	containerd           engine
//	Prepare(key, "")     Prepare: an empty active
//	Prepare(key, parent) Prepare: an active made from the committed parent
//	View(key, parent)    View
//	View(key, "")        Prepare: an empty active, which is only ever mounted read-only
//	Commit(name, key)    Commit, then Remove of the active
//	Remove(key)          Remove
//	Mounts(key)          Mounts, as a bind mount
//	Usage(key)           Usage of an active; see Usage
//	Stat, Walk           Stat, Walk
//	Update               none: the engine does not change what it has recorded
//
// # Where things are kept
//
//	name, kind, created   the engine's record: Name, Labels[containerd/kind], Created
//	parent                Labels[containerd/parent]: the source of a committed is its
//	                      active, which is gone
//	labels                Labels[containerd/label/<key>]
//	labels after Update   containerd.db, a bbolt file in the state directory
//	who has children      memory, made from the records by New
//
// All operations but Update write through the engine alone: what is durable when
// they return is so by the engine's one commit.
//
// # Caveats
//
// The engine and its state directory belong to the Snapshotter; what others make
// in it is not shown, and its key is taken. All pools have to be there when New
// is called.
//
// Commit is two operations of the engine. A crash in between, or a removal that
// fails, leaves the committed snapshot and the active, as they were; nothing is
// removed that nobody asked to remove.
//
// A volume has a size, a snapshot of containerd has none: an active without a
// parent gets the engine's DefaultSize, a child its parent's. The label
// containerd.io/snapshot/max-size is not honoured, because a child cannot be
// smaller than its parent. Under quota none sizes are void.
//
// Labels and names of one snapshot have to fit in a record of the engine
// (meta.MaxRecordSize); more is InvalidArgument.
package snapshotter
