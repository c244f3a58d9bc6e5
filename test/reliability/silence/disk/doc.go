// Package disk is a disk of which a test decides how it behaves: one file on FUSE, for a
// loop device to be set up on. Each read, write, flush and discard of the loop device
// arrives at the process that serves the file, which hands it on to a file below.
//
// The disk can be silent: it answers nothing, and gives no error, until the test ends that.
// Package writelog has disks that keep a log of what is written and flushed.
//
// # No harm
//
// While a disk is silent, whoever waits for it waits in the kernel and cannot be killed.
// So the disk is served by a process of its own, a child of the test, which ends the
// silence by itself after MostSilence, and ends when the test does, however that ends.
// With the process FUSE answers everything with an error, and nothing waits any more. The
// test has to run in a mount namespace of its own (btrfstest.Main), or every reader of a
// mount table of the machine waits as well; and it must start no process while the disk
// is silent that reads its mount table, as programs in Go do at their start.
package disk
