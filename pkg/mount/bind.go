package mount

import (
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Bind mounts the directory source at a target, with flags. The mount gets them before it
// has a place: where the directory of the targets is shared, as it is with a driver in a
// container, it is the copies in other namespaces that pods see, and a remount, as
// mount(8) sets flags, reaches none of them. The target goes by a descriptor, which
// nobody can put another in the place of.
//
// The mount leaves the peer group of the source's mount. In the group, whatever is
// mounted inside the target later, by a pod with mountPropagation Bidirectional for
// example, would appear in the source too, and at every other target of it. Below a
// shared directory the kernel gives the mount and its copies a group of their own.
func Bind(source string, flags Flags, at Target) error {
	fd, err := unix.OpenTree(unix.AT_FDCWD, source, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_SYMLINK_NOFOLLOW)
	if err != nil {
		return &os.PathError{Op: "open_tree", Path: source, Err: err}
	}
	defer unix.Close(fd) // the mount, too, if it has found no place by then
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

// Unmount takes away the mount on top at a target. umount(8) goes by the path, and
// follows the symbolic links that it has by then.
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
