package btrfs

import (
	"bytes"
	"encoding/hex"
	"maps"
	"slices"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// UUID is a btrfs UUID in the byte order of the disk.
type UUID [16]byte

// String returns the usual form of 36 characters, or "" for the zero UUID, which btrfs uses
// for "none".
func (u UUID) String() string {
	if u == (UUID{}) {
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

// IsZero reports whether u is the zero UUID.
func (u UUID) IsZero() bool { return u == UUID{} }

// SubvolumeInfo is what btrfs stores about a subvolume.
type SubvolumeInfo struct {
	ID           uint64
	UUID         UUID
	ParentUUID   UUID // source of this snapshot; zero for none
	ReceivedUUID UUID // subvolume that was received; zero for none
	// Generation is the transaction of the last committed change.
	Generation uint64
	// CreatedTransid (otransid) is the transaction that created the subvolume. All
	// snapshots of one transaction show the same instant.
	CreatedTransid uint64
	Created        time.Time
	ReadOnly       bool
}

// Info returns what btrfs stores about the subvolume at path (GET_SUBVOL_INFO), at a
// constant cost. Errors: ErrNotSubvolume, fs.ErrNotExist.
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

// Exists reports whether the filesystem around dir has a live subvolume with this ID. It
// looks up the reference from the directory entry (ROOT_BACKREF), which a destroy removes
// at once. The root item stays until the cleaner has dropped the files, with a reference
// count that is stale until the next commit.
func Exists[D Dir](dir D, subvolID uint64) (bool, error) {
	if subvolID == topLevelSubvol {
		return true, nil // the top level has no entry
	}
	var found bool
	err := withDir("look up subvolume in", dir, func(fd int) (err error) {
		_, found, err = findFirst(fd, rootTree,
			itemKey{subvolID, rootBackrefKey, 0}, itemKey{subvolID, rootBackrefKey, ^uint64(0)})
		return err
	})
	return found, err
}

// WalkSubvolumeIDs calls fn with the ID of every live subvolume of the filesystem around
// dir, in rising order, without the top level (5). It reads the root tree once in constant
// memory, and may miss concurrent changes. It stops at the first error of fn and returns
// it.
func WalkSubvolumeIDs[D Dir](dir D, fn func(id uint64) error) error {
	return eachRoot(dir, firstFree, func(item treeItem) error {
		if item.itemType != rootBackrefKey {
			return nil
		}
		return fn(item.objectID)
	})
}

// Trees returns the IDs of all subvolumes: true for live ones, false for destroyed ones that the
// cleaner has not dropped yet. These still have root items and need their qgroups. It reads the
// root tree once.
func Trees[D Dir](dir D) (map[uint64]bool, error) {
	live := map[uint64]bool{}
	err := eachRoot(dir, firstFree, func(item treeItem) error {
		switch item.itemType {
		case rootItemKey:
			live[item.objectID] = false
		case rootBackrefKey:
			live[item.objectID] = true
		}
		return nil
	})
	return live, err
}

// DyingIDs returns the IDs of destroyed subvolumes that the cleaner has not dropped yet.
func DyingIDs[D Dir](dir D) ([]uint64, error) {
	trees, err := Trees(dir)
	maps.DeleteFunc(trees, func(_ uint64, live bool) bool { return live })
	return slices.Collect(maps.Keys(trees)), err
}

// TreeExists is Exists that also finds subvolumes in DyingIDs.
func TreeExists[D Dir](dir D, subvolID uint64) (bool, error) {
	var found bool
	err := withDir("look up tree in", dir, func(fd int) (err error) {
		_, found, err = findFirst(fd, rootTree,
			itemKey{subvolID, rootItemKey, 0}, itemKey{subvolID, rootItemKey, ^uint64(0)})
		return err
	})
	return found, err
}

// CreatedTransid returns SubvolumeInfo.CreatedTransid of a subvolume by ID. Errors:
// fs.ErrNotExist.
func CreatedTransid[D Dir](dir D, subvolID uint64) (transid uint64, err error) {
	err = withDir("look up creation in", dir, func(fd int) error {
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

// rootItemOtransid is the offset of otransid in a root item.
const rootItemOtransid = 303

// eachRoot calls fn for each item about subvolumes with an ID of at least from: their root
// items, and the references to and from them.
func eachRoot[D Dir](dir D, from uint64, fn func(treeItem) error) error {
	return withDir("walk subvolumes of", dir, func(fd int) error {
		last := itemKey{lastFree, rootBackrefKey, ^uint64(0)}
		for item, err := range searchTree(fd, rootTree, itemKey{from, 0, 0}, last, bulkBuffer) {
			if err == nil {
				err = fn(item)
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
}

// cString returns the text in a buffer up to its first NUL.
func cString(b []byte) string {
	if i := bytes.IndexByte(b, 0); i >= 0 {
		b = b[:i]
	}
	return string(b)
}
