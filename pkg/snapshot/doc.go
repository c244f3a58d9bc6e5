// Package snapshot is the engine. It makes, changes and removes the volumes and snapshots of one
// node, so that a crash at any moment leaves each of them whole or absent. It knows nothing of
// CSI.
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
// # What a crash leaves
//
// A record is written twice: as creating before the subvolume is made, as ready when the volume
// is complete. So a record without a subvolume shows whether the subvolume was never made, or is
// lost.
//
//	operation     steps                              durable by
//	create        1 mkdir the slot                   7
//	              2 record: creating
//	              3 make the subvolume
//	              4 properties
//	              5 limit
//	              6 record: ready
//	              7 fsync of the slot
//	  of a class  1 to 5, fsync of the root, 6, 7    both fsyncs
//	clone         1, 2, snapshot, 5, 6               the snapshot
//	  of a class  1, 2, snapshot, 4, 5,
//	              fsync of the root, 6, 7            the snapshot, both fsyncs
//	commit, view  1, 2, snapshot, 6                  the snapshot
//	resize        5, record with the size, fsync     the fsync
//	remove        1 rename the slot to removing      4
//	              2 lift the limit
//	              3 destroy the subvolume
//	              4 fsync of the slot
//	              5 rmdir
//	remove, lost  1, 4, 5                            the fsync
//	remove, full  2, 3, 4, 5, fsync of the areas     the fsyncs; metadata has no room for 1
//	undo          record: creating, 2, 3, 4, 5       the fsync
//
// "Of a class" means with properties: compression, or no copy on write.
//
//	found at the next start                   reconcile
//	slot without record or subvolume          rmdir
//	record creating, no subvolume             rmdir
//	record creating, subvolume                continues at step 4, and syncs; undoes a copy that
//	                                          lacks nested subvolumes of its source
//	record ready, subvolume, another limit    sets the limit of the record
//	record ready, no subvolume                reports it as lost, and where its data is
//	                                          if the filesystem was rolled back; keeps it
//	anything in removing with a record        continues at step 2
//	subvolume without a record                reports it as foreign, keeps it
//	anything beside a subvolume               reports it as foreign, keeps it, and does
//	                                          not remove the slot
//	record damaged or of a newer version      reports it, keeps it
//
// # What a power cut leaves
//
// A power cut goes back to the last commit. Commits contain whole transactions, in order, so the
// result is one of the states above. The log then adds what an fsync has written since. Anyone
// may commit between two steps: another operation, the kernel every 30 s, an administrator. An
// fsync is a commit only in the transaction in which a subvolume was made or destroyed in the
// synced directory. In a later transaction it writes the log of that inode, and nothing of
// another tree. So two facts in two trees have a fixed order, or one follows from the other:
//
//	one fact, its tree            the other, its tree        what keeps them consistent
//	record ready, the pool's      subvolume, roots           the fsync is a commit in the transaction that
//	                                                         made it, and need not be one later
//	record ready, the pool's      properties, subvolume's    fsync of the root before the record is written
//	answer to a request of a      record ready, the pool's   fsync of the slot before the answer; a volume in
//	class                                                    creating was never returned, and may be set again
//	record ready, the pool's      mode, the subvolume's      made with it, by the umask
//	record, the pool's            limit, quota               set again from the record at the start
//	record ready of a snapshot    subvolume, roots           written again: it is creating at worst
//	slot in removing, the pool's  no subvolume, roots        the rename is before, and in a commit with it
//	slot gone from its area       no subvolume, roots        its fsync is before the rmdir; fsync of the areas
//	undo: record creating         no subvolume, roots        creating is before, and in a commit with it
//	no subvolume, roots           its groups, quota          StaleQuota finds them
//	pool.json, areas              volumes, roots             fsync before the pool is used, again at each start
//	known/<ID>, state directory   pool.json, the pool's      fsync after that of pool.json, again at each start
//	index, state directory        seal, beside it            the seal of an index in use is synced first
//
// A repeated request finds the slot by its name and compares itself with the record. It syncs
// before it answers, because the process that made the slot may have died just before its fsync.
//
// # Concurrency
//
// The engine leaves out a pool whose disk does not answer; see pool.Pool.
//
// No operation waits for another. An operation locks the ID that it makes, changes or removes,
// and shares the lock of a copy's source. A second operation gets ErrBusy. Queries take no lock:
// they see a slot before or after a step. No lock is held across the I/O of another volume.
// Reconcile skips locked IDs, and looks at a slot again under its lock before it changes the
// slot.
package snapshot
