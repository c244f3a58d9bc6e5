package btrfs

import (
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// destroyRounds bounds how often a subvolume is listed again because a nested
// one appeared after it had been emptied. Only somebody who still writes into it
// can do that, and he must not keep us here forever.
const destroyRounds = 16

// Destroy removes a subvolume and every subvolume nested in it. Its cost depends
// on the number of those alone: files are left to the kernel's cleaner. The
// removal is undone by a power cut until Sync of the directory that contained it.
//
// What stands in the way inside the subvolume is cleared: the read-only flag of
// a subvolume with others in it, immutable and append-only flags of its root and
// of the directories that contain nested ones. After an error some of it may be gone
// and such flags cleared; Destroy again takes up from there.
//
// Errors: fs.ErrNotExist; ErrNotSubvolume; EDQUOT when it is at its limit and holds
// nested ones, lift the limit first; ErrInUse while one of the subvolumes is being
// sent, holds an active swap file or is the default subvolume; ENOTEMPTY when
// somebody keeps creating nested ones. When the kernel does not let go of the subvolume
// itself (ErrInUse), nothing of it is gone.
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

// nestedSubvolume is one on its way out.
type nestedSubvolume struct {
	id     uint64
	parent uint64
	listed bool // its own nested subvolumes are on the stack above it, or gone
	rounds int
}

// destroyNested removes all that is nested in a subvolume, the innermost first.
// It goes by IDs and file handles because whoever nests them chooses the depth:
// no path, no recursion, three descriptors at most.
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

// pushNested adds the direct children of a subvolume, none when it is gone.
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

// destroyOne removes a nested subvolume that contains no other. It does so by name
// in the directory that contains it: to destroy by ID the kernel builds the path
// from the filesystem's root and gives ENAMETOOLONG beyond PATH_MAX.
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
	// Moved out of the volume meanwhile: it is no longer ours to destroy.
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

// unprotect clears what may forbid removing child from dir, which lies in the
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

// protection are the flags of an inode that forbid even root to change it.
const protection = fsImmutable | fsAppend

// clearProtection makes a directory of the subvolume root mutable. The flag of
// the subvolume goes first: nothing can be changed under it, and an inode that
// needs no change leaves it alone.
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

// destroyEntry removes the subvolume with this name from an open directory and
// tries once more after unprotect when the kernel forbids it.
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
