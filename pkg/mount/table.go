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
	// Device is the device number of the filesystem. All subvolumes of a btrfs share it,
	// although stat(2) returns a different number for each.
	Device uint64
	// Type is the type of the filesystem, without the subtype of FUSE.
	Type string
	// Root is the path of the mounted directory within its filesystem. If the directory was
	// removed, Root is its last path.
	Root string
	// Point is the mount point, as this process sees it.
	Point string

	id uint64 // mount ID of the reader
}

// String describes the mount for people.
func (m Info) String() string { return fmt.Sprintf("%s (%s)", m.Root, m.Type) }

// deletedSuffix is what the kernel appends to the path of a removed directory. File names
// contain no slash, so no other path ends like this.
const deletedSuffix = "//deleted"

func newInfo(id uint64, major, minor uint32, fsType, root, point string) Info {
	return Info{
		Device: unix.Mkdev(major, minor), Type: fsType, Root: strings.TrimSuffix(root, deletedSuffix), Point: point, id: id,
	}
}

// reader reads the mount table. Mounts outside of the root directory of this process are
// left out.
type reader interface {
	// all returns the mounts, the oldest first. It includes every mount that exists during
	// the whole call. Mounts in known, from an earlier call of all, may be returned
	// unchanged.
	all(known []Info) ([]Info, error)
	// again returns the mounts that still exist, with current paths.
	again(mounts []Info) ([]Info, error)
	// of returns the mount of an open file.
	of(fd int) (Info, error)
	// options returns the mount options of the filesystem of an open file.
	options(fd int) ([]string, error)
}

// errNoMount means that the mount of a file is not in the mount table.
var errNoMount = errors.New("it is on a mount that was taken away, or lies outside of the root directory of this process")

// table caches the mounts until the kernel reports a change.
type table struct {
	reader reader

	mu     sync.Mutex // protects the fields below
	mounts []Info     // paths may be outdated
	watch  *Watch     // opened before mounts was read; nil if nothing was read yet
}

// system is the mount table of this process.
var system = &table{reader: fastest()}

// Of returns the mount of an open file, and whether the file is the root of that mount.
// Errors: ErrSilent.
func Of(f *os.File) (m Info, top bool, err error) {
	if top, err = isRoot(int(f.Fd()), ""); err != nil {
		return Info{}, false, &os.PathError{Op: "statx", Path: f.Name(), Err: err}
	}
	m, err = named(ask(func() (Info, error) { return system.reader.of(int(f.Fd())) }))
	return m, top, err
}

// Options returns the mount options of the filesystem of an open file. On Linux 6.8 to 6.10
// it returns none, since only the table of all filesystems contains them. The filesystem
// may read its disk for them, with the kernel's table locked. So call Options rarely, and
// only for a disk that has just answered.
func Options(f *os.File) ([]string, error) { return named(system.reader.options(int(f.Fd()))) }

// IsPoint reports whether path is a mount point. A symbolic link is none. IsPoint never
// waits for a disk.
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

// Inner is a mount of a directory or file, or of one below it.
type Inner struct {
	Info
	// Rel is the path from the directory to the mounted file. It is empty for the directory
	// itself, and else begins with a slash.
	Rel string
}

// On returns all mounts of the filesystem with a device number. Errors: ErrSilent.
func On(device uint64) ([]Info, error) { return named(system.on(device)) }

// Inside returns all mounts of a file or directory, and of files and directories below it. It
// compares their roots within the filesystem, so mount points do not matter, and a mount of
// a parent does not count. Errors: ErrSilent.
func Inside(path string) ([]Inner, error) { return named(system.inside(path)) }

// attempts is the number of attempts while directories are renamed.
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

// directory identifies a directory or file by its path within its filesystem.
type directory struct {
	device uint64
	root   string
}

// inner returns the mounts of the directory, and of files and directories below it.
func (d directory) inner(mounts []Info) (found []Inner) {
	for _, m := range mounts {
		rel, ok := strings.CutPrefix(m.Root, strings.TrimSuffix(d.root, "/"))
		if m.Device == d.device && ok && (rel == "" || rel[0] == '/') {
			found = append(found, Inner{m, strings.TrimSuffix(rel, "/")})
		}
	}
	return found
}

// Within maps each of files that lies below dir to its path relative to dir. The files are
// absolute paths without symbolic links, as the kernel shows them, and need not exist.
// Within reads only the mount table and asks no filesystem.
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

// rel returns the path of a file relative to the directory. The innermost mount above the
// file decides.
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

// locate returns the path of a directory within its filesystem.
func (t *table) locate(at string) (directory, error) {
	fd, err := openNoLink(unix.AT_FDCWD, at)
	if err != nil {
		return directory{}, &os.PathError{Op: "open", Path: at, Err: err}
	}
	f := os.NewFile(uintptr(fd), at)
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

// on returns the mounts of one filesystem, with current paths.
func (t *table) on(device uint64) ([]Info, error) {
	mounts, err := t.list()
	if err != nil {
		return nil, err
	}
	mounts = slices.DeleteFunc(slices.Clone(mounts), func(m Info) bool { return m.Device != device })
	return ask(func() ([]Info, error) { return t.reader.again(mounts) })
}

// list returns all mounts. Their paths may be outdated.
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

// changed reports whether the table has changed. list calls it before it reads the table,
// so that a change during the read is reported next time.
func (t *table) changed() (bool, error) {
	if t.watch != nil {
		return t.watch.Changed(0)
	}
	watch, err := NewWatch()
	t.watch = watch
	return err == nil, err
}

// forget makes the next list read the table again. A report of a change is consumed by
// asking for it.
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

// named adds to an error what the question was.
func named[T any](answer T, err error) (T, error) {
	if err != nil {
		err = fmt.Errorf("look what is mounted: %w", err)
	}
	return answer, err
}
