package pool

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs"
	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
)

// freshOutside is how long RecentOutside reuses a result. Requests for a thousand lost volumes,
// one by one, then do not read the root tree for each.
const freshOutside = time.Second

// outsideLook is the last result of Outside.
type outsideLook struct {
	mu    sync.Mutex // protects what follows; held during Outside
	at    time.Time
	found []OutsideSubvolume
}

// RecentOutside is Outside, or its result of less than a second ago.
func (p *Pool) RecentOutside() ([]OutsideSubvolume, error) {
	p.outside.mu.Lock()
	defer p.outside.mu.Unlock()
	if time.Since(p.outside.at) < freshOutside {
		return p.outside.found, nil
	}
	return p.lookOutside()
}

// Outside is Filesystem.Outside, and keeps the result for RecentOutside.
func (p *Pool) Outside() ([]OutsideSubvolume, error) {
	p.outside.mu.Lock()
	defer p.outside.mu.Unlock()
	return p.lookOutside()
}

// lookOutside reads the filesystem. The caller holds outside.mu.
func (p *Pool) lookOutside() ([]OutsideSubvolume, error) {
	found, err := p.Filesystem.Outside()
	if err == nil {
		p.outside.found, p.outside.at = found, time.Now()
	}
	return found, err
}

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

func (d *disk) Outside() (found []OutsideSubvolume, err error) {
	err = d.inRoot(func(root string) error {
		around, err := btrfs.Around(root)
		if err != nil {
			return err
		}
		entries, err := btrfs.EntriesSince(root, 0)
		if err != nil {
			return err
		}
		home, err := btrfs.PathFromTop(root)
		if err != nil {
			return err
		}
		var unread error
		areas := areasOutside{}
		for _, entry := range entries {
			if entry.Parent == around || entry.Name != subvolumeName {
				continue
			}
			is, err := d.outsideAt(root, entry, areas)
			if errors.Is(err, fs.ErrNotExist) {
				continue // in no slot of this pool, or gone
			}
			if err != nil {
				unread = fmt.Errorf("subvolume %d: %w", entry.ID, err) // one error is enough
				continue
			}
			is.Home = path.Join(home, is.Slot.String(), subvolumeName)
			found = append(found, is)
		}
		return unread
	})
	return found, err
}

// outsideAt returns a subvolume outside of the pool with its slot; fs.ErrNotExist if it is none
// of the pool's. It reads the record first, because a pod can make everything else.
func (d *disk) outsideAt(root string, entry btrfs.Entry, areas areasOutside) (is OutsideSubvolume, err error) {
	if is.Record, err = recordAt(root, entry); err != nil {
		return is, err
	}
	in, name, err := btrfs.ParentDirectory(root, entry.Parent, entry.Directory)
	if err != nil {
		return is, err
	}
	area, err := areas.of(d, root, directory{entry.Parent, in})
	if err != nil {
		return is, err
	}
	is.Slot = Slot{area, name}
	is.Path, err = btrfs.PathOf(root, entry.ID)
	return is, err
}

// recordAt returns the record of the directory that contains a subvolume, anywhere on the
// filesystem.
func recordAt(root string, entry btrfs.Entry) ([]byte, error) {
	dir, err := btrfs.OpenDirectory(root, entry.Parent, entry.Directory)
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
func (known areasOutside) of(d *disk, root string, at directory) (Area, error) {
	area, ok := known[at]
	if !ok {
		in, name, err := btrfs.ParentDirectory(root, at.subvolume, at.inode)
		if err == nil && d.hasID(root, directory{at.subvolume, in}) && Area(name) != AreaRemoving && slices.Contains(Areas, Area(name)) {
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
func (d *disk) hasID(root string, at directory) bool {
	dir, err := btrfs.OpenDirectory(root, at.subvolume, at.inode)
	if err != nil {
		return false
	}
	defer dir.Close()
	id, err := d.readIdentity(fdPath(int(dir.Fd())))
	return err == nil && id.ID == d.id
}
