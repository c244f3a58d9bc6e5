package btrfs

import (
	"errors"

	"golang.org/x/sys/unix"
)

const compressionAttr = "btrfs.compression"

// SetCompression sets the compression of files that are created later in the subvolume at
// path: "zstd", "zlib", "lzo", "none", or "" for the default of the mount. "none" also
// overrides a mount option. The kernel stores a level such as "zstd:3" in the attribute,
// but ignores it and compresses at the default level. SetCompression works on an immutable
// or append-only root, too. Errors: EINVAL for a value unknown to the kernel and while copy
// on write is off; EROFS.
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

// SetNoDataCow turns copy on write off or on for files that are created later in the
// directory at path (FS_NOCOW_FL). Without copy on write there are no checksums and no
// compression. After a snapshot, the first write to each shared extent still copies it.
// Errors: EINVAL while compression is set; EROFS.
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
