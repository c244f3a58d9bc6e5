package pool

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs"
	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
)

// subvolumeName is the name of the subvolume in each slot.
const subvolumeName = "fs"

// usualRecord is a buffer size, in bytes, that most records fit in.
const usualRecord = 1024

// disk is a pool on a real btrfs. It keeps no descriptor open between operations, so that the
// filesystem can be unmounted at any time. Each operation opens the pool's directory, verifies
// that it is still the same one (see place), and works below that descriptor. After an unmount no
// operation reaches the filesystem below, or another one.
type disk struct {
	path  string // of the pool's directory
	place place  // of the pool's directory
	// mounted is set if a filesystem was mounted at path when the pool was opened.
	mounted bool
	id      string // of the pool
	mode    btrfs.QuotaMode
	// readOnly is set if the pool could not be written when it was opened. Its limits may then
	// differ from its records.
	readOnly bool
	// quotaOff is set if quota could not be turned on because of readOnly.
	quotaOff bool
	options  []string // mount options when the pool was opened; nil: unknown

	mu   sync.Mutex // protects root
	root *root      // shared by new operations; nil: none
}

var _ Filesystem = (*disk)(nil)

// inSlot is within for the directory of a slot, inSubvolume for its subvolume.
func (d *disk) inSlot(s Slot, fn func(dir string) error) error {
	return d.within(func(root string) error { return fn(filepath.Join(root, string(s.Area), s.Name)) })
}

func (d *disk) inSubvolume(s Slot, fn func(path string) error) error {
	return d.inSlot(s, func(dir string) error { return fn(filepath.Join(dir, subvolumeName)) })
}

// inRoot is within for functions that need a directory of the filesystem.
func (d *disk) inRoot(fn func(path string) error) error {
	return d.within(func(root string) error { return named(fn(root+"/."), root+"/.", d.path) })
}

func (d *disk) PoolID() string { return d.id }

// Alive also fails if the pool has become writable, or if its quota was turned off or has another
// mode. The pool is then opened again, with its limits.
func (d *disk) Alive() error {
	if d.readOnly {
		if room, err := d.roomNow(); err == nil && !room.ReadOnly {
			return errors.New("it can be written now, and is opened again for its quota")
		}
	}
	fd, err := d.open() // not the shared descriptor, whose mount may be detached
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	id, err := d.readIdentity(fdPath(fd))
	err = named(err, fdPath(fd)+"/", d.path+"/")
	if err == nil && id.ID != d.id {
		err = fmt.Errorf("its ID is %s now, it was %s", id.ID, d.id)
	}
	if err == nil {
		err = d.checkQuota()
	}
	if err != nil {
		return fmt.Errorf("pool at %s: %w", d.path, err)
	}
	return nil
}

func (d *disk) Thawed() error { return d.inRoot(btrfs.AwaitThaw) }

func (d *disk) checkQuota() error {
	if d.readOnly || d.mode == btrfs.QuotaNone {
		return nil
	}
	status, err := d.QuotaStatus()
	if err != nil || status.Mode == d.mode {
		return nil // maintainPool logs an unreadable status; volumes are served all the same
	}
	return fmt.Errorf("its quota is %q, it was %q: sizes are not enforced until the driver has opened it again", status.Mode, d.mode)
}

func (d *disk) SlotPath(s Slot) string {
	return filepath.Join(d.path, string(s.Area), s.Name, subvolumeName)
}

// Room reports a pool as read-only until its quota could be turned on, which happens when it is
// opened again. A volume that is made before would have no limit, and keep none.
func (d *disk) Room() (btrfs.Room, error) {
	room, err := d.roomNow()
	room.ReadOnly = room.ReadOnly || d.quotaOff
	return room, err
}

func (d *disk) roomNow() (room btrfs.Room, err error) {
	err = d.inRoot(func(path string) error { room, err = btrfs.RoomOf(path, d.stateDir()); return err })
	return room, err
}

