package driver

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
)

// targetMode is the mode of a target directory. Pods see the volume's own.
const targetMode = 0o750

// pathOnly opens for a look at what is there, not into it.
const pathOnly = unix.O_PATH | unix.O_CLOEXEC

// targets are the places where volumes may be mounted: below the kubelet's
// directory, by a path without symbolic links. The driver is root, so a link
// that a pod put there would have it mount, unmount or remove directories
// anywhere on the node.
type targets struct {
	given    string // as the kubelet writes it
	resolved string // without symbolic links, as the mount table tells it
}

func newTargets(kubeletDir string) (*targets, error) {
	if !filepath.IsAbs(kubeletDir) {
		return nil, fmt.Errorf("kubelet directory %q: want an absolute path", kubeletDir)
	}
	given := filepath.Clean(kubeletDir)
	resolved, err := filepath.EvalSymlinks(given)
	if errors.Is(err, fs.ErrNotExist) {
		return &targets{given: given, resolved: given}, nil // no kubelet was here yet
	}
	if err != nil {
		return nil, fmt.Errorf("kubelet directory %s: %w: set it to the kubelet's --root-dir", given, err)
	}
	return &targets{given: given, resolved: resolved}, nil
}

// holds reports whether a path of the mount table is below the kubelet's
// directory.
func (t *targets) holds(path string) bool {
	return strings.HasPrefix(path, strings.TrimSuffix(t.resolved, "/")+"/")
}

// target is a place where a volume may be mounted.
type target struct {
	path string // absolute and resolved, as the mount table tells it
	rel  string // below root
	root string
}

// maxName is the most bytes that a file's name can have (NAME_MAX).
const maxName = 255

// parse checks the words of a path. field names it in the answer.
func (t *targets) parse(field, path string) (target, error) {
	if err := required(field, path); err != nil {
		return target{}, err
	}
	if !filepath.IsAbs(path) || filepath.Clean(path) != path {
		return target{}, invalid("%s %q: want an absolute path without . or .. or doubled slashes", field, path)
	}
	if strings.Contains(path, "\x00") || len(path) >= unix.PathMax ||
		slices.ContainsFunc(strings.Split(path, "/"), func(name string) bool { return len(name) > maxName }) {
		return target{}, invalid("%s %q: no file can have such a name", field, path)
	}
	for _, root := range []string{t.given, t.resolved} {
		if rel, ok := strings.CutPrefix(path, strings.TrimSuffix(root, "/")+"/"); ok {
			return target{path: filepath.Join(t.resolved, rel), rel: rel, root: t.resolved}, nil
		}
	}
	return target{}, invalid("%s %q: want a path below the kubelet's directory %s: set the driver's kubelet directory to the kubelet's --root-dir", field, path, t.given)
}

// open opens what is at the target, mounted or not, for fstat and the like. The
// caller closes it. A symbolic link anywhere below the kubelet's directory is
// answered with INVALID_ARGUMENT, what is absent with fs.ErrNotExist.
func (t target) open() (*os.File, error) { return t.openBelow(t.rel) }

// check fails for a target that open refuses; an absent one will do.
func (t target) check() error {
	f, err := t.open()
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return f.Close()
}

// openParent opens the directory that the target is in, like open.
func (t target) openParent() (*os.File, error) { return t.openBelow(filepath.Dir(t.rel)) }

func (t target) openBelow(rel string) (*os.File, error) {
	root, err := unix.Open(t.root, pathOnly|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: t.root, Err: err}
	}
	defer unix.Close(root)
	fd, err := openBeneath(root, rel)
	if errors.Is(err, unix.ELOOP) || errors.Is(err, unix.EXDEV) {
		return nil, answer(codes.InvalidArgument, "path %q: has a symbolic link below %s: remove the link", t.path, t.root)
	}
	if errors.Is(err, unix.ENOTDIR) {
		return nil, precondition("path %q: has a file where a directory is wanted: move it away", t.path)
	}
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: t.path, Err: err}
	}
	return os.NewFile(uintptr(fd), t.path), nil
}

