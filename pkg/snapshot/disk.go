package snapshot

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

// subvolumeName is the name of every subvolume, in its slot.
const subvolumeName = "fs"

// usualRecord is a size that most records do not reach, in bytes.
const usualRecord = 1024

// disk is a pool on a real btrfs. It holds no descriptor open between operations, so
// that the filesystem can be unmounted at any time; instead the pool's directory is
// opened for each, which proves that it is still the one that was opened first, and
// goes on from that descriptor. After an unmount nothing can end up on the filesystem
// below, or on another.
type disk struct {
	path  string // of the pool's directory
	place place  // of the pool's directory
	id    string // of the pool
	mode  btrfs.QuotaMode
	// readOnly is set when the pool could not be written as it was opened: its
	// limits may not be those of the records.
	readOnly bool
	// quotaOff is set when its quota could not be turned on for that reason.
	quotaOff bool

	mu   sync.Mutex // protects what follows
	root *root      // that new operations share; nil: none is under way
}

var _ Filesystem = (*disk)(nil)

// inSlot is within for the directory of a slot, inSubvolume for its subvolume.
func (d *disk) inSlot(s Slot, fn func(dir string) error) error {
	return d.within(func(root string) error { return fn(filepath.Join(root, string(s.Area), s.Name)) })
}

func (d *disk) inSubvolume(s Slot, fn func(path string) error) error {
	return d.inSlot(s, func(dir string) error { return fn(filepath.Join(dir, subvolumeName)) })
}

// inRoot is within for the functions that want a directory of the filesystem.
func (d *disk) inRoot(fn func(path string) error) error {
	return d.within(func(root string) error { return named(fn(root+"/."), root+"/.", d.path) })
}

func (d *disk) PoolID() string { return d.id }

// Alive fails also for a pool that has become writable, or whose quota somebody has
// turned off or exchanged, so that it is opened anew, with its limits.
func (d *disk) Alive() error {
	if d.readOnly {
		if room, err := d.roomNow(); err == nil && !room.ReadOnly {
			return errors.New("it can be written now, and is opened again for its quota")
		}
	}
	fd, err := d.open() // anew: what operations share may be detached
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
		return nil // maintain tells what cannot be read: no reason to serve no volume
	}
	return fmt.Errorf("its quota is %q, it was %q: limits are void until it is opened again", status.Mode, d.mode)
}

func (d *disk) SlotPath(s Slot) string {
	return filepath.Join(d.path, string(s.Area), s.Name, subvolumeName)
}

// Room is read-only while the pool's quota has to be turned on, which is done when it
// is opened again: what was made in it before that would have no limit, and keep none.
func (d *disk) Room() (btrfs.Room, error) {
	room, err := d.roomNow()
	room.ReadOnly = room.ReadOnly || d.quotaOff
	return room, err
}

func (d *disk) roomNow() (room btrfs.Room, err error) {
	err = d.inRoot(func(path string) error { room, err = btrfs.RoomOf(path, d.stateDir()); return err })
	return room, err
}

// stateDir is where the file of a loop pool is.
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
			return fmt.Errorf("rmdir %s: %w: it holds %q", s, ErrNotEmpty, names)
		}
		return pathError("rmdir", s, err)
	})
}

// removeStub reports whether there was a stub, and is none any more.
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

// isOurs reports whether what is named fs in a slot is a subvolume or the stub of one.
func (d *disk) isOurs(s Slot) bool {
	if _, err := d.Info(s); !errors.Is(err, fs.ErrNotExist) {
		return true // also one that cannot be read
	}
	stub := false
	err := d.inSubvolume(s, func(path string) (err error) { stub, err = btrfs.IsStub(path); return err })
	return stub || errors.Is(err, fs.ErrNotExist) // or it has gone meanwhile
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
		case errors.Is(err, unix.ERANGE): // nothing that we wrote
			record = []byte{}
			return nil
		case err != nil:
			return pathError("getxattr", s, err)
		}
		record = append([]byte{}, buf[:n]...) // never nil, which is none
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

// Destroy lifts the limits of what is nested where they stand in the way: what is
// nested in one that is at its limit could not go.
func (d *disk) Destroy(s Slot) error {
	return d.inSubvolume(s, func(path string) error {
		err := btrfs.Destroy(path)
		if !errors.Is(err, unix.EDQUOT) {
			return err
		}
		info, failed := btrfs.Info(path)
		if failed == nil {
			failed = d.liftNested(info.ID)
		}
		if failed != nil {
			return errors.Join(err, failed)
		}
		return btrfs.Destroy(path)
	})
}

