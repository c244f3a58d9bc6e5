// Package soak puts a driver under a random load, and kills its process or cuts its power again
// and again. After each time it compares the disk with what the driver has acknowledged.
//
//	soak.go     shares the time of a soak between its parts: killed, power cut, left alone, fuzzed
//	part.go     one part: nodes with each kind of quota, their load, kills and restarts
//	cut.go      a power cut, and the state of the index after it
//	watch.go    samples the process of a driver that is left alone
//	flat.go     fails if that process grows or becomes slow
//	report.go   the numbers of a part; figures.go and plot.go show those of a soak
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
// driver starts on it, without an index or with an old or damaged one. Package crashstates
// covers the writes that a disk loses or reorders before a flush.
package soak