// stateDir returns the state directory, which contains the file of a loop pool.
func (d *disk) stateDir() string { return filepath.Dir(filepath.Dir(d.path)) }

func (d *disk) Space() (space btrfs.Space, err error) {
	err = d.inRoot(func(path string) error { space, err = btrfs.SpaceOf(path, d.stateDir()); return err })
	return space, err
}

func (d *disk) Devices() (devices []btrfs.Device, err error) {
	err = d.inRoot(func(path string) error { devices, err = btrfs.Devices(path); return err })
	return devices, err
}

// Ledger.

func (d *disk) List(a Area) (names []string, err error) {
	err = d.within(func(root string) error {
		dir, err := os.Open(filepath.Join(root, string(a)))
		if err != nil {
			return err
		}
		defer dir.Close()
		names, err = dir.Readdirnames(-1)
		return err
	})
	return names, err
}

func (d *disk) Mkdir(s Slot) error {
	return d.inSlot(s, func(dir string) error { return os.Mkdir(dir, 0o700) })
}

func (d *disk) Rmdir(s Slot) error {
	return d.inSlot(s, func(dir string) error {
		err := unix.Rmdir(dir)
		if errors.Is(err, unix.ENOTEMPTY) && removeStub(filepath.Join(dir, subvolumeName)) {
			err = unix.Rmdir(dir)
		}
		if errors.Is(err, unix.ENOTEMPTY) || errors.Is(err, unix.ENOTDIR) {
			names, _ := d.Beside(s)
			return fmt.Errorf("rmdir %s: %w: it contains %q", s, ErrNotEmpty, names)
		}
		return pathError("rmdir", s, err)
	})
}

// removeStub removes a stub, and reports whether it did.
func removeStub(path string) bool {
	is, err := btrfs.IsStub(path)
	return err == nil && is && unix.Rmdir(path) == nil
}

