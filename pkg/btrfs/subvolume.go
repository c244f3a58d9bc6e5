package btrfs

import (
	"errors"
	"fmt"
	"unsafe"

	"github.com/containerd/btrfs/v2"
	"golang.org/x/sys/unix"
)

// IsBtrfs reports whether path lies on btrfs. It follows links, and path may be
// a file.
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

// Create makes an empty subvolume (SUBVOL_CREATE). It is gone after a power cut
// until Sync of the directory that contains it. Errors: fs.ErrExist,
// fs.ErrNotExist for the directory, EDQUOT, ENOSPC.
func Create(path string) error {
	return withEntry("create subvolume", path, func(dir int, name string) error {
		return btrfs.SubvolCreate(fdPath(dir, name))
	})
}

// Snapshot makes dst a snapshot of the subvolume src (SNAP_CREATE_V2) and
// commits the transaction: when it returns, dst is durable and holds all that
// was written to src before the call. It holds the inode lock of dst's directory
// meanwhile, so snapshots into one directory queue behind each other; into
// separate directories they share commits.
//
// Errors: ErrNotSubvolume and fs.ErrNotExist for src, fs.ErrExist for dst, EDQUOT.
func Snapshot(dst, src string, readOnly bool) error {
	return withDir("snapshot", src, func(source int) error {
		// Older kernels take any directory for the subvolume around it.
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
			return snapCreate(dir, &args)
		})
	})
}

// SetReadOnly sets or clears the read-only flag of a subvolume (SUBVOL_SETFLAGS).
// It is durable with the next commit. Errors: ErrNotSubvolume; EPERM while the
// subvolume is being sent.
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

// AwaitThaw returns when the filesystem of a directory lets a writer in: it waits in the
// kernel, where nothing ends the waiting, while the filesystem is frozen (FIFREEZE).
// The kernel has no other way to ask: FIFREEZE fails for one that is frozen, and freezes
// one that is not. So flags that no subvolume can have are asked for, which the kernel
// refuses only when it has let the writer in. It takes no lock of an inode, begins no
// transaction, and changes nothing.
func AwaitThaw(path string) error {
	return withDir("write to", path, func(fd int) error {
		impossible := uint64(1) << 63
		_, _ = ioctl(fd, iocSubvolSetFlags, unsafe.Pointer(&impossible))
		return nil
	})
}

// Sync makes every subvolume created or destroyed in dir before the call
// durable. It is fsync: btrfs answers it with a full commit when an entry for a
// subvolume changed in dir since the last one, and with nothing when a commit
// has covered it meanwhile. Concurrent calls therefore share one commit.
// START_SYNC and WAIT_SYNC are no substitute: they may wait for the commit
// interval.
func Sync(dir string) error {
	return withDir("sync", dir, func(fd int) error {
		for {
			if err := unix.Fsync(fd); !errors.Is(err, unix.EINTR) {
				return err
			}
		}
	})
}
