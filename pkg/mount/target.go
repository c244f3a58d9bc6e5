package mount

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// targetMode is the mode of a target directory. A mount hides it.
const targetMode = 0o750

// fileMode is the mode of a target file.
const fileMode = 0o640

// Targets is the set of paths below one directory without symbolic links. This process is
// root: by a symbolic link, a pod could make it mount, unmount or remove directories
// anywhere on the node.
type Targets struct {
	given    string // as the caller writes it
	resolved string // without symbolic links, as in the mount table
}

// NewTargets returns the targets below dir. The directory need not exist yet.
func NewTargets(dir string) (*Targets, error) {
	if !filepath.IsAbs(dir) {
		return nil, fmt.Errorf("%q: want an absolute path", dir)
	}
	given := filepath.Clean(dir)
	resolved, err := filepath.EvalSymlinks(given)
	if errors.Is(err, fs.ErrNotExist) {
		return &Targets{given: given, resolved: given}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", given, err)
	}
	return &Targets{given: given, resolved: resolved}, nil
}

// Contain reports whether a path of the mount table is a target.
func (t *Targets) Contain(path string) bool {
	return strings.HasPrefix(path, strings.TrimSuffix(t.resolved, "/")+"/")
}

// Target is a place for a mount.
type Target struct {
	path string // absolute and resolved, as in the mount table
	rel  string // below root
	root string
}

// maxName is the longest name of a file in bytes (NAME_MAX).
const maxName = 255

// Path returns the path of the target without symbolic links.
func (t Target) Path() string { return t.path }

// Parse returns the target at a path. It checks only the text of the path. Errors:
// ErrInvalid, ErrOutside.
func (t *Targets) Parse(path string) (Target, error) {
	if !filepath.IsAbs(path) || filepath.Clean(path) != path {
		return Target{}, invalid("want an absolute path without . or .. or doubled slashes")
	}
	if strings.Contains(path, "\x00") || len(path) >= unix.PathMax ||
		slices.ContainsFunc(strings.Split(path, "/"), func(name string) bool { return len(name) > maxName }) {
		return Target{}, invalid("no file can have such a name")
	}
	for _, root := range []string{t.given, t.resolved} {
		if rel, ok := strings.CutPrefix(path, strings.TrimSuffix(root, "/")+"/"); ok {
			return Target{path: filepath.Join(t.resolved, rel), rel: rel, root: t.resolved}, nil
		}
	}
	return Target{}, &problem{ErrOutside, "want a path below " + t.given}
}

// Open opens the target for fstat(2) and similar calls, mounted or not. The caller closes
// it. Errors: fs.ErrNotExist; ErrInvalid for a symbolic link below the directory of
// targets; ErrInTheWay for a file instead of a directory.
func (t Target) Open() (*os.File, error) { return t.openBelow(t.rel) }

// Child returns the target called name in the directory at t.
func (t Target) Child(name string) Target {
	return Target{path: filepath.Join(t.path, name), rel: filepath.Join(t.rel, name), root: t.root}
}

// Check returns the error of Open. An absent target is no error.
func (t Target) Check() error {
	f, err := t.Open()
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return f.Close()
}

// openParent is Open for the parent directory of the target.
func (t Target) openParent() (*os.File, error) { return t.openBelow(filepath.Dir(t.rel)) }

func (t Target) openBelow(rel string) (*os.File, error) {
	root, err := unix.Open(t.root, pathOnly|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: t.root, Err: err}
	}
	defer unix.Close(root)
	fd, err := openBeneath(root, rel)
	if errors.Is(err, unix.ELOOP) || errors.Is(err, unix.EXDEV) {
		return nil, invalid("path %q: has a symbolic link below %s: remove the link", t.path, t.root)
	}
	if errors.Is(err, unix.ENOTDIR) {
		return nil, inTheWay("path %q: has a file where a directory is wanted: move it away", t.path)
	}
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: t.path, Err: err}
	}
	return os.NewFile(uintptr(fd), t.path), nil
}

// openBeneath opens a path below a directory. Errors: ELOOP for a symbolic link; EXDEV for
// a path that leaves the directory.
func openBeneath(dir int, rel string) (int, error) {
	fd, err := unix.Openat2(dir, rel, &unix.OpenHow{
		Flags:   pathOnly,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	})
	if errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EPERM) {
		// The kernel is older than 5.6, or a seccomp profile does not know the call.
		return walkBeneath(dir, rel)
	}
	return fd, err
}

// walkBeneath is openBeneath with one openat(2) for each component.
func walkBeneath(dir int, rel string) (int, error) {
	at, err := unix.Openat(dir, ".", pathOnly, 0)
	if err != nil {
		return -1, err
	}
	for _, name := range strings.Split(rel, "/") {
		if name == ".." {
			_ = unix.Close(at)
			return -1, unix.EXDEV
		}
		next, err := openNoLink(at, name)
		_ = unix.Close(at)
		if err != nil {
			return -1, err
		}
		at = next
	}
	return at, nil
}

