package btrfs

import (
	"errors"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Nested is a subvolume inside another.
type Nested struct {
	ID uint64
	// Path is relative to the root of the subvolume that was asked. It is "" when
	// it cannot be told: the kernel has room for 3824 bytes of it, and the entry
	// may have moved meanwhile.
	Path string
}

// NestedSubvolumes returns the subvolumes whose entries lie in the subvolume at
// path, by rising ID, without those nested deeper (GET_SUBVOL_ROOTREF). The cost
// depends on their number alone. Errors: ErrNotSubvolume, fs.ErrNotExist.
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

// Nesting returns, for every subvolume that lies in another than that around path,
// and not in the top level, the one that it lies in. It reads the root tree once.
func Nesting(path string) (map[uint64]uint64, error) {
	around, err := Around(path)
	if err != nil {
		return nil, err
	}
	parents := map[uint64]uint64{}
	err = walkRoots(path, rootBackrefKey, func(ref itemKey) error {
		if ref.offset != around && ref.offset != topLevelSubvol {
			parents[ref.objectID] = ref.offset
		}
		return nil
	})
	return parents, err
}

// eachRootRef calls fn for each direct child of the subvolume that fd lies in.
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

// nestedPath asks for the directory and the name of a child in one ioctl
// (INO_LOOKUP_USER); the directory comes with a slash at its end, or is empty.
func nestedPath(volume int, ref rootRef) string {
	args := inoLookupUserArgs{dirID: ref.dirID, treeID: ref.treeID}
	if _, err := ioctl(volume, iocInoLookupUser, unsafe.Pointer(&args)); err != nil {
		return ""
	}
	return cString(args.path[:]) + cString(args.name[:])
}
