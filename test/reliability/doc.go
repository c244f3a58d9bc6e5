// Package reliability has no code of its own. The rooms below it take the driver, as it is
// deployed, kill it, cut its power and silence its disk, and compare what is left with what the
// driver has acknowledged.
//
// Each of these rooms is one kind of test:
//
//	soak         a random load, while drivers are killed at random instants and lose their power.
//	             Also one driver that is left alone, whose memory and latencies must not grow
//	crashstates  every state that a power cut can leave of short histories of calls, and mutants:
//	             faults in copies of the driver, each of which has to be found
//	fsyncs       fsyncs of btrfs itself that return before the disk has the data
//	silence      a disk that stops to answer, without an error
//	fuzz         the driver's native fuzz targets, one after the other
//
// The others are what these share:
//
//	files        the files of a volume, and how a careful program writes them
//	model        a journal of requests and answers. It knows what must and may exist at each position
//	node         a machine with one pool and a driver, and the comparison of it with the model
//	load         workers that send random requests, as sidecars and kubelets do
//	writelog     a disk that logs each write and flush, and all states that a power cut leaves of it
//	cmd/soak     the command behind make soak, crash-states, mutants and fuzz. It writes the
//	             figures into docs/reliability.md
//
// # Commits of others
//
// Another operation, the kernel or an administrator may commit between two steps of an
// operation. What an fsync makes durable depends on that. So, in two of three processes of
// the soak, the filesystem is committed before random steps, or the step waits for some
// milliseconds. Such a disturbed driver is the same driver with its tests built in
// (cmd/btrfs-csi/disturb_test.go). The report has the numbers.
//
// # Repeating a failure
//
// RELIABILITY_KILLS and RELIABILITY_CUTS set the numbers of kills and cuts,
// RELIABILITY_SEED repeats the seed of a run, RELIABILITY_HISTORY is a regular expression for
// the names of the histories to take, and RELIABILITY_BINARY names a driver that is already
// built.
//
// The seed determines the requests of each worker, and the times of kills and cuts. It
// does not determine how requests interleave, so a seed makes a failure likely, not
// certain. A failure lists the history of the object.
package reliability