func openNoLink(dir int, name string) (int, error) {
	fd, err := unix.Openat(dir, name, pathOnly|unix.O_NOFOLLOW, 0)
	if err != nil {
		return -1, err
	}
	var st unix.Stat_t
	if err = unix.Fstat(fd, &st); err == nil && st.Mode&unix.S_IFMT == unix.S_IFLNK {
		err = unix.ELOOP
	}
	if err != nil {
		_ = unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// EnsureDir creates the target directory and reports whether it was absent. Errors:
// ErrInTheWay when the parent is absent or the target is not an empty directory.
func (t Target) EnsureDir() (made bool, err error) {
	parent, err := t.openParent()
	if errors.Is(err, fs.ErrNotExist) {
		return false, inTheWay("directory %q is not there: create it first", filepath.Dir(t.path))
	}
	if err != nil {
		return false, err
	}
	defer parent.Close()
	err = unix.Mkdirat(int(parent.Fd()), filepath.Base(t.path), targetMode)
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return false, &fs.PathError{Op: "mkdir", Path: t.path, Err: err}
	}
	return err == nil, t.CheckEmptyDir()
}

// EnsureFile creates the target as an empty file, over which a device can be mounted, and
// reports whether it was absent. Errors: ErrInTheWay when the parent is absent or the target
// is not an empty file.
func (t Target) EnsureFile() (made bool, err error) {
	parent, err := t.openParent()
	if errors.Is(err, fs.ErrNotExist) {
		return false, inTheWay("directory %q is not there: create it first", filepath.Dir(t.path))
	}
	if err != nil {
		return false, err
	}
	defer parent.Close()
	fd, err := unix.Openat(int(parent.Fd()), filepath.Base(t.path), unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_CLOEXEC, fileMode)
	if err == nil {
		return true, unix.Close(fd)
	}
	if !errors.Is(err, unix.EEXIST) {
		return false, &fs.PathError{Op: "create", Path: t.path, Err: err}
	}
	is, err := t.isEmptyFile()
	if err == nil && !is {
		err = inTheWay("%q: an empty file is wanted there, found something else: move it away", t.path)
	}
	return false, err
}

// isEmptyFile reports whether the target is an empty regular file.
func (t Target) isEmptyFile() (bool, error) {
	f, err := t.Open()
	if err != nil {
		return false, err
	}
	defer f.Close()
	is, err := f.Stat()
	return err == nil && is.Mode().IsRegular() && is.Size() == 0, err
}

// CheckEmptyDir returns ErrInTheWay unless the target is an empty directory: a mount would
// hide the user's files.
func (t Target) CheckEmptyDir() error {
	at, err := t.Open()
	if errors.Is(err, fs.ErrNotExist) {
		return inTheWay("directory %q is not there: create it first", t.path)
	}
	if err != nil {
		return err
	}
	defer at.Close()
	dir, err := os.OpenFile(procPath(at), os.O_RDONLY|unix.O_DIRECTORY, 0)
	if errors.Is(err, unix.ENOTDIR) {
		return inTheWay("%q: a directory is wanted there, found something else: move it away", t.path)
	}
	if err != nil {
		return err
	}
	defer dir.Close()
	if names, _ := dir.Readdirnames(1); len(names) > 0 {
		return inTheWay("directory %q is not empty, it has %q: a mount would hide that; move it away", t.path, names[0])
	}
	return nil
}

// Remove removes the target, an empty directory or an empty file. An absent target is no error.
// Anything else stays, with ErrInTheWay.
func (t Target) Remove() error {
	parent, err := t.openParent()
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer parent.Close()
	err = unix.Unlinkat(int(parent.Fd()), filepath.Base(t.path), unix.AT_REMOVEDIR)
	if is, failed := t.isEmptyFile(); errors.Is(err, unix.ENOTDIR) && is && failed == nil {
		err = unix.Unlinkat(int(parent.Fd()), filepath.Base(t.path), 0)
	}
	switch {
	case errors.Is(err, unix.ENOENT):
		return nil
	case errors.Is(err, unix.ENOTEMPTY), errors.Is(err, unix.ENOTDIR):
		return inTheWay("%q: an empty directory or file is wanted there: %v: it is kept; look what it is and move it away", t.path, err)
	case err != nil:
		return &fs.PathError{Op: "rmdir", Path: t.path, Err: err}
	}
	return nil
}

// Place returns the Place of the target.
func (t Target) Place() (Place, error) {
	f, err := t.Open()
	if err != nil {
		return Place{}, err
	}
	defer f.Close()
	return placeOf(f)
}

// BlockDevice returns the device number of the target if it is a block device, else 0. Unlike
// Place it asks no filesystem.
func (t Target) BlockDevice() (uint64, error) {
	f, err := t.Open()
	if err != nil {
		return 0, err
	}
	defer f.Close()
	var st unix.Statx_t
	if err := unix.Statx(int(f.Fd()), "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, unix.STATX_TYPE, &st); err != nil {
		return 0, &fs.PathError{Op: "statx", Path: t.path, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFBLK {
		return 0, nil
	}
	return unix.Mkdev(st.Rdev_major, st.Rdev_minor), nil
}

// Top returns the top mount at the target. The bool is true if the target is the root of
// that mount, and false if it is not mounted or absent.
func (t Target) Top() (Info, bool, error) {
	f, err := t.Open()
	if errors.Is(err, fs.ErrNotExist) {
		return Info{}, false, nil
	}
	if err != nil {
		return Info{}, false, err
	}
	defer f.Close()
	return Of(f)
}
