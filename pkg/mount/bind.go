package mount

import (
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Bind mounts the directory source at a target, with flags. The mount gets its flags before
// it is attached: if the directory of targets is shared, as in a container, pods see copies
// of the mount, which a later remount (mount(8)) would not reach. The target is opened once
// and used by its descriptor, so nobody can replace it meanwhile.
//
// The mount is private, outside of the peer group of the source's mount. In that group,
// everything mounted inside the target later, for example by a pod with mountPropagation
// Bidirectional, would also appear in the source and at its other targets. Below a shared
// directory the kernel puts the mount and its copies into a new peer group.
func Bind(source string, flags Flags, at Target) error {
	fd, err := unix.OpenTree(unix.AT_FDCWD, source, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_SYMLINK_NOFOLLOW)
	if err != nil {
		return &os.PathError{Op: "open_tree", Path: source, Err: err}
	}
	defer unix.Close(fd) // also removes the mount if it was not attached
	attr := flags.attributes()
	attr.Propagation = unix.MS_PRIVATE
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &attr); err != nil {
		return fmt.Errorf("set flags %s: %w", flags, err)
	}
	place, err := at.Open()
	if err != nil {
		return err
	}
	defer place.Close()
	if err := unix.MoveMount(fd, "", int(place.Fd()), "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH); err != nil {
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
