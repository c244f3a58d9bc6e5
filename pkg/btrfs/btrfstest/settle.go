package btrfstest

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// Sync writes all to the device, and wakes the kernel's cleaner, which syncfs(2) does
// not (BTRFS_IOC_SYNC).
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

// Unmount waits a while for those that let go late: the cleaner, or a driver that has
// just ended.
func Unmount(path string) (err error) {
	for range 200 {
		if err = unix.Unmount(path, 0); !errors.Is(err, unix.EBUSY) {
			break
		}
		time.Sleep(25 * time.Millisecond)
	}
	if err != nil {
		return fmt.Errorf("unmount %s: %w", path, err)
	}
	return nil
}
