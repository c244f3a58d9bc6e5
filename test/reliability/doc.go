// Package reliability puts the driver, as it is deployed, under a random load and
// takes its process or its power away, again and again. After each time it holds
// what is there against what was acknowledged.
//
//	model    what has been asked for and what has been answered, as a journal: for
//	         any two positions in it, what must be there, what may be, and with
//	         which size and content
//	load     workers that ask at random, as sidecars and kubelets do: what was not
//	         answered is asked again, under the same name, until it is
//	node     a driver process, its state directory, its kubelet directory and the
//	         filesystem that its pool is on
//	check    compares a node with the model
//	Run      all of it, with figures
//
// # Killed driver
//
// SIGKILL at a random instant, at times once more while the next process starts.
// What the kernel holds in memory survives. When the next driver serves, and before
// anything is asked again, everything that was acknowledged has to be there, nothing
// that was deleted may be, and what was in flight is whole or absent. Then the
// workers ask again until they are answered, and the node has to be exactly as the
// model says. pkg/snapshot/crash_test.go stops at every single step of every
// operation, in memory, and cmd/btrfs-csi/kill_test.go the real process on a real disk,
// one operation at a time; here the instant is random, and many are under way.
//
// # Power cut
//
// The filesystem's image lies on XFS, where FICLONE copies a file at once while
// nobody writes to it: the state of the device at one instant, without what the
// kernel still holds in memory. The position in the journal is taken before and
// after. What was acknowledged before has to be in the copy, with what had been
// fsynced; what was asked for after cannot be; in between, either. The copy is
// mounted, and a driver of its own starts on it, without an index or with one that is
// old or damaged. A device that loses or reorders what it has acknowledged before a
// flush is not simulated: that is between the filesystem and the device.
//
// # Silent disk
//
// One of two pools lies on a disk that ceases to answer, without an error (package disk),
// with nothing of it in the page cache. While it is silent every request to the other
// pool has to be answered, and whatever reports on pools has to report. Afterwards nothing is
// lost, and the driver is the same process. A driver that is stopped while the disk is
// silent stops, and the next one serves the other pool.
//
// # Commits of others
//
// Anybody may commit between two steps of an operation: another operation, the kernel every
// 30 s, an administrator. How much an fsync makes durable depends on it. So where drivers
// are killed or their power is cut, two of three processes are disturbed: before a
// step, as its seed decides, the filesystem is committed, or the step waits for some
// milliseconds while others go on. It is the same driver with its tests built in
// (cmd/btrfs-csi/disturb_test.go). The report says how often.
//
// # Repeating a failure
//
// RELIABILITY_KILLS and RELIABILITY_CUTS say how many of each the tests make,
// RELIABILITY_SEED takes the seed of a run before, and RELIABILITY_BINARY a driver that
// is built already.
//
// The seed decides what each worker asks for, and when the kills and cuts come. It
// does not decide how the requests interleave, so a seed makes a failure likely, not
// certain. A failure lists what happened to the object in question, in order.
package reliability
