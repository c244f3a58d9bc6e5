package mount

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// Source is what a mount shows. It returns a mount that is not attached anywhere.
type Source func() (*os.File, error)

// Path is the Source of the directory or device at a path, which must not be a symbolic link.
func Path(path string) Source {
	return func() (*os.File, error) { return Clone(path) }
}

// Clone returns the directory or device at a path, on a mount of its own that is attached
// nowhere. A file that is opened below it keeps that mount, and not the one at the path busy.
func Clone(path string) (*os.File, error) {
	fd, err := unix.OpenTree(unix.AT_FDCWD, path, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_SYMLINK_NOFOLLOW)
	if err != nil {
		return nil, &os.PathError{Op: "open_tree", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

// Disk is the Source of the filesystem on a block device. While the filesystem is mounted
// somewhere it is the same one again, and options have no effect.
func Disk(device, filesystem string, options ...string) Source {
	return func() (*os.File, error) {
		f, err := mountDisk(device, filesystem, options)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EUCLEAN) || errors.Is(err, unix.EBADMSG) {
			err = fmt.Errorf("%w: %w; the kernel's log says more", ErrNoFilesystem, err)
		}
		if err != nil {
			return nil, fmt.Errorf("mount %s as %s: %w", device, filesystem, err)
		}
		return f, nil
	}
}

func mountDisk(device, filesystem string, options []string) (*os.File, error) {
	fd, err := unix.Fsopen(filesystem, unix.FSOPEN_CLOEXEC)
	if errors.Is(err, unix.ENODEV) {
		return nil, fmt.Errorf("the kernel has no %s (modprobe %s): %w", filesystem, filesystem, err)
	}
	if err != nil {
		return nil, os.NewSyscallError("fsopen", err)
	}
	defer unix.Close(fd)
	err = unix.FsconfigSetString(fd, "source", device)
	for _, option := range options {
		if err == nil {
			err = unix.FsconfigSetFlag(fd, option)
		}
	}
	if err == nil {
		err = unix.FsconfigCreate(fd)
	}
	if err != nil {
		return nil, explained(fd, err)
	}
	tree, err := unix.Fsmount(fd, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return nil, explained(fd, err)
	}
	return os.NewFile(uintptr(tree), device), nil
}

// explained adds what the kernel says about an error.
func explained(fd int, err error) error {
	var lines []string
	buffer := make([]byte, 4096)
	for {
		n, failed := unix.Read(fd, buffer)
		if failed != nil || n <= 0 {
			break
		}
		line := string(bytes.TrimSpace(buffer[:n])) // "e text" for an error
		if _, text, is := strings.Cut(line, " "); is {
			line = text
		}
		lines = append(lines, line)
	}
	if len(lines) == 0 {
		return err
	}
	return fmt.Errorf("%w: %s", err, strings.Join(lines, "; "))
}
