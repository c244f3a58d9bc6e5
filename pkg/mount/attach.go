package mount

import (
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Attach mounts a source at a target, with flags. The mount gets its flags before
// it is attached: if the directory of targets is shared, as in a container, pods see copies
// of the mount, which a later remount (mount(8)) would not reach. The target is opened once
// and used by its descriptor, so nobody can replace it meanwhile.
//
// The mount is private, outside of the peer group of the source's mount. In that group,
// everything mounted inside the target later, for example by a pod with mountPropagation
// Bidirectional, would also appear in the source and at its other targets. Below a shared
// directory the kernel puts the mount and its copies into a new peer group.
func Attach(source Source, flags Flags, at Target) error {
	tree, err := source()
	if err != nil {
		return err
	}
	defer tree.Close() // also removes the mount if it was not attached
	attr := flags.attributes()
	attr.Propagation = unix.MS_PRIVATE
	if err := unix.MountSetattr(int(tree.Fd()), "", unix.AT_EMPTY_PATH, &attr); err != nil {
		return fmt.Errorf("set flags %s: %w", flags, err)
	}
	place, err := at.Open()
	if err != nil {
		return err
	}
	defer place.Close()
	if err := unix.MoveMount(int(tree.Fd()), "", int(place.Fd()), "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH); err != nil {
		return &os.PathError{Op: "move_mount", Path: at.path, Err: err}
	}
	return nil
}

// Unmount removes the top mount at a target. umount(8) would use the path and follow new
// symbolic links.
func Unmount(at Target) error {
	parent, err := at.openParent()
	if err != nil {
		return err
	}
	defer parent.Close()
	if err := unix.Unmount(filepath.Join(procPath(parent), filepath.Base(at.path)), unix.UMOUNT_NOFOLLOW); err != nil {
		return &os.PathError{Op: "umount", Path: at.path, Err: err}
	}
	return nil
}
