package btrfs

import (
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// destroyRounds limits how often a subvolume is emptied again. Otherwise a process that
// keeps creating nested subvolumes would block Destroy forever.
const destroyRounds = 16

// Destroy removes a subvolume and all subvolumes nested in it. The cost depends only on
// their number, since the kernel's cleaner removes files later. A power cut undoes the
// removal until Sync of the parent directory.
//
// Destroy clears the read-only flag of subvolumes that contain others, and the immutable
// and append-only flags of roots and of directories with nested subvolumes. After an error,
// some flags and nested subvolumes may be gone. Another call continues from there.
//
// Errors: fs.ErrNotExist; ErrNotSubvolume; EDQUOT for a subvolume at its limit with nested
// ones (lift the limit first); ErrInUse while one of them is sent, has an active swap file,
// or is the default subvolume; ENOTEMPTY when another process keeps creating nested ones.
// If ErrInUse concerns the outer subvolume, nothing has been removed.
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

// nestedSubvolume is an entry of the stack in destroyNested.
type nestedSubvolume struct {
	id     uint64
	parent uint64
	listed bool // its children are on the stack above it, or gone
	rounds int
}

// destroyNested removes all subvolumes nested in a subvolume, the innermost first. Users
// choose the depth, so it uses IDs and file handles, no paths, no recursion, and at most
// three descriptors.
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

// destroyOne removes a nested subvolume without children, by name in its parent directory.
// Removal by ID would fail with ENAMETOOLONG beyond PATH_MAX, because the kernel builds the
// path from the filesystem's root.
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

// unprotect clears the flags that forbid removing child from dir, a directory of the
// subvolume parent.
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
// clears the subvolume's read-only flag first, but only if dir has protection.
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

// destroyEntry removes a subvolume from an open directory. When that is forbidden it calls
// unprotect and tries once more.
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
