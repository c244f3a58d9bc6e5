// Package btrfs calls the btrfs ioctls that the driver needs: subvolumes and their lineage,
// nested subvolumes, quota, space and devices. It is independent of CSI. Each function
// opens its path, calls the kernel and closes the path again; only [OpenDirectory] returns
// an open file. All functions may be called concurrently. Concurrent snapshots run on C
// threads, which end when they are idle, and share one pipe, which stays open.
//
// # Terms
//
//   - subvolume: a tree of its own with a numeric ID. The kernel never reuses an ID. The
//     root directory of a subvolume has the inode number 256.
//   - nested subvolume: a subvolume whose directory entry lies inside another subvolume.
//     Everyone who may write into a subvolume may create one there.
//   - qgroup: the unit of accounting. The kernel creates 0/<id> together with subvolume
//     <id>. The driver creates the groups n/<id> with n > 0.
//   - full and simple quota: full quota counts exactly what a subvolume references. Simple
//     quota counts what it wrote, at a lower cost (kernel 6.7).
//
// # Paths
//
// Every path names a directory. The last component of a path is never followed when it is a
// symbolic link. "/proc/self/fd/7" is such a link and fails with ENOTDIR. So pass a file
// descriptor as "/proc/self/fd/7/." or with a name below it. Only [IsBtrfs] follows links.
//
// # Errors
//
// An error names the operation and the path, and wraps the errno, for errors.Is(err,
// unix.EDQUOT) or errors.Is(err, fs.ErrNotExist). ENOTTY means that the path is not on
// btrfs.
//
// # Durability
//
// [Snapshot], [EnableQuota] and [GrowToDevice] commit. All other changes are in memory
// until the next commit. [Sync] of the right directory forces one.
//
// # Privileges
//
// Tree search, quota and resize need CAP_SYS_ADMIN, and file handles need
// CAP_DAC_READ_SEARCH, both in the initial user namespace.
//
// github.com/containerd/btrfs and the threads of [Snapshot] use C. The structures of the
// other ioctls are Go types in ioctl.go. A test compares them with the kernel's headers.
package btrfs
