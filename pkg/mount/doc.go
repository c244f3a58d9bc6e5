// Package mount reads the mount table of this node, and mounts and unmounts directories. It
// is independent of CSI and btrfs.
//
// # The mount table
//
// Since Linux 6.8 the package reads the table with listmount(2) and statmount(2), and
// before from /proc/self/mountinfo. For the file the kernel asks each filesystem for its
// options, and btrfs reads the name of a subvolume from its disk. So a disk that does not
// answer blocks every reader of the file. The system calls ask no filesystem.
//
// They can block, too: a reader of the file holds the kernel's lock of the table, and a
// change queues behind it. So questions about the table fail with ErrSilent after 10 s, and
// never return a wrong "not mounted". Only Options may block for longer.
//
// The kernel reports changes of the table, so the list of mounts is read once for each
// change. It does not report renames, which change the paths in the table. So functions
// that compare paths read them again.
//
// # Targets
//
// A Target is a place for a mount. It is opened without following symbolic links, and
// mount, unmount and removal use the descriptor.
package mount
