package cluster

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// loop is a loop device that is in use, and what it is on.
type loop struct {
	path   string
	number uint64 // of the device itself
	file   fileID
	device uint64 // the number of the device that it is on, if that is one
}

// fileID is that of one file alone. A path does not: the kernel shows that of a
// device of a node that is gone without the directory that it was mounted at.
type fileID struct{ filesystem, inode uint64 }

func identify(path string) (fileID, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return fileID{}, &fs.PathError{Op: "stat", Path: path, Err: err}
	}
	return fileID{st.Dev, st.Ino}, nil
}

// detachLoops detaches the loop devices on disk images, and those on the files in
// the filesystems of these, and those on such devices: what raw block volumes need
// is on loop devices that nobody detaches once their node is gone. None that is not
// of these images is touched.
func detachLoops(images ...string) (err error) {
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		var loops []loop
		// Fails for a device that is just being detached, as that of a pool that the
		// driver made in a file is with its last mount.
		loops, err = loopsOn(images)
		if err == nil && len(loops) == 0 {
			return nil
		}
		for _, l := range slices.Backward(loops) {
			err = errors.Join(err, l.detach())
		}
	}
	return errors.Join(errors.New("loop devices are still in use"), err)
}

// loopsOn returns the loop devices that are on images, those below first.
func loopsOn(images []string) ([]loop, error) {
	all, err := allLoops()
	if err != nil {
		return nil, err
	}
	var found []loop
	take := func(is func(loop) bool) {
		for _, l := range all {
			if is(l) {
				found = append(found, l)
			}
		}
		all = slices.DeleteFunc(all, is)
	}
	for _, image := range images {
		id, err := identify(image)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		} else if err != nil {
			return nil, err
		}
		take(func(l loop) bool { return l.file == id })
	}
	for i := 0; i < len(found) && len(all) > 0; i++ {
		filesystems, err := filesystemsOn(found[i].path)
		if err != nil {
			return nil, err
		}
		take(func(l loop) bool { return filesystems[l.file.filesystem] || l.device == found[i].number })
	}
	return found, nil
}

func allLoops() ([]loop, error) {
	used, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		return nil, err
	}
	var loops []loop
	for _, path := range used {
		l := loop{path: "/dev/" + strings.Split(path, "/")[3]}
		switch err := l.read(); {
		case errors.Is(err, unix.ENXIO) || errors.Is(err, fs.ErrNotExist): // detached meanwhile
		case err != nil:
			return nil, fmt.Errorf("loop device %s: %w", l.path, err)
		default:
			loops = append(loops, l)
		}
	}
	return loops, nil
}

func (l *loop) read() error {
	f, err := os.Open(l.path)
	if err != nil {
		return err
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return err
	}
	info, err := unix.IoctlLoopGetStatus64(int(f.Fd()))
	if err != nil {
		return err
	}
	l.number, l.file, l.device = st.Rdev, fileID{info.Device, info.Inode}, info.Rdevice
	return nil
}

func (l *loop) detach() error {
	f, err := os.Open(l.path)
	if err == nil {
		err = unix.IoctlSetInt(int(f.Fd()), unix.LOOP_CLR_FD, 0)
		f.Close()
	}
	if err != nil && !errors.Is(err, unix.ENXIO) {
		return fmt.Errorf("detach %s: %w", l.path, err)
	}
	return nil
}

// filesystemsOn returns what stat calls the filesystems of a btrfs: every subvolume
// has a number of its own, which lasts as long as a file of it is in use. They are
// looked for where pools have subvolumes. What is no btrfs has none.
func filesystemsOn(device string) (map[uint64]bool, error) {
	mount, err := mountBtrfs(device)
	if errors.Is(err, unix.EINVAL) {
		return nil, nil
	} else if err != nil {
		return nil, fmt.Errorf("btrfs on %s: %w", device, err)
	}
	defer mount.Close()
	top := fmt.Sprintf("/proc/self/fd/%d", mount.Fd())
	subvolumes, err := filepath.Glob(top + "/*/*/fs")
	if err != nil {
		return nil, err
	}
	found := map[uint64]bool{}
	for _, path := range append(subvolumes, top) {
		id, err := identify(path)
		if err != nil {
			return nil, err
		}
		found[id.filesystem] = true
	}
	return found, nil
}

// mountBtrfs mounts a btrfs where nobody sees it, until it is closed.
func mountBtrfs(device string) (*os.File, error) {
	context, err := unix.Fsopen("btrfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, err
	}
	defer unix.Close(context)
	if err := unix.FsconfigSetString(context, "source", device); err != nil {
		return nil, err
	}
	if err := unix.FsconfigCreate(context); err != nil {
		return nil, err
	}
	mount, err := unix.Fsmount(context, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(mount), device), nil
}
