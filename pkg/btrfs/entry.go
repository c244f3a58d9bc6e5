package btrfs

import (
	"encoding/binary"
	"fmt"
	"os"
	"path"
	"unsafe"

	"golang.org/x/sys/unix"
)

// emptySubvolumeInode is the inode number of a stub (BTRFS_EMPTY_SUBVOL_DIR_OBJECTID).
const emptySubvolumeInode = 2

// IsStub reports whether path is a stub: the empty directory that a snapshot has in place
// of a subvolume nested in its source. The subvolume itself stays in the source. Nothing
// can be created in a stub, and rmdir(2) removes it. Errors: fs.ErrNotExist.
func IsStub(path string) (bool, error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return false, fmt.Errorf("stat %q: %w", path, err)
	}
	return st.Ino == emptySubvolumeInode && st.Mode&unix.S_IFMT == unix.S_IFDIR, nil
}

// Around returns the ID of the subvolume that contains the directory at path.
func Around[D Dir](dir D) (id uint64, err error) {
	err = withDir("subvolume around", dir, func(fd int) error {
		var args subvolInfoArgs
		_, err := ioctl(fd, iocGetSubvolInfo, unsafe.Pointer(&args))
		id = args.treeID
		return err
	})
	return id, err
}

// Entry is the directory entry of a subvolume.
type Entry struct {
	ID        uint64 // of the subvolume
	Parent    uint64 // the subvolume that contains the entry
	Directory uint64 // inode number in Parent
	Name      string
}

// TopLevel is the ID of the subvolume that contains all others.
const TopLevel = topLevelSubvol

// EntriesSince returns the entries of live subvolumes with an ID of at least from, ordered
// by ID, also those that the mount at dir does not reach. Until an unmount every new
// subvolume gets a larger ID than all before. So a caller that knows the largest ID pays
// only for new entries. With from = 0 it reads the root tree once.
func EntriesSince[D Dir](dir D, from uint64) (found []Entry, err error) {
	err = eachRoot(dir, max(from, firstFree), func(item treeItem) error {
		if item.itemType != rootBackrefKey {
			return nil
		}
		directory, name, err := parseRootRef(item.data)
		if err == nil {
			found = append(found, Entry{ID: item.objectID, Parent: item.offset, Directory: directory, Name: name})
		}
		return err
	})
	return found, err
}

// parseRootRef reads a struct btrfs_root_ref: directory, sequence number, length of the
// name, name.
func parseRootRef(data []byte) (directory uint64, name string, err error) {
	const lengthAt = 16
	if name, err = parseName(data, lengthAt); err != nil {
		return 0, "", err
	}
	return binary.LittleEndian.Uint64(data), name, nil
}

// parseName reads a name whose length precedes it at lengthAt.
func parseName(data []byte, lengthAt int) (string, error) {
	head := lengthAt + 2
	if len(data) < head || len(data) < head+int(binary.LittleEndian.Uint16(data[lengthAt:])) {
		return "", fmt.Errorf("reference of %d bytes: %w", len(data), unix.EUCLEAN)
	}
	return string(data[head : head+int(binary.LittleEndian.Uint16(data[lengthAt:]))]), nil
}

// OpenDirectory opens a directory by subvolume and inode number, also one that the mount at
// dir does not reach. Errors: fs.ErrNotExist.
func OpenDirectory[D Dir](dir D, subvolume, inode uint64) (opened *os.File, err error) {
	err = withDir("open in", dir, func(mount int) error {
		fd, err := openInode(mount, subvolume, inode)
		if err == nil {
			opened = os.NewFile(uintptr(fd), fmt.Sprintf("inode %d of subvolume %d", inode, subvolume))
		}
		return err
	})
	return opened, err
}

// ParentDirectory returns the inode number of a directory's parent in the same subvolume,
// and the directory's name in it. Errors: fs.ErrNotExist for the root of a subvolume.
func ParentDirectory[D Dir](dir D, subvolume, inode uint64) (parent uint64, name string, err error) {
	err = withDir("look up parent in", dir, func(fd int) error {
		item, found, err := findFirst(fd, subvolume,
			itemKey{inode, inodeRefKey, 0}, itemKey{inode, inodeRefKey, ^uint64(0)})
		if err == nil && (!found || item.offset == inode) { // a root is its own parent
			err = unix.ENOENT
		}
		if err != nil {
			return err
		}
		parent = item.offset
		name, err = parseName(item.data, inodeRefLengthAt)
		return err
	})
	return parent, name, err
}

// inodeRefLengthAt is the offset of the name's length in a struct btrfs_inode_ref.
const inodeRefLengthAt = 8

// PathOf returns the path of a subvolume from the top level of the filesystem around
// dir, as under subvolid=5. Errors: fs.ErrNotExist; ENAMETOOLONG when the kernel's
// buffer is too short.
func PathOf[D Dir](dir D, subvolume uint64) (found string, err error) {
	err = withDir("path of subvolume in", dir, func(fd int) error {
		found, err = pathFromTop(fd, subvolume)
		return err
	})
	return found, err
}

// PathFromTop is PathOf for any directory.
func PathFromTop[D Dir](dir D) (found string, err error) {
	err = withDir("path from the top level of", dir, func(fd int) error {
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			return err
		}
		args := inoLookupArgs{objectID: st.Ino} // treeID 0: the kernel takes the subvolume of fd and returns its ID
		if _, err := ioctl(fd, iocInoLookup, unsafe.Pointer(&args)); err != nil {
			return err
		}
		found, err = pathFromTop(fd, args.treeID)
		found = path.Join(found, cString(args.name[:]))
		return err
	})
	return found, err
}

func pathFromTop(fd int, subvolume uint64) (found string, err error) {
	var in string
	for id := subvolume; id != topLevelSubvol; {
		if id, in, err = pathIn(fd, id); err != nil {
			return "", err
		}
		found = path.Join(in, found)
	}
	return found, nil
}

// pathIn returns the parent of a subvolume, and the path of the subvolume in its parent.
func pathIn(fd int, subvolume uint64) (parent uint64, in string, err error) {
	ref, found, err := findFirst(fd, rootTree, itemKey{subvolume, rootBackrefKey, 0}, itemKey{subvolume, rootBackrefKey, ^uint64(0)})
	if err == nil && !found {
		err = unix.ENOENT
	}
	if err != nil {
		return 0, "", err
	}
	directory, name, err := parseRootRef(ref.data)
	if err != nil {
		return 0, "", err
	}
	args := inoLookupArgs{treeID: ref.offset, objectID: directory}
	_, err = ioctl(fd, iocInoLookup, unsafe.Pointer(&args))
	return ref.offset, path.Join(cString(args.name[:]), name), err
}
