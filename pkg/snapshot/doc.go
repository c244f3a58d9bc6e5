// Package snapshot is the engine: it makes, changes and removes the volumes and
// snapshots of one node so that a crash at any moment leaves each of them whole
// or absent. It knows nothing of CSI.
//
// # Terms
//
//	active     a read-write volume (Prepare)
//	committed  a snapshot of a volume, read-only (Commit)
//	view       a read-only volume of a snapshot (View)
//	index      a file over all ledgers (package index); a cache, and the memory of
//	           pools that are away
//
// Package pool has the terms of a pool and its layout: area, slot, ledger.
//
// # What a crash leaves
//
// A record is written twice: as creating before the subvolume is made, as ready
// when all of it is there. So a record without a subvolume shows by itself
// whether there never was one or it is lost.
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
//	remove, full  2, 3, 4, 5, fsync of the areas     the fsyncs: without metadata for 1
//	undo          record: creating, 2, 3, 4, 5       the fsync
//
// A volume is of a class that has properties: compression, or no copy on write.
//
//	found at the next start                   reconcile
//	slot without record or subvolume          rmdir
//	record creating, no subvolume             rmdir
//	record creating, subvolume                goes on at step 4, and syncs; a copy that
//	                                          lacks what its source nests is undone
//	record ready, subvolume, another limit    sets the limit of the record
//	record ready, no subvolume                reports it as lost, and where its data is
//	                                          if the filesystem was rolled back; keeps it
//	anything in removing with a record        goes on at step 2
//	subvolume without a record                reports it as foreign, keeps it
//	anything beside a subvolume               reports it as foreign, keeps it, and does
//	                                          not remove the slot
//	record damaged or of a newer version      reports it, keeps it
//
// # What a power cut leaves
//
// It goes back to the last commit, which takes in whole transactions, in order: one of the
// states above. On top of that comes what an fsync wrote to a log since. Anybody may commit
// between two steps: another operation, the kernel every 30 s, an administrator. An fsync is
// a commit only in the transaction in which a subvolume was made or destroyed in what is
// synced; in a later one it writes the log of that inode, and nothing of another tree. So
// each pair of facts that lie in two trees has an order, or one of them follows from the
// other:
//
//	one fact, its tree            the other, its tree        what holds them together
//	record ready, the pool's      subvolume, roots           the fsync is a commit in the transaction that
//	                                                         made it, and needs to be none later
//	record ready, the pool's      properties, subvolume's    fsync of the root before the record is written
//	answer to a request of a      record ready, the pool's   fsync of the slot before it: what is creating
//	class                                                    was never handed out, and may be set again
//	record ready, the pool's      mode, the subvolume's      made with it: the umask
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
// A request made again finds the slot by its name and compares it with its
// record. It syncs before it answers, because the process that made the slot may
// have died just before it did.
//
// # Concurrency
//
// A pool whose disk does not answer is left out: see pool.Pool.
//
// Nobody waits. What is made, changed or removed is locked by its ID, the source
// of a copy shared; a second operation gets ErrBusy. Queries lock nothing: they
// see a slot before or after a step. No lock is held across the I/O of another
// volume. Reconcile passes over what is locked and looks at a slot again with its
// lock held before it touches it.
package snapshot
