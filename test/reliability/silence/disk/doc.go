// Package disk has a disk that a test can silence. It is one file on FUSE, for a loop device.
// Another process serves the file, and passes each read, write, flush and discard of the loop
// device on to a file below.
//
// A silent disk gives neither answers nor errors, until the test ends the silence.
//
// # No harm
//
// A process that waits for a silent disk waits in the kernel and cannot be killed. So the serving
// process, a child of the test, ends the silence by itself after MostSilence. It also ends when the
// test ends, in whatever way. FUSE then answers everything with an error, and nothing waits any more.
//
// A reader of the mount table waits for the disk, too. So the test has to run in a mount namespace of
// its own (btrfstest.Main). During a silence it must not start a process that reads its mount table, as
// programs in Go do at their start.
package disk
