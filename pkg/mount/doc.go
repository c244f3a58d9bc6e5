// Package mount knows what is mounted on this node, and mounts and unmounts
// directories. It knows nothing of CSI, of btrfs, or of volumes.
//
// # The mount table
//
// The package reads it by listmount(2) and statmount(2), or, before Linux 6.8, from
// /proc/self/mountinfo. The file also shows the options of each filesystem, for which
// btrfs reads the name of a subvolume from its disk: every reader of the file waits for
// a disk that does not answer. The system calls ask no filesystem for anything.
//
// They can wait too, for the kernel's lock of the table, while a reader of the file holds
// it and a change waits behind that. So nothing here waits for the kernel for more than
// a few seconds: the answer is ErrSilent then, and never "not mounted".
//
// The kernel reports each change of the table, so which mounts there are is read once for
// each change. It does not report that a directory was renamed, which changes the paths
// in the table; whoever compares paths gets those of this moment.
//
// # Targets
//
// A Target is a place where something may be mounted. It is opened without following
// symbolic links, and mounted, unmounted and removed by what was opened.
package mount
