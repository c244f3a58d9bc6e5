package diskfile

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
)

// Name is the name of the file.
const Name = "disk"

// mode is the mode of the file. Its directory is no one's but the driver's.
const mode = 0o600

// ErrNotRegular means that something else has the name of the file.
var ErrNotRegular = errors.New("not a regular file")

// Make makes the file of size bytes in dir, with a filesystem as content says. It replaces a
// file that an earlier call left. The file inherits the properties of dir. It is durable
// after Sync.
func Make(dir string, content meta.Content, size int64) error {
	path := filepath.Join(dir, Name)
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, mode)
	if err != nil {
		return &fs.PathError{Op: "open", Path: path, Err: err}
	}
	f := os.NewFile(uintptr(fd), path)
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		return err
	}
	if err := format(f, content); err != nil {
		return err
	}
	if err := unix.Linkat(unix.AT_FDCWD, procPath(fd), unix.AT_FDCWD, path, unix.AT_SYMLINK_FOLLOW); err != nil {
		return &fs.PathError{Op: "link", Path: path, Err: err}
	}
	return nil
}

func procPath(fd int) string { return fmt.Sprintf("/proc/self/fd/%d", fd) }

// mkfs has the command that makes each filesystem.
//
// The blocks and sectors are those of the loop device. ext4 has no blocks that only root may
// take, and becomes read-only at an error, rather than to go on with what it could not write.
// Both discard first, which lets mkfs.ext4 know that it need not write zeros to its tables.
var mkfs = map[meta.Content][]string{
	meta.Ext4: {"mkfs.ext4", "-q", "-F", "-b", "4096", "-m", "0", "-e", "remount-ro"},
	meta.XFS:  {"mkfs.xfs", "-q", "-f", "-s", "size=4096"},
}

// format makes the filesystem in a new file without a name.
func format(f *os.File, content meta.Content) error {
	args := mkfs[content]
	if args == nil {
		return nil
	}
	command := exec.Command(args[0], append(args[1:len(args):len(args)], procPath(3))...)
	command.ExtraFiles = []*os.File{f}
	command.Env = append(os.Environ(), "LC_ALL=C")
	out, err := command.CombinedOutput()
	if err == nil {
		return nil
	}
	text, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n") // mkfs.xfs shows its usage below
	for _, errno := range []unix.Errno{unix.ENOSPC, unix.EDQUOT, unix.EROFS, unix.EIO} {
		if strings.Contains(strings.ToLower(text), errno.Error()) {
			err = errno // of the file, which the request's answer depends on
		}
	}
	return fmt.Errorf("%s: %w: %s", args[0], err, text)
}

// Open opens the file in dir. It fails for anything else of that name. write says whether it
// can be written.
func Open(dir string, write bool) (*os.File, error) {
	return openAt(unix.AT_FDCWD, filepath.Join(dir, Name), write)
}

// OpenAt is Open for a file at a path relative to an open directory.
func OpenAt(dir *os.File, rel string, write bool) (*os.File, error) {
	return openAt(int(dir.Fd()), filepath.Join(rel, Name), write)
}

func openAt(dir int, path string, write bool) (*os.File, error) {
	flags := unix.O_RDONLY
	if write {
		flags = unix.O_RDWR
	}
	// O_NONBLOCK: the open of a FIFO does not wait.
	fd, err := unix.Openat(dir, path, flags|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ELOOP) || errors.Is(err, unix.EISDIR) || errors.Is(err, unix.ENXIO) {
		return nil, fmt.Errorf("%s: %w", path, ErrNotRegular)
	}
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	f := os.NewFile(uintptr(fd), path)
	if is, err := f.Stat(); err != nil || !is.Mode().IsRegular() {
		f.Close()
		return nil, errors.Join(err, fmt.Errorf("%s: %w", path, ErrNotRegular))
	}
	return f, nil
}

// Size returns the size of the file in dir.
func Size(dir string) (int64, error) {
	f, err := Open(dir, false)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	is, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return is.Size(), nil
}

// Grow makes the file in dir at least size bytes large. It never shrinks it.
func Grow(dir string, size int64) error {
	f, err := Open(dir, true)
	if err != nil {
		return err
	}
	defer f.Close()
	is, err := f.Stat()
	if err != nil || is.Size() >= size {
		return err
	}
	return f.Truncate(size)
}

// Sync makes the file in dir durable, with its name.
func Sync(dir string) error {
	f, err := Open(dir, false)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}