func (d *disk) Beside(s Slot) (names []string, err error) {
	err = d.inSlot(s, func(dir string) error {
		f, err := os.OpenFile(dir, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
		if errors.Is(err, unix.ENOTDIR) {
			return fmt.Errorf("%s is no directory: %w", s, ErrForeign)
		}
		if err != nil {
			return err
		}
		defer f.Close()
		names, err = f.Readdirnames(-1)
		return err
	})
	slices.Sort(names)
	return slices.DeleteFunc(names, func(name string) bool { return name == subvolumeName && d.isOurs(s) }), err
}

// isOurs reports whether fs in a slot is a subvolume, the stub of one, or absent.
func (d *disk) isOurs(s Slot) bool {
	if _, err := d.Info(s); !errors.Is(err, fs.ErrNotExist) {
		return true // also a subvolume that cannot be read
	}
	stub := false
	err := d.inSubvolume(s, func(path string) (err error) { stub, err = btrfs.IsStub(path); return err })
	return stub || errors.Is(err, fs.ErrNotExist) // or it was removed meanwhile
}

func (d *disk) Move(from, to Slot) error {
	return d.within(func(root string) error {
		err := unix.Renameat2(unix.AT_FDCWD, filepath.Join(root, string(from.Area), from.Name),
			unix.AT_FDCWD, filepath.Join(root, string(to.Area), to.Name), unix.RENAME_NOREPLACE)
		return pathError("rename", from, err)
	})
}

func (d *disk) Record(s Slot) (record []byte, err error) {
	err = d.inSlot(s, func(dir string) error {
		var usual [usualRecord]byte
		buf := usual[:]
		n, err := unix.Lgetxattr(dir, meta.LedgerXattr, buf)
		if errors.Is(err, unix.ERANGE) {
			buf = make([]byte, 2*meta.MaxRecordSize)
			n, err = unix.Lgetxattr(dir, meta.LedgerXattr, buf)
		}
		switch {
		case errors.Is(err, unix.ENODATA):
			return nil
		case errors.Is(err, unix.ERANGE): // larger than any record of ours
			record = []byte{}
			return nil
		case err != nil:
			return pathError("getxattr", s, err)
		}
		record = append([]byte{}, buf[:n]...) // never nil, which means no record
		return nil
	})
	return record, err
}

func (d *disk) SetRecord(s Slot, record []byte) error {
	return d.inSlot(s, func(dir string) error {
		return pathError("setxattr", s, unix.Lsetxattr(dir, meta.LedgerXattr, record, 0))
	})
}

func (d *disk) Sync(s Slot) error {
	if s == (Slot{}) {
		return d.inRoot(btrfs.Sync)
	}
	return d.inSlot(s, btrfs.Sync)
}

// Subvolumes.

func (d *disk) Create(s Slot) error {
	return d.inSubvolume(s, btrfs.Create)
}

func (d *disk) Snapshot(from, to Slot, readOnly bool) error {
	return d.within(func(root string) error {
		path := func(s Slot) string { return filepath.Join(root, string(s.Area), s.Name, subvolumeName) }
		return btrfs.Snapshot(path(to), path(from), readOnly)
	})
}

// Destroy lifts the limits that block it (EDQUOT). Nested subvolumes cannot be destroyed at their
// limit, and Bound may have set the volume's own limit again after LiftLimit. Under simple quota
// the group 1/<id> stays while a snapshot contains data of the volume. Destroy closes this group,
// because a pod could nest a subvolume into it.
func (d *disk) Destroy(s Slot) error {
	return d.inSubvolume(s, func(path string) error {
		info, err := btrfs.Info(path)
		if err != nil {
			return err
		}
		err = btrfs.Destroy(path)
		if errors.Is(err, unix.EDQUOT) {
			if lifted := errors.Join(d.LiftLimit(info.ID), d.liftNested(info.ID)); lifted != nil {
				return errors.Join(err, lifted)
			}
			err = btrfs.Destroy(path)
		}
		if err == nil {
			_ = d.inRoot(func(path string) error { return d.closeGroup(path, info.ID) }) // after an error ForgetQuota closes it
		}
		return err
	})
}

// liftNested does nothing under simple quota, where nested subvolumes count towards their volume.
func (d *disk) liftNested(subvolume uint64) error {
	if d.mode == btrfs.QuotaSimple {
		return nil
	}
	census, err := d.Census()
	for _, id := range census.Hosts()[subvolume] {
		err = errors.Join(err, d.LiftLimit(id))
	}
	return err
}

func (d *disk) Census() (census Census, err error) {
	err = d.inRoot(func(path string) error {
		entries, err := btrfs.EntriesSince(path, 0)
		if err != nil {
			return err
		}
		slots, err := d.slotsByInode(path)
		if err != nil {
			return err
		}
		census.Slots = make(map[Slot]uint64, len(slots))
		census.Nested, err = d.nestedAmong(path, entries, func(e btrfs.Entry) {
			if slot, is := slots[e.Directory]; is && e.Name == subvolumeName {
				census.Slots[slot] = e.ID
			}
		})
		census.Last = last(entries)
		return err
	})
	return census, err
}

func (d *disk) NestedSince(from uint64) (census Census, err error) {
	err = d.inRoot(func(path string) error {
		entries, err := btrfs.EntriesSince(path, from)
		if err != nil || len(entries) == 0 {
			return err
		}
		census.Last = last(entries)
		census.Nested, err = d.nestedAmong(path, entries, func(btrfs.Entry) {})
		return err
	})
	return census, err
}

// nestedAmong returns the parents of the entries that lie neither in the subvolume around the
// pool nor in the top level, by ID. It calls ours for each entry in the subvolume around the
// pool.
func (d *disk) nestedAmong(path string, entries []btrfs.Entry, ours func(btrfs.Entry)) (map[uint64]uint64, error) {
	around, err := btrfs.Around(path)
	if err != nil {
		return nil, err
	}
	parents := map[uint64]uint64{}
	for _, e := range entries {
		switch e.Parent {
		case around:
			ours(e)
		case btrfs.TopLevel:
		default:
			parents[e.ID] = e.Parent
		}
	}
	return parents, nil
}

// last returns the largest ID of sorted entries, 0 for none.
func last(entries []btrfs.Entry) uint64 {
	if len(entries) == 0 {
		return 0
	}
	return entries[len(entries)-1].ID
}

// slotsByInode returns the slots of all kinds by the inode of their directory.
func (d *disk) slotsByInode(root string) (map[uint64]Slot, error) {
	slots := map[uint64]Slot{}
	for _, area := range Areas {
		if area == AreaRemoving {
			continue
		}
		inodes, err := btrfs.Inodes(filepath.Join(root, string(area)))
		if err != nil {
			return nil, err
		}
		for name, inode := range inodes {
			slots[inode] = Slot{area, name}
		}
	}
	return slots, nil
}

// Info returns fs.ErrNotExist for an entry fs that is not a subvolume. btrfs-csi did not make it,
// and Rmdir does not remove it.
func (d *disk) Info(s Slot) (info btrfs.SubvolumeInfo, err error) {
	err = d.inSubvolume(s, func(path string) error { info, err = btrfs.Info(path); return err })
	if errors.Is(err, btrfs.ErrNotSubvolume) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		err = fmt.Errorf("%w: %w", fs.ErrNotExist, err)
	}
	return info, err
}