// openBeneath opens a path below a directory, following no symbolic link: ELOOP.
func openBeneath(dir int, rel string) (int, error) {
	fd, err := unix.Openat2(dir, rel, &unix.OpenHow{
		Flags:   pathOnly,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	})
	if errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EPERM) {
		// A kernel before 5.6, or a seccomp profile that does not know the call.
		return walkBeneath(dir, rel)
	}
	return fd, err
}

// walkBeneath does the same by one openat for each component.
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

// ensureDir makes the target directory, in a parent that is there, and reports
// whether it had to.
func (t target) ensureDir() (made bool, err error) {
	parent, err := t.openParent()
	if errors.Is(err, fs.ErrNotExist) {
		return false, precondition("directory %q is not there: it is the kubelet's to make", filepath.Dir(t.path))
	}
	if err != nil {
		return false, err
	}
	defer parent.Close()
	err = unix.Mkdirat(int(parent.Fd()), filepath.Base(t.path), targetMode)
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return false, &fs.PathError{Op: "mkdir", Path: t.path, Err: err}
	}
	return err == nil, t.checkEmptyDir()
}

// checkEmptyDir fails unless the target is a directory with nothing in it: what
// a mount would hide is somebody's.
func (t target) checkEmptyDir() error {
	at, err := t.open()
	if errors.Is(err, fs.ErrNotExist) {
		return precondition("directory %q is not there: it is the kubelet's to make", t.path)
	}
	if err != nil {
		return err
	}
	defer at.Close()
	dir, err := os.OpenFile(procPath(at), os.O_RDONLY|unix.O_DIRECTORY, 0)
	if errors.Is(err, unix.ENOTDIR) {
		return precondition("%q: a directory is wanted there, found something else: move it away", t.path)
	}
	if err != nil {
		return err
	}
	defer dir.Close()
	if names, _ := dir.Readdirnames(1); len(names) > 0 {
		return precondition("directory %q is not empty, it has %q: a mount would hide that; move it away", t.path, names[0])
	}
	return nil
}

// removeDir removes the target directory. What is absent is no error; a
// directory that has something in it stays, with all of it.
func (t target) removeDir() error {
	parent, err := t.openParent()
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer parent.Close()
	err = unix.Unlinkat(int(parent.Fd()), filepath.Base(t.path), unix.AT_REMOVEDIR)
	switch {
	case errors.Is(err, unix.ENOENT):
		return nil
	case errors.Is(err, unix.ENOTEMPTY), errors.Is(err, unix.ENOTDIR):
		return precondition("%q: an empty directory is wanted there: %v: it is kept; look what it is and move it away", t.path, err)
	case err != nil:
		return &fs.PathError{Op: "rmdir", Path: t.path, Err: err}
	}
	return nil
}

// procPath is a path to what is open, whatever happens to its name.
func procPath(f *os.File) string { return fmt.Sprintf("/proc/self/fd/%d", f.Fd()) }

// place identifies a directory, and tells how it is mounted.
type place struct {
	dev, ino uint64
	flags    flagSet
}

// same reports whether both are one directory. Every btrfs subvolume has a
// device number of its own.
func (p place) same(other place) bool { return p.dev == other.dev && p.ino == other.ino }

// placeOf looks at what is open.
func placeOf(f *os.File) (place, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return place{}, &fs.PathError{Op: "stat", Path: f.Name(), Err: err}
	}
	var sfs unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &sfs); err != nil {
		return place{}, &fs.PathError{Op: "statfs", Path: f.Name(), Err: err}
	}
	return place{uint64(st.Dev), st.Ino, flagSet(sfs.Flags) & allFlags}, nil
}

// placeAt looks at what is at the target.
func (t target) placeAt() (place, error) {
	f, err := t.open()
	if err != nil {
		return place{}, err
	}
	defer f.Close()
	return placeOf(f)
}
