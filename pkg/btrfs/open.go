package btrfs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

const openFlags = unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC

// Dir is a directory: its path, or the directory itself, open.
type Dir interface{ string | *os.File }

// withDir calls fn with an open directory, and adds the operation and the path to errors.
func withDir[D Dir](operation string, dir D, fn func(fd int) error) (err error) {
	var path string
	switch dir := any(dir).(type) {
	case *os.File:
		path, err = dir.Name(), fn(int(dir.Fd()))
	case string:
		path = dir
		var fd int
		if fd, err = openDirAt(unix.AT_FDCWD, dir); err == nil {
			defer unix.Close(fd)
			err = fn(fd)
		}
	}
	if err != nil {
		return fmt.Errorf("%s %q: %w", operation, path, err)
	}
	return nil
}

func openDirAt(dir int, name string) (int, error) {
	for {
		fd, err := unix.Openat(dir, name, openFlags, 0)
		if !errors.Is(err, unix.EINTR) {
			return fd, err
		}
	}
}

// withEntry is withDir for the directory that contains an entry. It splits the path, but
// never cleans it: in /proc/self/fd, ".." and links have a meaning of their own.
func withEntry(operation, path string, fn func(dir int, name string) error) error {
	parent, name := filepath.Split(path)
	if name == "" || name == "." || name == ".." {
		return fmt.Errorf("%s %q: no name at the end of the path: %w", operation, path, unix.EINVAL)
	}
	if parent == "" {
		parent = "."
	}
	fd, err := openDirAt(unix.AT_FDCWD, parent)
	if err == nil {
		defer unix.Close(fd)
		err = fn(fd, name)
	}
	if err != nil {
		return fmt.Errorf("%s %q: %w", operation, path, err)
	}
	return nil
}

// fdPath returns a path to an entry of an open directory, without links on the way. A
// library needs it.
func fdPath(fd int, name string) string { return fmt.Sprintf("/proc/self/fd/%d/%s", fd, name) }

// requireSubvolume returns ErrNotSubvolume unless fd is the root of a subvolume. Most
// ioctls would silently use the subvolume around fd.
func requireSubvolume(fd int) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if st.Ino != firstFree {
		return ErrNotSubvolume
	}
	return nil
}

// handleWithoutParent is FILEID_BTRFS_WITHOUT_PARENT of the kernel's exportfs.h.
const handleWithoutParent = 0x4d

// openInode opens a directory by subvolume and inode number, even if its path is longer
// than PATH_MAX. mount is any open directory of the filesystem. Errors: ENOENT.
func openInode(mount int, subvolume, inode uint64) (int, error) {
	generation, err := inodeGeneration(mount, subvolume, inode)
	if err != nil {
		return -1, err
	}
	// struct btrfs_fid without parent: objectid, root_objectid, gen.
	handle := make([]byte, 20)
	binary.NativeEndian.PutUint64(handle[0:], inode)
	binary.NativeEndian.PutUint64(handle[8:], subvolume)
	binary.NativeEndian.PutUint32(handle[16:], uint32(generation))
	for {
		fd, err := unix.OpenByHandleAt(mount, unix.NewFileHandle(handleWithoutParent, handle), openFlags)
		switch {
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.ESTALE):
			return -1, unix.ENOENT
		default:
			return fd, err
		}
	}
}

// inodeGeneration returns the generation that a file handle needs. Only newer kernels
// accept 0 for "any".
func inodeGeneration(mount int, subvolume, inode uint64) (uint64, error) {
	item, err := findItem(mount, subvolume, itemKey{inode, inodeItemKey, 0})
	if err != nil {
		return 0, err
	}
	return item.uint64(0)
}
