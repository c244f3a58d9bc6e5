package btrfs

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

const compressionAttr = "btrfs.compression"

// SetCompression sets how files created later in the subvolume at path are compressed:
// "zstd", "zlib", "lzo", "none" even against a mount option, or "" for the mount's setting.
// The kernel stores a level such as "zstd:3", but compresses at the default level. An
// immutable or append-only root is no obstacle. Errors: EINVAL for an unknown value, or
// while copy on write is off; ErrUnsupported for "none" before Linux 5.14; EROFS.
func SetCompression(path, value string) error {
	return withDir("set compression of", path, func(fd int) error {
		err := setCompression(fd, value)
		if !errors.Is(err, unix.EPERM) {
			return err
		}
		flags, err := inodeFlags(fd)
		if err != nil {
			return err
		}
		if err := changeInodeFlags(fd, 0, protection); err != nil {
			return err
		}
		return errors.Join(setCompression(fd, value), changeInodeFlags(fd, flags&protection, 0))
	})
}

func setCompression(fd int, value string) error {
	if value != "" {
		err := unix.Fsetxattr(fd, compressionAttr, []byte(value), 0)
		if value != "none" || !errors.Is(err, unix.EINVAL) {
			return err
		}
		if flags, failed := inodeFlags(fd); failed != nil || flags&fsNoCow != 0 {
			return errors.Join(err, failed)
		}
		return fmt.Errorf("compression none needs Linux 5.14: %w (%w)", ErrUnsupported, err)
	}
	err := unix.Fremovexattr(fd, compressionAttr)
	if errors.Is(err, unix.ENODATA) {
		return nil
	}
	return err
}

// Compression returns the value set by SetCompression, or "".
func Compression(path string) (string, error) {
	var value string
	err := withDir("compression of", path, func(fd int) error {
		buf := make([]byte, 64)
		n, err := unix.Fgetxattr(fd, compressionAttr, buf)
		if errors.Is(err, unix.ENODATA) {
			return nil
		}
		value = string(buf[:max(n, 0)])
		return err
	})
	return value, err
}

// SetNoDataCow turns copy on write, checksums and compression off or on for files created
// later in the directory at path (FS_NOCOW_FL). The first write to an extent that a
// snapshot shares still copies it. Errors: EINVAL while compression is set; EROFS.
func SetNoDataCow(path string, on bool) error {
	return withDir("set copy on write of", path, func(fd int) error {
		if on {
			return changeInodeFlags(fd, fsNoCow, 0)
		}
		return changeInodeFlags(fd, 0, fsNoCow)
	})
}

// NoDataCow reports whether copy on write is off for the directory at path.
func NoDataCow(path string) (bool, error) {
	var on bool
	err := withDir("copy on write of", path, func(fd int) error {
		flags, err := inodeFlags(fd)
		on = flags&fsNoCow != 0
		return err
	})
	return on, err
}