func (d *disk) liftNested(subvolume uint64) error {
	parents, err := d.Nesting()
	for id := range parents {
		if hostOf(parents, id) == subvolume {
			err = errors.Join(err, d.LiftLimit(id))
		}
	}
	return err
}

func (d *disk) Nesting() (parents map[uint64]uint64, err error) {
	err = d.inRoot(func(path string) error { parents, err = btrfs.Nesting(path); return err })
	return parents, err
}

// Info takes what is named fs but is no subvolume for none: it is not ours, and
// Rmdir will not remove it.
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

// madeAfter is true also for a subvolume that is gone by now.
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

// Apply leaves alone what is as it should be: a clone has its source's
// properties, and setting one is a transaction. btrfs refuses compression and
// nodatacow on one inode, so what a copy has of the one goes before it is given
// the other; what its source wrote stays as it is.
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

// Quota. In full mode the limit is on the subvolume's own group 0/<id>. In
// simple mode it is on 1/<id>, which what a pod nests in the volume inherits.

func (d *disk) QuotaStatus() (status btrfs.QuotaStatus, err error) {
	err = d.inRoot(func(path string) error { status, err = btrfs.Quota(path); return err })
	return status, err
}

func (d *disk) Rescan() error { return d.inRoot(btrfs.RescanQuota) }

// group is the group that bears the limit of a subvolume.
func (d *disk) group(subvolume uint64) btrfs.QgroupID {
	if d.mode == btrfs.QuotaSimple {
		return btrfs.NewQgroupID(1, subvolume)
	}
	return btrfs.NewQgroupID(0, subvolume)
}

func (d *disk) SetLimit(subvolume uint64, bytes int64) error {
	if err := d.checkQuota(); err != nil {
		return fmt.Errorf("%w: %w", ErrPoolAway, err) // a limit on the group of another mode is not found again
	}
	return d.limit(subvolume, uint64(bytes))
}

// lifted is the limit of a volume on its way out, under simple quota: the group 1/<id>
// that is left is known by it to be ours, and stale.
const lifted = uint64(math.MaxInt64)

