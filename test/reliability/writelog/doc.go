// Package writelog is a disk that keeps a log of every write and every flush, and from which
// the states are rebuilt that a power cut can leave. A disk is one file on FUSE, for a loop
// device with direct I/O.
//
// # States
//
// A disk with a volatile cache keeps what was written before a flush that has ended. Of what
// was written since, it keeps any part in any order, and may tear a write. A State has, for
// each page of 4 KiB that was written since the last flush, one of these writes or what was
// there before. That covers every subset, every order and every torn write. The block layer
// turns FUA into a write and a flush, since the disk has none, so that both are in the log.
//
// # All states by a few runs
//
// n pages make 2^n states and more, too many to mount one by one. But whoever mounts a state
// reads few of the pages: Disk.Reads returns which. A state that differs from one that was
// run only in pages that were not read there behaves the same. So Explore decides about a
// page when it is read, and not before: it runs one state, and then one more for each other
// version of each page that was read. When it ends, every state has been run, or one that
// is the same to any reader.
//
// # No harm
//
// The disks are served by a process of their own, a child of the test, which ends when the
// test does, however that ends. FUSE then answers everything with an error, and nothing waits
// for it. The test has to run in a mount namespace of its own (btrfstest.Main).
package writelog
