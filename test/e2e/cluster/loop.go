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

// loop is a loop device in use, and its backing file.
type loop struct {
	path   string
	number uint64 // of the device itself
	file   fileID
	device uint64 // the number of the device below it, if it is on one
}

// fileID identifies one file. A path does not: for a loop device of a node that is gone, the kernel shows it
// without the mount point.
type fileID struct{ filesystem, inode uint64 }

func identify(path string) (fileID, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return fileID{}, &fs.PathError{Op: "stat", Path: path, Err: err}
	}
	return fileID{st.Dev, st.Ino}, nil
}

// detachLoops detaches the loop devices on disk images, on files in the filesystems of these images, and on
// such devices. Raw block volumes use them, and when their node is gone nothing else detaches them.
// detachLoops touches no other device.
func detachLoops(images ...string) (err error) {
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		var loops []loop
		// It fails for a device that is being detached, such as that of a pool in a file after the last
		// unmount.
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

// loopsOn returns the loop devices on images, the lower ones first.
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

// filesystemsOn returns the device numbers of a btrfs in stat. Every subvolume has one of its own, as long as
// a file of it is in use. filesystemsOn looks where pools have subvolumes. Another filesystem has none.
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

// mountBtrfs mounts a btrfs at no path, until the returned file is closed.
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