func (d *disk) LiftLimit(subvolume uint64) error {
	none := btrfs.NoLimit
	if d.mode == btrfs.QuotaSimple {
		none = lifted
	}
	err := d.limit(subvolume, none)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

func (d *disk) limit(subvolume, bytes uint64) error {
	if d.mode == btrfs.QuotaNone {
		return nil
	}
	return d.inRoot(func(path string) error {
		group := d.group(subvolume)
		if d.mode == btrfs.QuotaSimple && bytes < lifted {
			if err := btrfs.CreateQgroup(path, group); err != nil {
				return err
			}
			if _, err := btrfs.AssignQgroup(path, btrfs.NewQgroupID(0, subvolume), group); err != nil {
				return err
			}
		}
		return btrfs.LimitQgroup(path, group, bytes)
	})
}

func (d *disk) Limits() (limits map[uint64]int64, err error) {
	if d.mode == btrfs.QuotaNone {
		return nil, nil
	}
	limits = map[uint64]int64{}
	err = d.inRoot(func(path string) error {
		return btrfs.WalkQgroups(path, func(q btrfs.Qgroup) error {
			// Those of level 0 come first: what has no group of level 1 has no limit.
			if id := q.ID.Subvolume(); q.ID == d.group(id) {
				limits[id] = limitOf(q)
			} else if q.ID.Level() == 0 {
				limits[id] = 0
			}
			return nil
		})
	})
	return limits, err
}

func (d *disk) Usage(subvolume uint64) (usage Usage, err error) {
	if d.mode == btrfs.QuotaNone {
		return usage, ErrNoQuota
	}
	err = d.inRoot(func(path string) error {
		q, err := btrfs.QgroupOf(path, d.group(subvolume))
		if errors.Is(err, fs.ErrNotExist) { // no limit yet, or a snapshot in simple mode
			q, err = btrfs.QgroupOf(path, btrfs.NewQgroupID(0, subvolume))
			q.MaxReferenced = btrfs.NoLimit
		}
		usage = Usage{Used: clamp(q.Referenced), Limit: limitOf(q)}
		if d.mode == btrfs.QuotaFull {
			usage.Exclusive = clamp(q.Exclusive)
		}
		return err
	})
	return usage, err
}

func (d *disk) ForgetQuota(subvolume uint64) error {
	if d.mode == btrfs.QuotaNone {
		return nil
	}
	return d.inRoot(func(path string) error {
		// Before the tree is dropped its numbers are still needed.
		if there, err := btrfs.TreeExists(path, subvolume); there || err != nil {
			return errors.Join(err, unix.EBUSY)
		}
		own := btrfs.NewQgroupID(0, subvolume)
		// Simple quota would say so, but begin a transaction for it, and so no disk would ever
		// sleep. Full quota, whose numbers follow with the commit after the tree was dropped,
		// would remove the group and be inconsistent.
		if group, err := btrfs.QgroupOf(path, own); err == nil && group.Referenced > 0 {
			return fmt.Errorf("group %s: %w", own, unix.EBUSY)
		}
		if err := btrfs.RemoveQgroup(path, own); err != nil {
			return err
		}
		if d.mode != btrfs.QuotaSimple {
			return nil
		}
		return btrfs.RemoveQgroup(path, btrfs.NewQgroupID(1, subvolume))
	})
}

func (d *disk) HeldQuota() (held []uint64, err error) {
	if d.mode == btrfs.QuotaNone {
		return nil, nil
	}
	err = d.inRoot(func(path string) error {
		if held, err = btrfs.DyingIDs(path); err != nil || d.mode == btrfs.QuotaFull {
			return err
		}
		gone, err := d.quotaGroups(path)
		err = errors.Join(err, btrfs.WalkTreeIDs(path, func(id uint64) error { delete(gone, id); return nil }))
		for id, g := range gone {
			if g.charged && (g.own || g.lifted) {
				held = append(held, id)
			}
		}
		return err
	})
	return held, err
}

// StaleQuota takes every group of a subvolume that is gone, and whose tree the
// kernel has dropped, for stale: they are of no use to anyone, whoever made the
// subvolume. So is what is left of one, a group 1/<id> without members, whose limit was
// lifted. If it was not, it is of a volume that vanished, or metadata was full, if later
// subvolumes show that there was one with this ID; else it is somebody's plan.
func (d *disk) StaleQuota() (stale []uint64, err error) {
	if d.mode == btrfs.QuotaNone {
		return nil, nil
	}
	err = d.inRoot(func(path string) error {
		gone, err := d.quotaGroups(path)
		if err != nil || len(gone) == 0 {
			return err
		}
		var last uint64
		err = btrfs.WalkTreeIDs(path, func(id uint64) error { delete(gone, id); last = id; return nil })
		for id, g := range gone {
			if g.charged {
				continue
			}
			if !g.own {
				members, failed := btrfs.QgroupMembers(path, d.group(id))
				err = errors.Join(err, failed)
				if members || !g.lifted && id >= last {
					continue
				}
			}
			stale = append(stale, id)
		}
		return err
	})
	return stale, err
}

// quotaGroups are those of a subvolume: there is 0/<id>; the limit of 1/<id> was lifted;
// under simple quota one of them is charged for what is there still, which a snapshot may
// hold when the subvolume is gone, and the kernel keeps it until then.
type quotaGroups struct{ own, lifted, charged bool }

// quotaGroups returns those of every subvolume, by its ID.
func (d *disk) quotaGroups(path string) (map[uint64]quotaGroups, error) {
	all := map[uint64]quotaGroups{}
	err := btrfs.WalkQgroups(path, func(q btrfs.Qgroup) error {
		id := q.ID.Subvolume()
		own := q.ID.Level() == 0
		if id < firstSubvolume || !own && q.ID != d.group(id) {
			return nil
		}
		g := all[id]
		g.own = g.own || own
		g.lifted = g.lifted || q.MaxReferenced == lifted
		g.charged = g.charged || d.mode == btrfs.QuotaSimple && q.Referenced > 0
		all[id] = g
		return nil
	})
	return all, err
}

// firstSubvolume is the least ID of a subvolume (BTRFS_FIRST_FREE_OBJECTID).
const firstSubvolume = 256

func limitOf(q btrfs.Qgroup) int64 {
	if q.MaxReferenced >= lifted {
		return 0
	}
	return clamp(q.MaxReferenced)
}

// clamp keeps a counter of the kernel's within int64.
func clamp(bytes uint64) int64 { return int64(min(bytes, math.MaxInt64)) }

func pathError(operation string, s Slot, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s %s: %w", operation, s, err)
}
