package btrfs

import (
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// destroyRounds limits how often a subvolume is emptied again because a new nested
// subvolume appeared. Without the limit, a process that keeps creating them would block
// Destroy forever.
const destroyRounds = 16

// Destroy removes a subvolume and all subvolumes nested in it. The cost depends only on the
// number of these subvolumes: the kernel's cleaner removes the files later. A power cut
// undoes the removal until Sync of the directory that contained the subvolume.
//
// Destroy clears the read-only flag of a subvolume that contains others, and the immutable
// and append-only flags of roots and of directories that contain nested subvolumes. After
// an error some nested subvolumes may be gone and some flags cleared. Another call
// continues from there.
//
// Errors: fs.ErrNotExist; ErrNotSubvolume; EDQUOT when the subvolume is at its limit and
// contains nested ones (lift the limit first); ErrInUse while one of the subvolumes is
// sent, has an active swap file, or is the default subvolume; ENOTEMPTY when another
// process keeps creating nested ones. When ErrInUse concerns the outer subvolume, nothing
// has been removed.
func Destroy(path string) error {
	return withEntry("destroy subvolume", path, func(dir int, name string) error {
		volume, err := openDirAt(dir, name)
		if err != nil {
			return err
		}
		defer unix.Close(volume)
		info, err := subvolInfo(volume)
		if err != nil {
			return err
		}
		for round := 0; ; round++ {
			err := destroyEntry(dir, name, func() error { return clearProtection(volume, volume) })
			if !errors.Is(err, unix.ENOTEMPTY) || round == destroyRounds {
				return err
			}
			if err := destroyNested(dir, info.treeID); err != nil {
				return err
			}
		}
	})
}

// nestedSubvolume is a nested subvolume that destroyNested has yet to remove.
type nestedSubvolume struct {
	id     uint64
	parent uint64
	listed bool // its children are on the stack above it, or gone
	rounds int
}

// destroyNested removes all subvolumes nested in a subvolume, the innermost first. It uses
// IDs and file handles, no paths and no recursion, because users choose the depth. It opens
// at most three descriptors at a time.
func destroyNested(mount int, volume uint64) error {
	stack, err := pushNested(nil, mount, volume)
	for err == nil && len(stack) > 0 {
		top := &stack[len(stack)-1]
		if !top.listed {
			top.listed = true
			stack, err = pushNested(stack, mount, top.id)
			continue
		}
		err = destroyOne(mount, *top)
		if errors.Is(err, unix.ENOTEMPTY) && top.rounds < destroyRounds {
			top.listed, err = false, nil
			top.rounds++
			continue
		}
		stack = stack[:len(stack)-1]
	}
	return err
}

// pushNested pushes the direct children of a subvolume, or none when the subvolume is gone.
func pushNested(stack []nestedSubvolume, mount int, parent uint64) ([]nestedSubvolume, error) {
	fd, err := openInode(mount, parent, firstFree)
	if isNotFound(err) {
		return stack, nil
	}
	if err != nil {
		return stack, err
	}
	defer unix.Close(fd)
	err = eachRootRef(fd, func(ref rootRef) {
		stack = append(stack, nestedSubvolume{id: ref.treeID, parent: parent})
	})
	return stack, err
}

// destroyOne removes a nested subvolume that contains no other. It removes by name in the
// parent directory. Removal by ID is no alternative: the kernel then builds the path from
// the root of the filesystem, and fails with ENAMETOOLONG beyond PATH_MAX.
func destroyOne(mount int, nested nestedSubvolume) error {
	child, err := openInode(mount, nested.id, firstFree)
	if isNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(child)
	info, err := subvolInfo(child)
	if err != nil {
		return err
	}
	// The subvolume was moved out of the volume meanwhile. It stays.
	if info.parentID != nested.parent {
		return nil
	}
	dir, err := openInode(mount, nested.parent, info.dirID)
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	err = destroyEntry(dir, cString(info.name[:]), func() error {
		return unprotect(mount, nested.parent, dir, child)
	})
	if isNotFound(err) {
		return nil
	}
	return err
}

// unprotect clears the flags that forbid the removal of child from dir. The directory dir
// lies in the subvolume parent.
func unprotect(mount int, parent uint64, dir, child int) error {
	root, err := openInode(mount, parent, firstFree)
	if err != nil {
		return err
	}
	defer unix.Close(root)
	if err := setReadOnly(root, false); err != nil {
		return err
	}
	if err := clearProtection(root, dir); err != nil {
		return err
	}
	return clearProtection(child, child)
}

// protection is the set of inode flags that forbid changes even to root.
const protection = fsImmutable | fsAppend

// clearProtection clears the protection of dir, a directory of the subvolume root. It
// clears the read-only flag of the subvolume first, since nothing in a read-only subvolume
// can be changed. If dir has no protection, the subvolume stays read-only.
func clearProtection(root, dir int) error {
	flags, err := inodeFlags(dir)
	if err != nil || flags&protection == 0 {
		return err
	}
	if err := setReadOnly(root, false); err != nil {
		return err
	}
	return changeInodeFlags(dir, 0, protection)
}

// destroyEntry removes the subvolume with this name from an open directory. When the kernel
// forbids it, destroyEntry calls unprotect and tries once more.
func destroyEntry(dir int, name string, unprotect func() error) error {
	err := snapDestroy(dir, name)
	if !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.EROFS) {
		return err
	}
	if uerr := unprotect(); uerr != nil {
		return errors.Join(err, uerr)
	}
	if err = snapDestroy(dir, name); errors.Is(err, unix.EPERM) {
		return fmt.Errorf("%w: %w", ErrInUse, err)
	}
	return err
}

func snapDestroy(dir int, name string) error {
	var args volArgsV2
	if len(name) > volNameMax {
		return unix.ENAMETOOLONG
	}
	copy(args.name[:], name)
	_, err := ioctl(dir, iocSnapDestroyV2, unsafe.Pointer(&args))
	return err
}
