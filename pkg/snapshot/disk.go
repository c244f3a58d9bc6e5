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
	options  []string // of the mount, as the pool was opened; none: not known

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
		return nil // maintain logs what cannot be read: no reason to serve no volume
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
// nested in one that is at its limit could not go. The volume's own may have been set again
// since it was lifted, by who bounds what it nests. What is left under simple quota, while a
// snapshot holds what the volume wrote, is closed: a pod could nest a subvolume into it.
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
			_ = d.inRoot(func(path string) error { return d.closeGroup(path, info.ID) }) // else ForgetQuota does
		}
		return err
	})
}

// liftNested has nothing to lift under simple quota: what is nested counts towards its volume.
func (d *disk) liftNested(subvolume uint64) error {
	if d.mode == btrfs.QuotaSimple {
		return nil
	}
	census, err := d.Census()
	for _, id := range census.hosts()[subvolume] {
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

// nestedAmong returns what lies in another subvolume than that of the pool, and not in the
// top level, by ID, with the one that it lies in. Each that lies in that of the pool is
// handed to ours.
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

// last returns the largest ID, 0 for none.
func last(entries []btrfs.Entry) uint64 {
	if len(entries) == 0 {
		return 0
	}
	return entries[len(entries)-1].ID
}

// slotsByInode returns the slots of all kinds by the inodes of their directories.
func (d *disk) slotsByInode(root string) (map[uint64]Slot, error) {
	slots := map[uint64]Slot{}
	for _, area := range areas {
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
	if err := d.sameQuota(); err != nil {
		return err
	}
	return d.limit(subvolume, uint64(bytes))
}

// sameQuota is checkQuota for who sets limits: one on the group of another mode would not
// be found again.
func (d *disk) sameQuota() error {
	if err := d.checkQuota(); err != nil {
		return fmt.Errorf("%w: %w", ErrPoolAway, err)
	}
	return nil
}

// mark is on each group 1/<id> that was made here, and distinguishes it from one that an
// administrator has made.
const mark = 0x6373692d62747266 // "csi-btrf"

func (d *disk) LiftLimit(subvolume uint64) error {
	if d.mode == btrfs.QuotaNone {
		return nil
	}
	return d.inRoot(func(path string) error {
		err := d.liftIn(path, subvolume)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	})
}

func (d *disk) liftIn(path string, subvolume uint64) error {
	if d.mode == btrfs.QuotaFull {
		return btrfs.LimitQgroup(path, d.group(subvolume), btrfs.NoLimit)
	}
	group, whose, err := d.groupOf(path, subvolume)
	if err != nil || whose != ours && whose != halfMade {
		return err
	}
	return btrfs.LimitOwnQgroup(path, group.ID, btrfs.NoLimit, mark) // also of a half made one: the sweep is to know it
}

// owner says whose a group 1/<id> is.
type owner int

const (
	nobody   owner = iota // there is none
	ours                  // it was made here
	halfMade              // it was made here, and is not marked: a kill came between
	another               // an administrator has made it
)

// groupOf returns the group 1/<id> of a subvolume of the pool, and whose it is. Without the
// mark it is ours if it has 0/<id>, or nothing at all. That holds while the subvolume is
// there. Later nobody can distinguish such a group from one that an administrator has made for a
// subvolume to come, so it is marked before the subvolume is destroyed.
func (d *disk) groupOf(path string, subvolume uint64) (group btrfs.Qgroup, whose owner, err error) {
	if d.mode != btrfs.QuotaSimple {
		return group, nobody, nil
	}
	own, id := btrfs.NewQgroupID(0, subvolume), d.group(subvolume)
	group, err = btrfs.QgroupOf(path, id)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return group, nobody, nil
	case err != nil:
		return group, nobody, err
	case group.Mark == mark:
		return group, ours, nil
	}
	members, err := btrfs.QgroupMembers(path, id)
	if err != nil {
		return group, nobody, err
	}
	parents, err := btrfs.QgroupParents(path, []btrfs.QgroupID{own})
	if slices.Contains(parents[own], id) || !members && group.MaxReferenced == btrfs.NoLimit {
		return group, halfMade, err
	}
	return group, another, err
}

// limit marks the group before the subvolume counts towards it: what a crash leaves in
// between is known as ours.
func (d *disk) limit(subvolume, bytes uint64) error {
	if d.mode == btrfs.QuotaNone {
		return nil
	}
	return d.inRoot(func(path string) error {
		group := d.group(subvolume)
		if d.mode == btrfs.QuotaFull {
			return btrfs.LimitQgroup(path, group, bytes)
		}
		if err := d.makeGroup(path, subvolume); err != nil {
			return err
		}
		if err := btrfs.LimitOwnQgroup(path, group, bytes, mark); err != nil {
			return errors.Join(err, d.dropUnmarked(path, subvolume)) // as with metadata full
		}
		_, err := btrfs.AssignQgroup(path, btrfs.NewQgroupID(0, subvolume), group)
		return err
	})
}

// dropUnmarked removes a group that was made and could not be marked.
func (d *disk) dropUnmarked(path string, subvolume uint64) error {
	group, whose, err := d.groupOf(path, subvolume)
	if err != nil || whose != halfMade {
		return err
	}
	err = btrfs.RemoveQgroup(path, group.ID)
	if errors.Is(err, unix.EBUSY) { // it has 0/<id>
		return nil
	}
	return err
}

// makeGroup makes the group 1/<id> of a subvolume. What counts towards an administrator's
// would share the volume's limit.
func (d *disk) makeGroup(path string, subvolume uint64) error {
	id := d.group(subvolume)
	_, whose, err := d.groupOf(path, subvolume)
	switch {
	case err != nil:
		return err
	case whose == nobody:
		return btrfs.CreateQgroup(path, id)
	case whose == another:
		return fmt.Errorf("qgroup %s: %w: it has the number that the limit of a volume needs: remove it (btrfs qgroup destroy), or try again", id, ErrForeign)
	}
	return nil
}

// Bound, under full quota, gives the volume and each nested one as its limit what it holds
// and what all of them together leave of the size. The kernel does not: each is counted by
// itself, and one that a pod makes has no limit. A group for all of them would hold them
// together, but a snapshot that a pod takes inside would then make all accounting
// inconsistent. One that is at its limit cannot make another.
//
// Under simple quota they count towards the volume's group, if the pod has not put them
// into another one as it made them, or into none, which the kernel lets anyone do.
func (d *disk) Bound(volume uint64, size int64, nested []uint64) (held Usage, err error) {
	if err := d.sameQuota(); err != nil {
		return held, err
	}
	switch d.mode {
	case btrfs.QuotaFull:
		err = d.inRoot(func(path string) error { held, err = d.boundFull(path, volume, size, nested); return err })
	case btrfs.QuotaSimple:
		err = d.inRoot(func(path string) error { return d.gather(path, volume, nested) })
	}
	return held, err
}

func (d *disk) boundFull(path string, volume uint64, size int64, nested []uint64) (held Usage, err error) {
	ids := []btrfs.QgroupID{d.group(volume)} // first: at its limit, it nests no more
	for _, id := range nested {
		ids = append(ids, d.group(id))
	}
	groups, err := btrfs.QgroupsOf(path, ids)
	if err != nil {
		return held, err
	}
	filesystem, err := btrfs.Filesystem(path)
	if err != nil {
		return held, err
	}
	reserved, err := btrfs.ReservedOf(path, ids)
	if err != nil {
		return held, err
	}
	used, all := map[btrfs.QgroupID]int64{}, int64(0)
	for i, id := range ids {
		used[id] = clamp(groups[id].Referenced + reserved[id])
		if i > 0 {
			used[id] = max(used[id], int64(filesystem.NodeSize)) // which a new one is not counted for yet
			held.Used += used[id]
			held.Exclusive += clamp(groups[id].Exclusive)
		}
		all += used[id]
	}
	for _, id := range ids {
		group, there := groups[id]
		limit := uint64(max(1, size-(all-used[id]))) // 0 reads as none
		if !there || group.MaxReferenced == limit {
			continue
		}
		if err := btrfs.LimitQgroup(path, id, limit); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return held, err
		}
	}
	return held, nil
}

// gather has what is nested count towards the group of its volume, and towards no other.
func (d *disk) gather(path string, volume uint64, nested []uint64) error {
	members := make([]btrfs.QgroupID, 0, len(nested))
	for _, id := range nested {
		members = append(members, btrfs.NewQgroupID(0, id))
	}
	parents, err := btrfs.QgroupParents(path, members)
	if err != nil {
		return err
	}
	group := d.group(volume)
	for _, member := range members {
		if slices.Equal(parents[member], []btrfs.QgroupID{group}) {
			continue
		}
		if _, err := btrfs.AssignQgroup(path, member, group); err != nil {
			return err
		}
		for _, other := range parents[member] {
			if other == group {
				continue
			}
			if _, err := btrfs.UnassignQgroup(path, member, other); err != nil {
				return err
			}
		}
	}
	return nil
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
				limits[id] = d.limitOf(q)
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
		if errors.Is(err, fs.ErrNotExist) || d.mode == btrfs.QuotaSimple && q.Mark != mark { // no limit yet, or a snapshot in simple mode
			q, err = btrfs.QgroupOf(path, btrfs.NewQgroupID(0, subvolume))
			q.MaxReferenced = btrfs.NoLimit
		}
		usage = Usage{Used: clamp(q.Referenced), Limit: d.limitOf(q)}
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
		if err := d.closeGroup(path, subvolume); err != nil {
			return err
		}
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
		return d.removeGroup(path, subvolume)
	})
}

