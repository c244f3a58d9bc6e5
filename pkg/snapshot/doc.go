// Package snapshot is the engine. It makes, changes and removes the volumes and snapshots of one
// node. It knows the pools and what is in which of them, locks IDs, and keeps the index. Package
// slot does the work in one pool, and documents what a crash leaves. Neither knows anything of CSI.
//
// # Terms
//
//	active     a read-write volume (Prepare)
//	committed  a read-only snapshot of a volume (Commit); unlike in containerd, the volume lives on
//	view       a read-only volume of a snapshot or volume (View)
//	index      a file over all ledgers (package index): a cache, and the memory of pools
//	           that are away
//
// Package pool defines pool, area, slot, record and ledger.
//
// # Concurrency
//
// An operation opens all pools, and looks for its ID in them. The engine leaves out a pool whose
// disk does not answer; see pool.Session.
//
// An operation locks the ID that it makes, changes or removes, and shares the lock of a copy's
// source. A second operation on that ID waits, for keylock.Patience. Queries take no lock:
// they see a slot before or after a step. No lock is held across the I/O of another volume.
// Reconcile skips locked IDs, and looks at a slot again under its lock before it changes the
// slot.
package snapshot
