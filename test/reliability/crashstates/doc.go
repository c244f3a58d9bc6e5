// Package crashstates starts a driver on every state that a power cut can leave of short
// histories. A disk may lose or reorder the writes that it has not flushed, so one cut can
// leave many states.
//
//	history.go      the calls that a history consists of, and how others interfere with the last
//	recording.go    a history, recorded on a disk of package writelog; a driver on each state
//	crashstates.go  takes all histories, or as many as were asked for
//	mutant.go       faults in copies of the driver, each of which the states have to show
//	figures.go      the figures in docs/reliability.md
//
// A history is a sequence of up to three calls over two volumes and a snapshot. Its recording
// has the length of the disk's log at each position in the journal. Run mounts every state that a
// power cut leaves during the last call, and after it, and starts a driver on it. It compares the
// state with the journal at each position at which the cut may have happened. Each state takes
// a new driver, which runs in this process, except for a few that the binary is started on.
//
// Run takes each history undisturbed, with a commit of others before each step of the last
// call, and with a driver that is killed before each step and whose successor gets the request
// again. A history is the same each time, so its name repeats a failure.
package crashstates