// closeGroup gives the group 1/<id> of a destroyed subvolume the least limit.
func (d *disk) closeGroup(path string, subvolume uint64) error {
	group, whose, err := d.groupOf(path, subvolume)
	if err != nil || whose != ours || group.MaxReferenced == 1 {
		return err
	}
	if there, err := btrfs.Exists(path, subvolume); there || err != nil {
		return err
	}
	return btrfs.LimitQgroup(path, group.ID, 1)
}

func (d *disk) removeGroup(path string, subvolume uint64) error {
	group, whose, err := d.groupOf(path, subvolume)
	if err != nil || whose != ours {
		return err
	}
	return btrfs.RemoveQgroup(path, group.ID)
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
			if g.charged && (g.own || g.marked) {
				held = append(held, id)
			}
		}
		return err
	})
	return held, err
}

// StaleQuota takes every group of level 0 of a subvolume that is gone, and whose tree the
// kernel has dropped, for stale: they are of no use to anyone, whoever made the
// subvolume. So is a group 1/<id> without members that was made here.
func (d *disk) StaleQuota() (stale []uint64, err error) {
	if d.mode == btrfs.QuotaNone {
		return nil, nil
	}
	err = d.inRoot(func(path string) error {
		gone, err := d.quotaGroups(path)
		if err != nil || len(gone) == 0 {
			return err
		}
		err = btrfs.WalkTreeIDs(path, func(id uint64) error { delete(gone, id); return nil })
		for id, g := range gone {
			if g.charged {
				continue
			}
			if !g.own {
				members, failed := btrfs.QgroupMembers(path, d.group(id))
				err = errors.Join(err, failed)
				if members || !g.marked {
					continue
				}
			}
			stale = append(stale, id)
		}
		return err
	})
	return stale, err
}

