package mount

import (
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// Info is one mount.
type Info struct {
	// Device is that of the filesystem, the same for all subvolumes of a btrfs, of
	// which stat returns another one for each.
	Device uint64
	// Type is that of the filesystem, without the subtype of FUSE.
	Type string
	// Root is the directory that is mounted: its path within its filesystem, or the last one
	// that it had.
	Root string
	// Point is where it is mounted: a path as this process sees it.
	Point string

	id uint64 // as the reader numbers mounts
}

// String returns what is mounted, for people.
func (m Info) String() string { return fmt.Sprintf("%s (%s)", m.Root, m.Type) }

// deletedSuffix is what the kernel appends to the path of a directory that is gone. No
// name has a slash, so no other path ends like that.
const deletedSuffix = "//deleted"

func newInfo(id uint64, major, minor uint32, fsType, root, point string) Info {
	return Info{
		Device: unix.Mkdev(major, minor), Type: fsType, Root: strings.TrimSuffix(root, deletedSuffix), Point: point, id: id,
	}
}

// reader is one way to ask the kernel. Mounts that are not below the root directory of
// this process are not part of the answers.
type reader interface {
	// all returns the mounts in the order in which they were made. One that is there
	// from before the call until after it is among them. Those that are among known,
	// which all has returned before, may be returned as they were then.
	all(known []Info) ([]Info, error)
	// again returns those of mounts that are still there, with their paths of this
	// moment.
	again(mounts []Info) ([]Info, error)
	// of returns the mount that an open file is on.
	of(fd int) (Info, error)
	// options returns those of the filesystem that an open file is on.
	options(fd int) ([]string, error)
}

// errNoMount is the error of a file on a mount that the mount table does not have.
var errNoMount = errors.New("it is on a mount that was taken away, or lies outside of the root directory of this process")

// table keeps what is mounted until the kernel reports a change.
type table struct {
	reader reader

	mu     sync.Mutex // protects what follows
	mounts []Info     // whose paths may be old
	watch  *Watch     // opened before mounts was read; nil: nothing was read yet
}

// system is the mount table of this process.
var system = &table{reader: fastest()}

// Of returns the mount that an open file is on, and whether the file is its root.
func Of(f *os.File) (m Info, top bool, err error) {
	if top, err = isRoot(int(f.Fd()), ""); err != nil {
		return Info{}, false, &os.PathError{Op: "statx", Path: f.Name(), Err: err}
	}
	m, err = named(ask(func() (Info, error) { return system.reader.of(int(f.Fd())) }))
	return m, top, err
}

// Options returns the mount options of the filesystem that an open file is on, as the
// mount table shows them; none where the kernel (Linux 6.8 to 6.10) shows them only together
// with those of all other filesystems. The filesystem may read its disk for them, and the
// kernel keeps the table locked meanwhile. So ask for those of a disk that has just
// answered, and seldom.
func Options(f *os.File) ([]string, error) { return named(system.reader.options(int(f.Fd()))) }

// IsPoint reports whether something is mounted at a path, which may end in a symbolic
// link: that is no mount. It never waits for a disk.
func IsPoint(path string) (bool, error) {
	fd, err := unix.Open(path, pathOnly|unix.O_NOFOLLOW, 0)
	if err != nil {
		return false, &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	is, err := isRoot(fd, "")
	if err != nil {
		return false, &os.PathError{Op: "statx", Path: path, Err: err}
	}
	return is, nil
}

// Inner is a mount of something within a directory.
type Inner struct {
	Info
	// Rel is the path from the directory to what is mounted: empty for the directory
	// itself, else it begins with a slash.
	Rel string
}

// Inside returns the mounts of a directory and of what is below it, wherever they are
// mounted, and through whichever mount path leads there: a mount counts by its root
// within the filesystem. So a directory that lies in another one that is mounted is not
// taken for it.
func Inside(path string) ([]Inner, error) { return named(system.inside(path)) }

// attempts is how often a question is asked again because a rename came between.
const attempts = 10

func (t *table) inside(path string) ([]Inner, error) {
	for range attempts {
		before, err := t.locate(path)
		if err != nil {
			return nil, err
		}
		mounts, err := t.on(before.device)
		if err != nil {
			return nil, err
		}
		after, err := t.locate(path)
		if err == nil && after == before {
			return before.inner(mounts), nil
		}
	}
	return nil, fmt.Errorf("directories above %s are being renamed: it is asked again later", path)
}

// directory is one by its place within its filesystem.
type directory struct {
	device uint64
	root   string
}

// inner returns the mounts that are of the directory or of what is below.
func (d directory) inner(mounts []Info) (found []Inner) {
	for _, m := range mounts {
		rel, ok := strings.CutPrefix(m.Root, strings.TrimSuffix(d.root, "/"))
		if m.Device == d.device && ok && (rel == "" || rel[0] == '/') {
			found = append(found, Inner{m, strings.TrimSuffix(rel, "/")})
		}
	}
	return found
}

// Within returns the paths from a directory to those of the files that lie in it or below,
// by the paths of the files. These are what the kernel calls the files: absolute, and without
// links. The mount table alone is asked, and none of the filesystems that the paths lead
// through. So what has such a path need not be there.
func Within(dir string, files []string) (map[string]string, error) {
	return named(system.within(dir, files))
}

func (t *table) within(dir string, files []string) (map[string]string, error) {
	at, err := t.locate(dir)
	if err != nil {
		return nil, err
	}
	mounts, err := t.on(at.device)
	rels := map[string]string{}
	for _, file := range files {
		if rel, ok := at.rel(mounts, file); ok {
			rels[file] = rel
		}
	}
	return rels, err
}

// rel returns the path from the directory to a file, by the innermost of the mounts of its
// filesystem that lead there.
func (d directory) rel(mounts []Info, file string) (rel string, ok bool) {
	longest := -1
	for _, m := range mounts {
		point := strings.TrimSuffix(m.Point, "/")
		rest, below := strings.CutPrefix(file, point+"/")
		if !below || len(point) < longest {
			continue
		}
		longest = len(point)
		rel, ok = strings.CutPrefix(path.Join(m.Root, rest), strings.TrimSuffix(d.root, "/")+"/")
	}
	return rel, ok
}

// locate returns where a directory is in its filesystem.
func (t *table) locate(at string) (directory, error) {
	f, err := os.OpenFile(at, pathOnly|unix.O_NOFOLLOW|unix.O_DIRECTORY, 0)
	if err != nil {
		return directory{}, err
	}
	defer f.Close()
	for range attempts {
		before, err := os.Readlink(procPath(f))
		if err != nil {
			return directory{}, err
		}
		m, err := ask(func() (Info, error) { return t.reader.of(int(f.Fd())) })
		if err != nil {
			return directory{}, err
		}
		after, err := os.Readlink(procPath(f))
		if err != nil {
			return directory{}, err
		}
		rel, ok := strings.CutPrefix(before, strings.TrimSuffix(m.Point, "/"))
		if before == after && ok && (rel == "" || rel[0] == '/') {
			return directory{m.Device, path.Join(m.Root, rel)}, nil
		}
	}
	return directory{}, fmt.Errorf("%s is not below the mount that it is on: it is being renamed, or lies outside of the root directory of this process", at)
}

// on returns the mounts of one filesystem, with their paths of this moment.
func (t *table) on(device uint64) ([]Info, error) {
	mounts, err := t.list()
	if err != nil {
		return nil, err
	}
	mounts = slices.DeleteFunc(slices.Clone(mounts), func(m Info) bool { return m.Device != device })
	return ask(func() ([]Info, error) { return t.reader.again(mounts) })
}

// list returns what is mounted, with paths that may be old.
func (t *table) list() ([]Info, error) {
	return ask(func() ([]Info, error) {
		t.mu.Lock()
		defer t.mu.Unlock()
		if changed, err := t.changed(); !changed || err != nil {
			return t.mounts, err
		}
		mounts, err := t.reader.all(t.mounts)
		if err != nil {
			t.forget()
			return nil, err
		}
		t.mounts = mounts
		return mounts, nil
	})
}

// changed is asked before the table is read: what comes in between is reported again.
func (t *table) changed() (bool, error) {
	if t.watch != nil {
		return t.watch.Changed(0)
	}
	watch, err := NewWatch()
	t.watch = watch
	return err == nil, err
}

// forget has the table read again: the report of a change is gone once asked for.
func (t *table) forget() {
	_ = t.watch.Close()
	t.watch, t.mounts = nil, nil
}

// isRoot reports whether a file, relative to an open directory, is the root of a mount.
func isRoot(fd int, rel string) (bool, error) {
	var st unix.Statx_t
	if err := unix.Statx(fd, rel, unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, 0, &st); err != nil {
		return false, err
	}
	if st.Attributes_mask&unix.STATX_ATTR_MOUNT_ROOT == 0 {
		return false, errors.New("the kernel does not say what is a mount: Linux 5.8 or later is wanted")
	}
	return st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0, nil
}

// named says in an error what was wanted.
func named[T any](answer T, err error) (T, error) {
	if err != nil {
		err = fmt.Errorf("look what is mounted: %w", err)
	}
	return answer, err
}
