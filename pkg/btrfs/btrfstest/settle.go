package btrfstest

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// Sync writes everything to the device and wakes the kernel's cleaner (BTRFS_IOC_SYNC).
// syncfs(2) does not wake the cleaner.
func Sync(path string) error {
	const iocSync = 0x94<<8 | 8
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), iocSync, 0); errno != 0 {
		return fmt.Errorf("sync %s: %w", path, errno)
	}
	return nil
}

// Settle waits until everything is on the device and the cleaner has dropped all destroyed
// trees and their accounting. dying is btrfs.DyingIDs. This package cannot import it,
// because the tests of btrfs import this package.
func Settle(ctx context.Context, path string, dying func(path string) ([]uint64, error)) error {
	for ctx.Err() == nil {
		err := Sync(path)
		left, failed := dying(path)
		if err = errors.Join(err, failed); err != nil || len(left) == 0 {
			return errors.Join(err, Sync(path))
		}
		time.Sleep(20 * time.Millisecond)
	}
	return ctx.Err()
}

// Unmount unmounts path. While the mount is busy it tries again: the cleaner, a driver that
// has just ended, or a forked process with inherited descriptors may release it late.
func Unmount(path string) (err error) {
	Comes(func() bool {
		err = unix.Unmount(path, 0)
		return !errors.Is(err, unix.EBUSY)
	})
	if err != nil {
		return fmt.Errorf("unmount %s: %w", path, err)
	}
	return nil
}

// RemountReadOnly makes the filesystem at path read-only. While it is busy it tries again: a
// process that a parallel test has just forked inherits files that are open for writing.
func RemountReadOnly(path string) (err error) {
	Comes(func() bool {
		err = unix.Mount("", path, "", unix.MS_REMOUNT|unix.MS_RDONLY, "")
		return !errors.Is(err, unix.EBUSY)
	})
	if err != nil {
		return fmt.Errorf("remount %s read-only: %w", path, err)
	}
	return nil
}
