package pool

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs"
	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
)

// WayBack returns where a subvolume is, and how to bring it back. A read-only subvolume cannot be
// moved, so a snapshot of it is made.
func (o OutsideSubvolume) WayBack() string {
	from, to := shellQuote(o.Path), shellQuote(o.Home)
	how := fmt.Sprintf("mv -T %s %s", from, to)
	if o.Slot.Area != Area(meta.Active) {
		how = fmt.Sprintf("rmdir %s && btrfs subvolume snapshot -r %s %s", to, from, to)
	}
	return fmt.Sprintf("its subvolume is in another snapshot of the filesystem, which was rolled back; to bring it back mount the filesystem with subvolid=5 and run there: %s", how)
}

// shellQuote returns a path as one word of a shell command.
func shellQuote(path string) string {
	if !strings.ContainsFunc(path, func(r rune) bool { return !strings.ContainsRune(plainInShell, r) }) {
		return path
	}
	return "'" + strings.ReplaceAll(path, "'", `'\''`) + "'"
}

const plainInShell = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789@%+=:,./_-"

func (r *root) Outside() (found []OutsideSubvolume, err error) {
	around, err := btrfs.Around(r.dir)
	if err != nil {
		return nil, err
	}
	entries, err := btrfs.EntriesSince(r.dir, 0)
	if err != nil {
		return nil, err
	}
	areas := areasOutside{}
	for _, entry := range entries {
		if entry.Parent == around || entry.Name != subvolumeName {
			continue
		}
		is, failed := r.outsideAt(entry, areas)
		if errors.Is(failed, fs.ErrNotExist) {
			continue // in no slot of this pool, or gone
		}
		if failed != nil {
			err = fmt.Errorf("subvolume %d: %w", entry.ID, failed) // one error is enough
			continue
		}
		found = append(found, is)
	}
	if len(found) == 0 {
		return nil, err
	}
	home, failed := btrfs.PathFromTop(r.dir)
	for i := range found {
		found[i].Home = path.Join(home, found[i].Slot.String(), subvolumeName)
	}
	return found, errors.Join(err, failed)
}

// outsideAt returns a subvolume outside of the pool with its slot; fs.ErrNotExist if it is none
// of the pool's. It reads the record first, because a pod can make everything else.
func (r *root) outsideAt(entry btrfs.Entry, areas areasOutside) (is OutsideSubvolume, err error) {
	if is.Record, err = recordAt(r.dir, entry); err != nil {
		return is, err
	}
	in, name, err := btrfs.ParentDirectory(r.dir, entry.Parent, entry.Directory)
	if err != nil {
		return is, err
	}
	area, err := areas.of(r, directory{entry.Parent, in})
	if err != nil {
		return is, err
	}
	is.Slot = Slot{area, name}
	is.Path, err = btrfs.PathOf(r.dir, entry.ID)
	return is, err
}

// recordAt returns the record of the directory that contains a subvolume, anywhere on the
// filesystem.
func recordAt(mount *os.File, entry btrfs.Entry) ([]byte, error) {
	dir, err := btrfs.OpenDirectory(mount, entry.Parent, entry.Directory)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	record := make([]byte, 2*meta.MaxRecordSize)
	n, err := unix.Fgetxattr(int(dir.Fd()), meta.LedgerXattr, record)
	if errors.Is(err, unix.ENODATA) || errors.Is(err, unix.ERANGE) {
		return nil, fs.ErrNotExist
	}
	return record[:max(n, 0)], err
}

// directory is a directory in any subvolume.
type directory struct{ subvolume, inode uint64 }

// areasOutside caches which directories outside of the pool are areas of it; "" for others.
type areasOutside map[directory]Area

// of returns the area that a directory is; fs.ErrNotExist for none, and for AreaRemoving.
func (known areasOutside) of(r *root, at directory) (Area, error) {
	area, ok := known[at]
	if !ok {
		in, name, err := btrfs.ParentDirectory(r.dir, at.subvolume, at.inode)
		if err == nil && r.hasID(directory{at.subvolume, in}) && Area(name) != AreaRemoving && slices.Contains(Areas, Area(name)) {
			area = Area(name)
		}
		known[at] = area
	}
	if area == "" {
		return "", fs.ErrNotExist
	}
	return area, nil
}

// hasID reports whether a directory outside of the pool has the ID of the pool.
func (r *root) hasID(at directory) bool {
	dir, err := btrfs.OpenDirectory(r.dir, at.subvolume, at.inode)
	if err != nil {
		return false
	}
	defer dir.Close()
	id, err := readIdentity(fmt.Sprintf("/proc/self/fd/%d", dir.Fd()))
	return err == nil && id.ID == r.disk.id
}
