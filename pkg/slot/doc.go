// Package slot makes, reads, repairs and removes the volumes and snapshots of one pool, each in its
// slot, so that a crash at any moment leaves each of them whole or absent. Package snapshot decides
// in which pool, and locks their IDs.
//
// Pool is a pool in use. An operation opens it, which gives a Session, and works on Slots that the
// session has read. Package pool defines pool, area, slot, record and ledger.
//
// # Files
//
//	slot.go               reads slots, and determines their state
//	make.go, complete.go  Make, and the steps that are repeated after a crash
//	copy.go               what may be copied, and whether a copy is whole
//	group.go              MakeGroup, and whether a group is whole
//	recover.go            a repeated request; a new size
//	remove.go, erase.go   Remove, and the undo of Make
//	limit.go, nested.go   the limit of a volume, and of what pods nest in it
//	bound.go, sweep.go    what a driver does all the time
//	plan.go, faults.go    what a reconcile would do
//	item.go, condition.go what people see
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
//	  of a disk   1 to 4, disk file, 5, fsync of
//	              the root and the file, 6, commit   the commit
//	clone         1, 2, snapshot, 5, 6               the snapshot
//	  of a class  1, 2, snapshot, 4, 5,
//	              fsync of the root, 6, 7            the snapshot, both fsyncs
//	  of a disk   1, 2, freeze the source,
//	              snapshot, thaw, 4, grow the disk
//	              file, 5, fsync of the root and
//	              the file, 6, commit                the snapshot, the commit
//	commit, view  1, 2, snapshot, 6                  the snapshot
//	  of a disk   1, 2, freeze, snapshot, thaw, 6    the snapshot
//	group         1 and 2 of each member; all        the snapshots
//	              snapshots at once; if they are of
//	              several transactions, destroys
//	              them and retries; 6 of each
//	resize        5, record with the size, commit    the commit
//	remove        1 rename the slot to removing      4
//	              2 lift the limit
//	              3 destroy the subvolume
//	              4 fsync of the slot
//	              5 rmdir
//	remove, lost  1, commit, 5                       the commit
//	undo, group   record of each: creating; 2 and    the commit
//	              3 of each; commit; 5 of each, from
//	              the last to the first
//	remove, full  2, 3, 4, 5, commit                 the commit; metadata has no room for 1
//	undo          record: creating, 2, 3, 4, 5       the fsync
//
// "Of a class" means with properties: compression, or no copy on write. "Of a disk" means with a
// disk file, which is made anew while the record says creating.
//
//	found at the next start                   reconcile
//	slot without record or subvolume          rmdir
//	record creating, no subvolume             rmdir
//	record creating, subvolume                continues at step 4, and syncs; undoes a copy that
//	                                          lacks nested subvolumes of its source
//	  of a member of a group                  the same, if all members are there and of one
//	                                          transaction; else undoes it
//	record ready, subvolume, another limit    sets the limit of the record
//	record ready, no subvolume                reports it as lost, and where its data is
//	                                          if the filesystem was rolled back; keeps it
//	anything in removing with a record        continues at step 2
//	subvolume without a record                reports it as foreign, keeps it
//	anything beside a subvolume               reports it as foreign, keeps it, and does
//	                                          not remove the slot
//	record damaged or of a newer version      reports it, keeps it
//
// While a record says creating, a killed driver may have left the filesystem in the disk file of
// its source frozen. So a reconcile thaws that first.
//
// # Groups
//
// A group of snapshots is whole if all members exist and have the same CreatedTransid. So the disk
// itself shows it, and no record has to. A power cut takes all snapshots of a transaction or none.
// Before the group is whole the record of each member says creating, so that a crash leaves no
// member alone:
//
//	cut after                  leaves                        then
//	records of some members    slots without subvolumes      all are removed
//	some snapshots of a try    these, and slots without      all are removed
//	a try in several           all, of several transactions  all are removed
//	transactions
//	destroying them            some of these, or none        all are removed
//	a try in one transaction   all, of one transaction       all are completed
//	ready of some members      all, of one transaction       the others are completed
//	undo: creating of all      some, or none                 all are removed
//
// Member 0 is made first and removed last, so that it is there while any other is.
//
// # What a power cut leaves
//
// A power cut goes back to the last commit. Commits contain whole transactions, in order, so the
// result is one of the states above. The log then adds what an fsync has written since. Anyone
// may commit between two steps: another operation, the kernel every 30 s, an administrator. An
// fsync is a commit only in the transaction in which a subvolume was made or destroyed in the
// synced directory. In a later transaction it writes the log of that inode, and nothing of
// another tree. Linux may leave that log unwritten (docs/reliability.md). So what is answered
// rests on a commit, and two facts in two trees have a fixed order, or one follows from the other:
//
//	one fact, its tree            the other, its tree        what keeps them consistent
//	record ready, the pool's      subvolume, roots           the fsync is a commit in the transaction that
//	                                                         made it, and need not be one later
//	record ready, the pool's      properties, subvolume's    fsync of the root before the record is written
//	record ready, the pool's      disk file, subvolume's     fsync of the root and the file before the record
//	                                                         is written
//	answer to a request of a      record ready, the pool's   commit before the answer: the next start makes
//	disk                                                     the file of a volume in creating anew
//	record, the pool's            size of the disk file      set again from the record at the start
//	answer to a request of a      record ready, the pool's   fsync of the slot before the answer; if it is lost
//	class                                                    the next start completes the volume
//	record ready, the pool's      mode, the subvolume's      made with it, by the umask
//	record, the pool's            limit, quota               set again from the record at the start
//	record ready of a snapshot    subvolume, roots           written again: it is creating at worst
//	slot in removing, the pool's  no subvolume, roots        the rename is before, and in a commit with it
//	slot gone from its area       no subvolume, roots        its fsync is before the rmdir; the commit
//	member of a group             all other members          all are made in one transaction; or else each has
//	                                                         a record that says creating, and is undone
//	undo: record creating         no subvolume, roots        creating is before, and in a commit with it
//	no subvolume, roots           its groups, quota          Sweep finds them
//	pool.json, areas              volumes, roots             fsync before the pool is used, again at each start
//	known/<ID>, state directory   pool.json, the pool's      fsync after that of pool.json, again at each start
//	index, state directory        seal, beside it            the seal of an index in use is synced first
//
// A repeated request finds the slot by its name and compares itself with the record. It commits
// before it answers, because the process that made the slot may have died just before its fsync.
//
// The crash tests are in package snapshot.
package slot
