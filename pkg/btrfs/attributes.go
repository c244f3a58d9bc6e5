package btrfs

import (
	"errors"

	"golang.org/x/sys/unix"
)

const compressionAttr = "btrfs.compression"

// SetCompression sets how files created in the subvolume at path from now on are
// compressed: "zstd", "zlib" or "lzo", or "none" against a mount option; ""
// returns to the mount's. The kernel keeps a level such as "zstd:3" in the
// attribute and heeds only the name: it compresses at the default level. An immutable
// or append-only root does not stand in the way. Errors: EINVAL for a value the kernel
// does not know, and when copy on write is off; EROFS.
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
		return unix.Fsetxattr(fd, compressionAttr, []byte(value), 0)
	}
	err := unix.Fremovexattr(fd, compressionAttr)
	if errors.Is(err, unix.ENODATA) {
		return nil
	}
	return err
}

// Compression returns the value set by SetCompression, "" for none.
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

// SetNoDataCow turns copy on write, and with it checksums and compression, off or
// on for the files created in the directory at path from now on (FS_NOCOW_FL).
// A snapshot still makes the next write to each shared extent a copy. Errors:
// EINVAL when compression is set; EROFS.
func SetNoDataCow(path string, on bool) error {
	return withDir("set copy on write of", path, func(fd int) error {
		if on {
			return changeInodeFlags(fd, fsNoCow, 0)
		}
		return changeInodeFlags(fd, 0, fsNoCow)
	})
}

// NoDataCow reports whether SetNoDataCow is on.
func NoDataCow(path string) (bool, error) {
	var on bool
	err := withDir("copy on write of", path, func(fd int) error {
		flags, err := inodeFlags(fd)
		on = flags&fsNoCow != 0
		return err
	})
	return on, err
}
