// Package writelog has disks that log every write and every flush. A test can rebuild each state that a
// power cut leaves from the log. A disk is one file on FUSE, for a loop device with direct I/O.
//
// # States
//
// A disk with a volatile cache keeps all writes before the last flush that has ended. It keeps any part of
// the later writes, in any order, and may tear a write. For each page of 4 KiB that was written since the
// last flush, a State has one of these writes or the content before them. That covers every subset, every
// order and every torn write. The disk has no FUA, so the block layer sends a write and a flush instead, and
// both are in the log.
//
// # All states by a few runs
//
// n pages make 2^n states and more, too many to mount one by one. But a mount and a driver read few of the
// pages; Disk.Reads returns their numbers. If a state differs from another only in pages that were not read
// there, it behaves the same. So Explore chooses the version of a page only when the page is read. It runs
// one state, and then one more for each other version of each page that was read. In the end it has run every
// state, or one that is equal to any reader.
//
// # No harm
//
// A child process of the test serves the disks. It ends when the test ends, in whatever way. FUSE then answers
// everything with an error, and nothing waits any more. The test has to run in a mount namespace of its own
// (btrfstest.Main).
package writelog