// quotaGroups are those of a subvolume: there is 0/<id>; there is 1/<id>, and it was made
// here; under simple quota one of them is charged for what is there still, which a snapshot may
// hold when the subvolume is gone, and the kernel keeps it until then.
type quotaGroups struct{ own, marked, charged bool }

// quotaGroups returns those of every subvolume, by its ID.
func (d *disk) quotaGroups(path string) (map[uint64]quotaGroups, error) {
	all := map[uint64]quotaGroups{}
	err := btrfs.WalkQgroups(path, func(q btrfs.Qgroup) error {
		id := q.ID.Subvolume()
		own := q.ID.Level() == 0
		if id < firstSubvolume || !own && (q.ID != d.group(id) || q.Mark != mark) {
			return nil
		}
		g := all[id]
		g.own = g.own || own
		g.marked = g.marked || !own
		g.charged = g.charged || d.mode == btrfs.QuotaSimple && q.Referenced > 0
		all[id] = g
		return nil
	})
	return all, err
}

// firstSubvolume is the least ID of a subvolume (BTRFS_FIRST_FREE_OBJECTID).
const firstSubvolume = 256

// limitOf is 0 for no limit, also for that of a group that was not made here.
func (d *disk) limitOf(q btrfs.Qgroup) int64 {
	if q.MaxReferenced == btrfs.NoLimit || d.mode == btrfs.QuotaSimple && q.Mark != mark {
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
