package pool

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs"
	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
)

// usualRecord is a buffer size, in bytes, that most records fit in.
const usualRecord = 1024

func (r *root) List() (slots []Slot, err error) {
	for _, area := range Areas {
		names, err := namesIn(r.area(area))
		if err != nil {
			return nil, err
		}
		for _, name := range names {
			slots = append(slots, Slot{area, name})
		}
	}
	return slots, nil
}

func (r *root) Find(slots ...Slot) (found []Contents, err error) {
	for _, s := range slots {
		is, err := r.contents(s)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		found = append(found, is)
	}
	return found, nil
}

// contents reads one slot.
func (r *root) contents(s Slot) (is Contents, err error) {
	path := r.slot(s)
	is = Contents{Slot: s, InfoError: fs.ErrNotExist}
	if is.Record, err = readRecord(path); err != nil {
		return is, err
	}
	names, err := namesIn(path)
	if errors.Is(err, unix.ENOTDIR) {
		is.Beside = []string{s.Name}
		return is, nil
	}
	if at := slices.Index(names, subvolumeName); at >= 0 {
		if is.Info, is.InfoError = r.Info(s); is.InfoError != nil {
			is.InfoError = r.Named(is.InfoError)
		}
		if is.InfoError == nil || r.isOurs(s, is.InfoError) {
			names = slices.Delete(names, at, at+1)
		}
	}
	is.Beside = names
	return is, err
}

// readRecord returns the record of a slot, nil for none.
func readRecord(path string) ([]byte, error) {
	var usual [usualRecord]byte
	buf := usual[:]
	n, err := unix.Lgetxattr(path, meta.LedgerXattr, buf)
	if errors.Is(err, unix.ERANGE) {
		buf = make([]byte, 2*meta.MaxRecordSize)
		n, err = unix.Lgetxattr(path, meta.LedgerXattr, buf)
	}
	switch {
	case errors.Is(err, unix.ENODATA):
		return nil, nil
	case errors.Is(err, unix.ERANGE): // larger than any record of ours
		return []byte{}, nil
	case err != nil:
		return nil, &fs.PathError{Op: "getxattr", Path: path, Err: err}
	}
	return append([]byte{}, buf[:n]...), nil // never nil, which means no record
}

// namesIn returns the sorted names in a directory; ENOTDIR if path is something else.
func namesIn(path string) ([]string, error) {
	dir, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	slices.Sort(names)
	return names, err
}

// isOurs reports whether fs in a slot is a subvolume, the stub of one, or gone meanwhile. info is
// the error of Info.
func (r *root) isOurs(s Slot, info error) bool {
	if !errors.Is(info, fs.ErrNotExist) {
		return true // also a subvolume that cannot be read
	}
	stub, err := btrfs.IsStub(r.subvolume(s))
	return stub || errors.Is(err, fs.ErrNotExist)
}

func (r *root) Mkdir(s Slot) error { return os.Mkdir(r.slot(s), 0o700) }

func (r *root) Rmdir(s Slot) error {
	path := r.slot(s)
	err := unix.Rmdir(path)
	if errors.Is(err, unix.ENOTEMPTY) && removeStub(r.subvolume(s)) {
		err = unix.Rmdir(path)
	}
	if errors.Is(err, unix.ENOTEMPTY) || errors.Is(err, unix.ENOTDIR) {
		is, _ := r.contents(s)
		return fmt.Errorf("rmdir %s: %w: it contains %q", s, ErrNotEmpty, is.Beside)
	}
	if err != nil {
		return &fs.PathError{Op: "rmdir", Path: path, Err: err}
	}
	return nil
}

// removeStub removes a stub, and reports whether it did.
func removeStub(path string) bool {
	is, err := btrfs.IsStub(path)
	return err == nil && is && unix.Rmdir(path) == nil
}

func (r *root) Move(from, to Slot) error {
	path := r.slot(from)
	if err := unix.Renameat2(unix.AT_FDCWD, path, unix.AT_FDCWD, r.slot(to), unix.RENAME_NOREPLACE); err != nil {
		return &fs.PathError{Op: "rename", Path: path, Err: err}
	}
	return nil
}

func (r *root) SetRecord(s Slot, record []byte) error {
	path := r.slot(s)
	if err := unix.Lsetxattr(path, meta.LedgerXattr, record, 0); err != nil {
		return &fs.PathError{Op: "setxattr", Path: path, Err: err}
	}
	return nil
}

// Commit has nothing to do on a read-only filesystem, unless an error made it so: then Sync fails.
func (r *root) Commit() error {
	err := btrfs.Commit(r.dir)
	if errors.Is(err, unix.EROFS) {
		return btrfs.Sync(r.dir)
	}
	return err
}

func (r *root) Sync(s Slot) error { return btrfs.Sync(r.slot(s)) }
