// Package btrfs speaks the btrfs ioctls that the driver needs: subvolumes and
// their lineage, nested subvolumes, quota, space and devices. It knows nothing
// of CSI and keeps nothing open: every function opens the path it is given, asks the
// kernel and closes it again. All of them may be called concurrently. Snapshots at
// the same time have threads of their own, which end when they are not needed, and a
// pipe to them.
//
// # Terms
//
//   - subvolume: a tree of its own with a numeric ID that is never reused. The
//     inode number of its root directory is always 256.
//   - nested subvolume: one whose entry lies inside another. Whoever may write
//     into a subvolume may create one there.
//   - qgroup: the unit of accounting. 0/<id> belongs to subvolume <id> and is
//     made by the kernel with it, n/<id> with n > 0 is a group made by us.
//   - full and simple quota: exact accounting of what a subvolume references,
//     or cheap accounting of what it wrote (kernel 6.7).
//
// # Paths
//
// Every path names a directory, and its last component is never followed when
// it is a symbolic link. A file descriptor is therefore passed as
// "/proc/self/fd/7/." or with something below it: "/proc/self/fd/7" by itself
// is such a link and is refused with ENOTDIR. Only [IsBtrfs] follows links.
//
// # Errors
//
// An error names the operation and the path and wraps the errno, so
// errors.Is(err, unix.EDQUOT) and errors.Is(err, fs.ErrNotExist) hold. ENOTTY
// means that the path is not on btrfs.
//
// # Durability
//
// Only [Snapshot] and [EnableQuota] commit by themselves. All else is in memory
// until the next commit, which [Sync] of the right directory forces.
//
// # Privileges
//
// CAP_SYS_ADMIN for the tree search, quota and resize ioctls and
// CAP_DAC_READ_SEARCH for file handles, both in the initial user namespace.
//
// C is used by github.com/containerd/btrfs, and for the threads of [Snapshot]. The
// structures of the other ioctls are Go types in ioctl.go, compared with the
// kernel's headers by a test.
package btrfs
