package btrfs

import (
	"bytes"
	"encoding/hex"
	"errors"
	"maps"
	"slices"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// UUID is a btrfs UUID in the order of its bytes on disk.
type UUID [16]byte

// String returns the usual form of 36 characters, or "" for the zero UUID, which
// is how btrfs says "none".
func (u UUID) String() string {
	if u.IsZero() {
		return ""
	}
	var b [36]byte
	hex.Encode(b[0:], u[0:4])
	hex.Encode(b[9:], u[4:6])
	hex.Encode(b[14:], u[6:8])
	hex.Encode(b[19:], u[8:10])
	hex.Encode(b[24:], u[10:16])
	b[8], b[13], b[18], b[23] = '-', '-', '-', '-'
	return string(b[:])
}

// IsZero reports whether there is no UUID.
func (u UUID) IsZero() bool { return u == UUID{} }

// SubvolumeInfo is what the filesystem itself knows of a subvolume.
type SubvolumeInfo struct {
	ID           uint64
	UUID         UUID
	ParentUUID   UUID // of the subvolume this is a snapshot of; zero for none
	ReceivedUUID UUID // of the subvolume this was received from; zero for none
	// Generation is the transaction of the last change that was committed.
	Generation uint64
	// CreatedTransid (otransid) is the transaction that made it. Snapshots made by
	// one transaction were taken at one instant.
	CreatedTransid uint64
	Created        time.Time
	ReadOnly       bool
}

// Info returns what the filesystem knows of the subvolume at path
// (GET_SUBVOL_INFO), at a cost independent of the number and size of subvolumes.
// Errors: ErrNotSubvolume, fs.ErrNotExist.
func Info(path string) (SubvolumeInfo, error) {
	var info SubvolumeInfo
	err := withDir("subvolume info of", path, func(fd int) error {
		args, err := subvolInfo(fd)
		if err != nil {
			return err
		}
		info = SubvolumeInfo{
			ID:             args.treeID,
			UUID:           args.uuid,
			ParentUUID:     args.parentUUID,
			ReceivedUUID:   args.receivedUUID,
			Generation:     args.generation,
			CreatedTransid: args.otransID,
			Created:        time.Unix(int64(args.otime.sec), int64(args.otime.nsec)),
			ReadOnly:       args.flags&rootSubvolRDOnly != 0,
		}
		return nil
	})
	return info, err
}

func subvolInfo(fd int) (*subvolInfoArgs, error) {
	if err := requireSubvolume(fd); err != nil {
		return nil, err
	}
	args := new(subvolInfoArgs)
	_, err := ioctl(fd, iocGetSubvolInfo, unsafe.Pointer(args))
	return args, err
}

// Exists reports whether the filesystem around path has a live subvolume with
// this ID, in one lookup. A destroyed one is gone at once, although the kernel
// keeps its root item until the cleaner has dropped its files: what is looked up
// is the reference of the directory entry (ROOT_BACKREF), which destroying
// removes, while the count in the root item is stale until the next commit.
func Exists(path string, subvolID uint64) (bool, error) {
	if subvolID == topLevelSubvol {
		return true, nil // the one that no entry refers to
	}
	var found bool
	err := withDir("look up subvolume in", path, func(fd int) (err error) {
		_, found, err = findFirst(fd, rootTree,
			itemKey{subvolID, rootBackrefKey, 0}, itemKey{subvolID, rootBackrefKey, ^uint64(0)})
		return err
	})
	return found, err
}

// WalkSubvolumeIDs calls fn with the ID of every live subvolume of the filesystem
// around path in rising order, the top level (5) left out. It reads the root tree
// once, in bounded memory; subvolumes made or destroyed meanwhile may or may not
// be seen. It ends with the first error of fn.
func WalkSubvolumeIDs(path string, fn func(id uint64) error) error {
	return walkRoots(path, rootBackrefKey, func(k itemKey) error { return fn(k.objectID) })
}

// WalkTreeIDs is WalkSubvolumeIDs with the destroyed subvolumes whose files the
// cleaner has not dropped yet: their root item is there, and their qgroup is
// still needed.
func WalkTreeIDs(path string, fn func(id uint64) error) error {
	return walkRoots(path, rootItemKey, func(k itemKey) error { return fn(k.objectID) })
}

// DyingIDs returns those that WalkTreeIDs has and WalkSubvolumeIDs has not: destroyed
// subvolumes that the cleaner is at.
func DyingIDs(path string) ([]uint64, error) {
	dying := map[uint64]struct{}{}
	err := errors.Join(
		WalkTreeIDs(path, func(id uint64) error { dying[id] = struct{}{}; return nil }),
		WalkSubvolumeIDs(path, func(id uint64) error { delete(dying, id); return nil }))
	return slices.Collect(maps.Keys(dying)), err
}

// TreeExists is Exists for the same: it reports whether the root item is there.
func TreeExists(path string, subvolID uint64) (bool, error) {
	var found bool
	err := withDir("look up tree in", path, func(fd int) (err error) {
		_, found, err = findFirst(fd, rootTree,
			itemKey{subvolID, rootItemKey, 0}, itemKey{subvolID, rootItemKey, ^uint64(0)})
		return err
	})
	return found, err
}

// CreatedTransid returns the transaction that made a subvolume of the filesystem
// around path, by ID, as SubvolumeInfo has it. Errors: fs.ErrNotExist.
func CreatedTransid(path string, subvolID uint64) (transid uint64, err error) {
	err = withDir("look up creation in", path, func(fd int) error {
		item, found, err := findFirst(fd, rootTree,
			itemKey{subvolID, rootItemKey, 0}, itemKey{subvolID, rootItemKey, ^uint64(0)})
		if err == nil && !found {
			err = unix.ENOENT
		}
		if err == nil {
			transid, err = item.uint64(rootItemOtransid)
		}
		return err
	})
	return transid, err
}

// rootItemOtransid is where otransid lies in a root item.
const rootItemOtransid = 303

// walkRoots calls fn with the keys of the items of a type of all subvolumes.
func walkRoots(path string, itemType uint32, fn func(itemKey) error) error {
	return eachRoot(path, firstFree, itemType, func(item treeItem) error { return fn(item.itemKey) })
}

// eachRoot is walkRoots with the items themselves, for the subvolumes with an ID of at
// least from.
func eachRoot(path string, from uint64, itemType uint32, fn func(treeItem) error) error {
	return withDir("walk subvolumes of", path, func(fd int) error {
		search := searchTree(fd, rootTree,
			itemKey{from, 0, 0}, itemKey{lastFree, rootBackrefKey, ^uint64(0)}, bulkBuffer)
		for {
			item, ok, err := search.next()
			if err != nil || !ok {
				return err
			}
			if item.itemType != itemType {
				continue
			}
			if err := fn(item); err != nil {
				return err
			}
		}
	})
}

// cString is the text in a buffer up to its first NUL.
func cString(b []byte) string {
	if i := bytes.IndexByte(b, 0); i >= 0 {
		b = b[:i]
	}
	return string(b)
}
