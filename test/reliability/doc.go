// Package reliability puts the driver, as it is deployed, under a random load, and
// kills its process or cuts its power again and again. After each time it compares the
// disk with what the driver has acknowledged.
//
//	model    a journal of requests and answers. For any two positions it knows which
//	         volumes and snapshots must and may exist, and with which size and content
//	load     workers that send random requests, as sidecars and kubelets do. They repeat
//	         an unanswered request under the same name until it is answered
//	node     a driver process, its state directory, its kubelet directory and the
//	         filesystem of its pool
//	check    compares a node with the model
//	Run      runs all, and returns figures
//
// # Killed driver
//
// The driver is killed at a random instant, sometimes again while the next process
// starts. Data in the kernel's memory survives. When the next driver serves, and before
// any request is repeated, all that was acknowledged must exist, all that was deleted
// must be gone, and what was in flight must be complete or absent. Then the workers
// repeat their requests until they are answered, and the node must be exactly as the
// model says. pkg/snapshot/crash_test.go stops an operation in memory at each step, and
// cmd/btrfs-csi/kill_test.go does so with the real process on a real disk. Here the
// instant is random, and many operations are in flight.
//
// # Power cut
//
// The filesystem's image is on XFS, where FICLONE copies a file atomically. The copy is
// the state of the device at one instant, without data in the kernel's memory. The
// position in the journal is recorded before and after. The copy must contain all that
// was acknowledged before, with all synced data. It cannot contain what was requested
// afterwards. Requests in between may be in it or not. The copy is mounted, and another
// driver starts on it, without an index or with an old or damaged one. Which
// writes a disk loses or reorders before a flush is the subject of the next section.
//
// # Crash states
//
// What a disk loses and reorders that it has not flushed is no matter of chance. A history
// (history.go) is a sequence of up to three calls over two volumes and a snapshot. It is
// recorded on a disk that logs each write and each flush (package writelog), together with
// the length of the log at each position in the journal (recording.go). Afterwards every state
// that a power cut leaves during the last call, and after it, is mounted; a driver starts on
// it, and check holds it against the journal at each position that the cut may have come at. The
// drivers run in this process (inside.go), since each state takes a new one; now and then it
// is the binary. CrashStates takes all histories, each undisturbed, with a commit of others
// before each step of the last call, and with a driver that is killed before each step and whose
// successor is asked again. A history is the same each time, so a failure that names it is
// found again: RELIABILITY_HISTORY is a regular expression for its name.
//
// Mutants puts faults into copies of the driver, each of which has to be found.
//
// # Silent disk
//
// One of two pools is on a disk that stops to answer, without an error (package disk),
// and nothing of it is in the page cache. While the disk is silent, all requests to the
// other pool must be answered, and all reports on pools must work. Afterwards nothing is
// lost, and the driver is the same process. A driver that is stopped meanwhile must
// stop, and the next one must serve the other pool.
//
// # Commits of others
//
// Another operation, the kernel or an administrator may commit between two steps of an
// operation. What an fsync makes durable depends on that. So, where drivers are killed
// or their power is cut, two of three processes are disturbed: before random steps the
// filesystem is committed, or the step waits for some milliseconds. A disturbed driver
// is the same driver with its tests built in (cmd/btrfs-csi/disturb_test.go). The report
// has the numbers.
//
// # Repeating a failure
//
// RELIABILITY_KILLS and RELIABILITY_CUTS set the numbers of kills and cuts,
// RELIABILITY_SEED repeats the seed of a run, and RELIABILITY_BINARY names a driver that
// is already built.
//
// The seed determines the requests of each worker, and the times of kills and cuts. It
// does not determine how requests interleave, so a seed makes a failure likely, not
// certain. A failure lists the history of the object.
package reliability