func (d *disk) Nested(s Slot) ([]string, error) { return d.NestedUpTo(s, math.MaxUint64) }

func (d *disk) NestedUpTo(s Slot, transid uint64) (paths []string, err error) {
	err = d.inSubvolume(s, func(path string) error {
		nested, err := btrfs.NestedSubvolumes(path)
		for _, n := range nested {
			later, failed := madeAfter(path, n.ID, transid)
			if err = errors.Join(err, failed); later || failed != nil {
				continue
			}
			if n.Path == "" {
				n.Path = fmt.Sprintf("subvolume %d", n.ID)
			}
			paths = append(paths, n.Path)
		}
		return err
	})
	return paths, err
}

// madeAfter reports whether a subvolume was made after transaction transid, or is gone by now.
func madeAfter(path string, subvolume, transid uint64) (bool, error) {
	if transid == math.MaxUint64 {
		return false, nil
	}
	made, err := btrfs.CreatedTransid(path, subvolume)
	if errors.Is(err, fs.ErrNotExist) {
		return true, nil
	}
	return made > transid, err
}

func (d *disk) SyncRoot(s Slot) error { return d.inSubvolume(s, btrfs.Sync) }

// Apply sets only properties that differ: a clone has those of its source, and each change is a
// transaction. btrfs refuses compression and nodatacow on one inode, so Apply clears the one
// before it sets the other. Files that exist keep their properties.
func (d *disk) Apply(s Slot, p meta.Parameters) error {
	if !p.NoDataCow && p.Compression == "" {
		return nil
	}
	return d.inSubvolume(s, func(path string) error {
		compression, err := btrfs.Compression(path)
		if err != nil {
			return err
		}
		inPlace, err := btrfs.NoDataCow(path)
		if err != nil {
			return err
		}
		if p.NoDataCow {
			return applyNoDataCow(path, inPlace, compression)
		}
		return applyCompression(path, inPlace, compression, p.Compression)
	})
}

func applyNoDataCow(path string, inPlace bool, compression string) error {
	if compression != "" {
		if err := btrfs.SetCompression(path, ""); err != nil {
			return err
		}
	}
	if inPlace {
		return nil
	}
	return btrfs.SetNoDataCow(path, true)
}

func applyCompression(path string, inPlace bool, have, want string) error {
	if inPlace {
		if err := btrfs.SetNoDataCow(path, false); err != nil {
			return err
		}
	}
	if have == want {
		return nil
	}
	return btrfs.SetCompression(path, want)
}

func pathError(operation string, s Slot, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s %s: %w", operation, s, err)
}
