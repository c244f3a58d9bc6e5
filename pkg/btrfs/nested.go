package btrfs

import (
	"encoding/binary"
	"errors"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Nested is a subvolume inside another.
type Nested struct {
	ID uint64
	// Path is relative to the outer subvolume. It is "" for a path beyond the kernel's
	// buffer of 3824 bytes, or when the entry has just moved.
	Path string
}

// NestedSubvolumes returns the direct children of the subvolume at path, ordered by ID
// (GET_SUBVOL_ROOTREF). The cost depends only on their number. Errors: ErrNotSubvolume,
// fs.ErrNotExist.
func NestedSubvolumes(path string) ([]Nested, error) {
	var nested []Nested
	err := withDir("nested subvolumes of", path, func(fd int) error {
		if err := requireSubvolume(fd); err != nil {
			return err
		}
		return eachRootRef(fd, func(ref rootRef) {
			nested = append(nested, Nested{ID: ref.treeID, Path: nestedPath(fd, ref)})
		})
	})
	return nested, err
}

// eachRootRef calls fn for each direct child of the subvolume around fd.
func eachRootRef(fd int, fn func(rootRef)) error {
	var args rootRefArgs
	for {
		_, err := ioctl(fd, iocGetSubvolRefs, unsafe.Pointer(&args))
		more := errors.Is(err, unix.EOVERFLOW) // the kernel has advanced minTreeID
		if err != nil && !more {
			return err
		}
		for _, ref := range args.refs[:args.numItems] {
			fn(ref)
		}
		if !more {
			return nil
		}
	}
}

// nestedPath returns the path of a child from the root of volume (INO_LOOKUP_USER). The
// kernel returns the directory empty or with a slash at its end.
func nestedPath(volume int, ref rootRef) string {
	args := inoLookupUserArgs{dirID: ref.dirID, treeID: ref.treeID}
	if _, err := ioctl(volume, iocInoLookupUser, unsafe.Pointer(&args)); err != nil {
		return ""
	}
	return cString(args.path[:]) + cString(args.name[:])
}

// Inodes returns the inode numbers of the entries of a directory, by name.
func Inodes(path string) (map[string]uint64, error) {
	inodes := map[string]uint64{}
	err := withDir("list", path, func(fd int) error {
		buf := make([]byte, 64<<10)
		for {
			n, err := unix.ReadDirent(fd, buf)
			if err != nil || n == 0 {
				return err
			}
			// struct linux_dirent64: ino, off, reclen, type, name.
			for rest := buf[:n]; len(rest) > 0; {
				length := binary.NativeEndian.Uint16(rest[16:])
				name := cString(rest[19:length])
				inodes[name] = binary.NativeEndian.Uint64(rest)
				rest = rest[length:]
			}
		}
	})
	delete(inodes, ".")
	delete(inodes, "..")
	return inodes, err
}
