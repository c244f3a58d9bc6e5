package btrfs

import (
	"errors"
	"fmt"
	"unsafe"

	"github.com/containerd/btrfs/v2"
	"golang.org/x/sys/unix"
)

// IsBtrfs reports whether path, a file or a directory, lies on btrfs. It follows links.
func IsBtrfs(path string) (bool, error) {
	var st unix.Statfs_t
	for {
		err := unix.Statfs(path, &st)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return false, fmt.Errorf("statfs %q: %w", path, err)
		default:
			return uint32(st.Type) == unix.BTRFS_SUPER_MAGIC, nil
		}
	}
}

// IsReadOnly reports whether the filesystem around dir, or only the mount that path lies on, is
// read-only.
func IsReadOnly[D Dir](dir D) (readOnly bool, err error) {
	err = withDir("look for the read-only flag of", dir, func(fd int) error {
		room, err := statfs(fd)
		readOnly = room.ReadOnly
		return err
	})
	return readOnly, err
}

// Create creates an empty subvolume (SUBVOL_CREATE). A power cut removes it again until
// Sync of the directory that contains it. Errors: fs.ErrExist; fs.ErrNotExist for the
// directory; EDQUOT; ENOSPC.
func Create(path string) error {
	return withEntry("create subvolume", path, func(dir int, name string) error {
		return btrfs.SubvolCreate(fdPath(dir, name))
	})
}

// Snapshot creates dst as a snapshot of the subvolume src (SNAP_CREATE_V2) and commits. On
// return dst is durable and contains everything written to src before the call. The kernel
// holds the inode lock of dst's directory meanwhile: snapshots into one directory wait for
// each other, and those into separate directories share commits.
//
// Errors: ErrNotSubvolume and fs.ErrNotExist for src; fs.ErrExist for dst; EDQUOT.
func Snapshot(dst, src string, readOnly bool) error {
	return withDir("snapshot", src, func(source int) error {
		// Older kernels accept any directory and use the subvolume around it.
		if err := requireSubvolume(source); err != nil {
			return err
		}
		return withEntry("to", dst, func(dir int, name string) error {
			if len(name) > subvolNameMax {
				return unix.ENAMETOOLONG
			}
			args := volArgsV2{fd: int64(source)}
			if readOnly {
				args.flags = subvolRDOnly
			}
			copy(args.name[:], name)
			_, err := ioctl(dir, iocSnapCreateV2, unsafe.Pointer(&args))
			return err
		})
	})
}

// SetReadOnly sets or clears the read-only flag of a subvolume (SUBVOL_SETFLAGS). The next
// commit makes it durable. Errors: ErrNotSubvolume; EPERM while the subvolume is sent.
func SetReadOnly(path string, readOnly bool) error {
	return withDir("set read-only flag of", path, func(fd int) error {
		return setReadOnly(fd, readOnly)
	})
}

func setReadOnly(fd int, readOnly bool) error {
	if err := requireSubvolume(fd); err != nil {
		return err
	}
	var old uint64
	if _, err := ioctl(fd, iocSubvolGetFlags, unsafe.Pointer(&old)); err != nil {
		return err
	}
	flags := old &^ subvolRDOnly
	if readOnly {
		flags |= subvolRDOnly
	}
	if flags == old {
		return nil
	}
	_, err := ioctl(fd, iocSubvolSetFlags, unsafe.Pointer(&flags))
	return err
}

// AwaitThaw returns when the filesystem around dir accepts writers. While it is frozen
// (FIFREEZE) AwaitThaw waits in the kernel, and nothing can interrupt it. FIFREEZE cannot
// be used to ask, since it freezes a filesystem that is not frozen. So AwaitThaw sets
// subvolume flags that do not exist. The kernel refuses them only after it has admitted the
// writer, and takes no inode lock, starts no transaction and changes nothing.
func AwaitThaw[D Dir](dir D) error {
	return withDir("write to", dir, func(fd int) error {
		impossible := uint64(1) << 63
		_, _ = ioctl(fd, iocSubvolSetFlags, unsafe.Pointer(&impossible))
		return nil
	})
}

// Commit commits the running transaction: all changes that were made to the filesystem of dir
// before the call are durable, but for data of files that was not synced. Concurrent calls share
// commits. It needs CAP_SYS_ADMIN.
//
// No ioctl is for that alone. Sync writes a log, which Linux up to 7.2 at least may leave unwritten
// (docs/reliability.md). BTRFS_IOC_SYNC waits until the data of all files is written, and
// START_SYNC may sleep for the commit interval. But SET_FEATURES commits whatever it sets. So
// Commit sets a feature that the filesystem has.
func Commit[D Dir](dir D) error {
	return withDir("commit", dir, func(fd int) error {
		var has features
		if _, err := ioctl(fd, iocGetFeatures, unsafe.Pointer(&has)); err != nil {
			return err
		}
		if has.incompat&extendedIref == 0 {
			_, err := ioctl(fd, iocSync, nil)
			return err
		}
		extended := features{incompat: extendedIref}
		change := [2]features{extended, extended} // what to change, and to what
		_, err := ioctl(fd, iocSetFeatures, unsafe.Pointer(&change))
		return err
	})
}

// extendedIref is the feature of more hard links in a directory: mkfs.btrfs has set it since
// 2013, and a mounted filesystem may get it.
const extendedIref = 1 << 6

// Sync makes every subvolume created or destroyed in dir before the call durable. It is
// fsync(2): btrfs commits if an entry of a subvolume in dir has changed since the last
// commit, and else does nothing. So concurrent calls share one commit. START_SYNC and
// WAIT_SYNC may wait for the commit interval instead.
func Sync[D Dir](dir D) error {
	return withDir("sync", dir, func(fd int) error {
		for {
			if err := unix.Fsync(fd); !errors.Is(err, unix.EINTR) {
				return err
			}
		}
	})
}
