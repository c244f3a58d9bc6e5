package pooltest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math"
	"path"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs"
	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
	"github.com/btrfs-csi/btrfs-csi/pkg/pool"
)

// ErrCrash is the error of every call after a crash, until Kill or PowerCut.
var ErrCrash = errors.New("crashed")

// Filesystem is a pool in memory. Set its exported fields before use.
//
// It models the trees of btrfs separately. A commit makes all of them durable. An fsync of a
// slot or the root of a subvolume is a commit only in the transaction in which a
// subvolume was made or destroyed there. In any other transaction it writes a log, which contains
// that one inode and nothing of the other trees. After Unlogged not even that.
type Filesystem struct {
	ID   string
	Mode btrfs.QuotaMode
	// Size is the total space of the pool, in bytes.
	Size int64

	opened atomic.Int64 // how many operations have it open

	mu               sync.Mutex // protects all below
	current, durable *state
	steps            int
	faults           []fault
	failing          map[string]error
	crashed          bool
	away             bool
	readOnly         bool
	inconsistent     bool
	unlogged         bool
	frozen           map[pool.Slot]bool // filesystems in disk files, all of which are mounted
	trace            []string
	parts            int                      // tries of SnapshotTogether that will fail
	silent           map[string]chan struct{} // by method; closed by Answer
	waiting          map[string]int           // number of waiting calls, by method
}

var (
	_ pool.Filesystem = (*Filesystem)(nil)
	_ pool.Directory  = (*Filesystem)(nil)
)

// fault is a failure of some steps.
type fault struct {
	step  int
	until int // the last step that fails
	err   error
	after bool // the step takes effect first
	crash bool
}

// state is all that a commit makes durable.
type state struct {
	slots   map[pool.Slot]*slot
	outside []outside
	groups  map[uint64]int64 // limits by subvolume ID, 0 for none
	dropped map[uint64]bool  // destroyed subvolumes whose tree the kernel has not dropped
	last    uint64           // largest subvolume ID
	inode   uint64           // of the last slot
	transid uint64
	now     time.Time
}

// outside is a slot that a roll back moved out of the pool.
type outside struct {
	at pool.Slot
	*slot
}

// slot is a directory with its xattr and its contents.
type slot struct {
	inode     uint64
	changed   uint64 // the transaction in which a subvolume was last made or destroyed in it
	record    []byte // nil: none
	subvolume *subvolume
	file      bool // contains something that is no subvolume
	stub      bool // the subvolume is outside of the pool
}

type subvolume struct {
	btrfs.SubvolumeInfo
	data       string
	nested     []string
	nestedAt   []uint64 // the transaction of each
	properties meta.Parameters
	disk       disk
}

// disk is the disk file of a subvolume.
type disk struct {
	content meta.Content // Files for no disk file
	size    int64
}

// NewFilesystem returns an empty pool of 100 GiB.
func NewFilesystem(mode btrfs.QuotaMode) *Filesystem {
	f := &Filesystem{ID: uuid.NewString(), Mode: mode, Size: 100 << 30, failing: map[string]error{}, frozen: map[pool.Slot]bool{}}
	f.current = &state{
		slots: map[pool.Slot]*slot{}, groups: map[uint64]int64{}, dropped: map[uint64]bool{},
		last: 255, transid: 7, now: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC),
	}
	f.durable = f.current.clone()
	return f
}

func (s *state) clone() *state {
	c := *s
	c.groups, c.dropped = maps.Clone(s.groups), maps.Clone(s.dropped)
	c.slots = make(map[pool.Slot]*slot, len(s.slots))
	for at, old := range s.slots {
		c.slots[at] = old.clone()
	}
	c.outside = slices.Clone(s.outside) // the elements never change
	return &c
}

func (s *slot) clone() *slot {
	c := *s
	c.record = slices.Clone(s.record)
	if s.subvolume != nil {
		sub := *s.subvolume
		sub.nested, sub.nestedAt = slices.Clone(sub.nested), slices.Clone(sub.nestedAt)
		c.subvolume = &sub
	}
	return &c
}

// CrashAt makes the n-th step from now on the last one. The step fails with ErrCrash, after it
// took effect if after is set, else without effect. Every later call fails with ErrCrash.
func (f *Filesystem) CrashAt(n int, after bool) {
	f.plan(fault{step: n, until: n, err: ErrCrash, after: after, crash: true})
}

// FailAt makes the steps n to m from now on fail with err, without effect.
func (f *Filesystem) FailAt(n, m int, err error) { f.plan(fault{step: n, until: m, err: err}) }

func (f *Filesystem) plan(p fault) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.faults) == 0 {
		f.trace = nil
	}
	p.step += f.steps
	p.until += f.steps
	f.faults = append(f.faults, p)
}

// Fail makes every call of a method fail with err, without effect; nil ends that.
func (f *Filesystem) Fail(method string, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err == nil {
		delete(f.failing, method)
		return
	}
	f.failing[method] = err
}

// AllMethods stands for all methods in Silence and Waiting.
const AllMethods = "*"

// Silence makes every call of a method wait until Answer before it takes effect.
func (f *Filesystem) Silence(method string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.silent == nil {
		f.silent, f.waiting = map[string]chan struct{}{}, map[string]int{}
	}
	f.silent[method] = make(chan struct{})
}

// Answer ends all silence. Waiting calls continue.
func (f *Filesystem) Answer() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, end := range f.silent {
		close(end)
	}
	clear(f.silent)
}

// Waiting returns the number of waiting calls of a method.
func (f *Filesystem) Waiting(method string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	if method != AllMethods {
		return f.waiting[method]
	}
	all := 0
	for _, n := range f.waiting {
		all += n
	}
	return all
}

// answering waits while a method is silent. The caller does not hold mu.
func (f *Filesystem) answering(method string) {
	f.mu.Lock()
	end := f.silent[method]
	if end == nil {
		end = f.silent[AllMethods]
	}
	if end != nil {
		f.waiting[method]++
		f.mu.Unlock()
		<-end
		f.mu.Lock()
		f.waiting[method]--
	}
	f.mu.Unlock()
}

// Thawed waits while it is silenced.
func (f *Filesystem) Thawed() error {
	f.answering("Thawed")
	return nil
}

// Steps returns the number of steps so far.
func (f *Filesystem) Steps() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.steps
}

// Trace returns the methods and slots of the steps since a crash or fault was
// planned, for messages.
func (f *Filesystem) Trace() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.trace)
}

// Kill ends the process: the filesystem keeps its current state.
func (f *Filesystem) Kill() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.restart(f.current)
}

// PowerCut goes back to the durable state, also of the trees that the kernel has to drop.
func (f *Filesystem) PowerCut() {
	f.mu.Lock()
	defer f.mu.Unlock()
	clear(f.frozen)
	f.restart(f.durable)
}

func (f *Filesystem) restart(from *state) {
	f.current = from.clone()
	f.crashed, f.unlogged, f.faults, f.trace = false, false, nil, nil
	clear(f.failing)
}

// Copy returns another disk with the same content and ID, like one that dd(1) has copied. It has
// the state of the last commit.
func (f *Filesystem) Copy() *Filesystem {
	f.mu.Lock()
	defer f.mu.Unlock()
	return &Filesystem{ID: f.ID, Mode: f.Mode, Size: f.Size, failing: map[string]error{}, frozen: map[pool.Slot]bool{}, current: f.durable.clone(), durable: f.durable.clone()}
}

// PeriodicCommit makes everything durable, as the kernel does every 30 s.
func (f *Filesystem) PeriodicCommit() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.commit()
}

// Unlogged makes every later fsync return early that would write a log, as Linux may (see
// docs/reliability.md), until a restart. Others commit just before.
func (f *Filesystem) Unlogged() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.commit()
	f.unlogged = true
}

func (f *Filesystem) commit() {
	f.current.transid++
	f.durable = f.current.clone()
}

// Clean drops the trees of destroyed subvolumes, as the kernel's cleaner does.
func (f *Filesystem) Clean() {
	f.mu.Lock()
	defer f.mu.Unlock()
	clear(f.current.dropped)
	f.commit()
}

// Census returns no nested subvolumes, which have no IDs here.
func (f *Filesystem) Census() (census pool.Census, err error) {
	err = f.look("Census", pool.Slot{}, func(s *state) error {
		census = pool.Census{Slots: map[pool.Slot]uint64{}, Last: s.last}
		for at, found := range s.slots {
			if at.Area != pool.AreaRemoving && found.subvolume != nil {
				census.Slots[at] = found.subvolume.ID
			}
		}
		return nil
	})
	return census, err
}

func (f *Filesystem) NestedSince(uint64) (census pool.Census, err error) {
	err = f.look("NestedSince", pool.Slot{}, func(s *state) error { census.Last = s.last; return nil })
	return census, err
}

func (f *Filesystem) Bound(id uint64, size int64, _ []uint64) (pool.Usage, error) {
	return pool.Usage{}, f.SetLimit(id, size)
}

// step runs a call that changes something.
func (f *Filesystem) step(method string, at pool.Slot, do func(*state) error) error {
	f.answering(method)
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.reachable(method); err != nil {
		return err
	}
	f.steps++
	f.trace = append(f.trace, fmt.Sprintf("%d %s %s", f.steps, method, at))
	for _, p := range f.faults {
		if f.steps < p.step || f.steps > p.until {
			continue
		}
		f.crashed = p.crash
		if p.after {
			_ = do(f.current)
		}
		return wrap(method, at, p.err)
	}
	if f.readOnly && method != "Sync" && method != "Commit" { // nothing to do
		return wrap(method, at, unix.EROFS)
	}
	return wrap(method, at, do(f.current))
}

// look runs a call that changes nothing.
func (f *Filesystem) look(method string, at pool.Slot, do func(*state) error) error {
	f.answering(method)
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.reachable(method); err != nil {
		return err
	}
	return wrap(method, at, do(f.current))
}

func (f *Filesystem) reachable(method string) error {
	switch {
	case f.crashed:
		return ErrCrash
	case f.away:
		return fmt.Errorf("%w: nothing is mounted", pool.ErrAway)
	}
	return f.failing[method]
}

func wrap(method string, at pool.Slot, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s %s: %w", method, at, err)
}

// at returns a slot.
func (s *state) at(at pool.Slot) (*slot, error) {
	if found, ok := s.slots[at]; ok {
		return found, nil
	}
	return nil, fs.ErrNotExist
}

// in returns the subvolume of a slot.
func (s *state) in(at pool.Slot) (*subvolume, error) {
	found, err := s.at(at)
	if err == nil && found.subvolume == nil {
		err = fs.ErrNotExist
	}
	if err != nil {
		return nil, err
	}
	return found.subvolume, nil
}

// room returns a slot in which a subvolume can be made.
func (s *state) room(at pool.Slot) (*slot, error) {
	found, err := s.at(at)
	if err == nil && (found.subvolume != nil || found.file || found.stub) {
		err = fs.ErrExist
	}
	return found, err
}

// live reports whether a subvolume exists, in the pool or outside.
func (s *state) live(id uint64) bool {
	is := func(found *slot) bool { return found.subvolume != nil && found.subvolume.ID == id }
	for _, found := range s.slots {
		if is(found) {
			return true
		}
	}
	return slices.ContainsFunc(s.outside, func(o outside) bool { return is(o.slot) })
}

func (s *state) add(to *slot, sub subvolume) btrfs.SubvolumeInfo {
	s.last++
	s.now = s.now.Add(time.Second)
	sub.ID, sub.UUID, sub.CreatedTransid, sub.Created = s.last, btrfs.UUID(uuid.New()), s.transid, s.now
	s.groups[sub.ID] = 0
	to.subvolume, to.changed = &sub, s.transid
	return sub.SubvolumeInfo
}

func (s *state) makeSlot(at pool.Slot) {
	s.inode++
	s.slots[at] = &slot{inode: s.inode}
}

func (f *Filesystem) PoolID() string { return f.ID }

func (f *Filesystem) Alive() error {
	return f.look("Alive", pool.Slot{}, func(*state) error { return nil })
}

func (f *Filesystem) Prepare(context.Context) error {
	return f.look("Prepare", pool.Slot{}, func(*state) error { return nil })
}

func (f *Filesystem) Open() (pool.Directory, error) {
	err := f.look("Open", pool.Slot{}, func(*state) error { return nil })
	if err != nil {
		return nil, err
	}
	f.opened.Add(1)
	return f, nil
}

func (f *Filesystem) Close() { f.opened.Add(-1) }

// Opened returns how many operations have it open.
func (f *Filesystem) Opened() int64 { return f.opened.Load() }

func (f *Filesystem) Named(err error) error { return err }

func (f *Filesystem) Room() (room btrfs.Room, err error) {
	err = f.look("Room", pool.Slot{}, func(s *state) error {
		used := int64(0)
		for _, found := range s.slots {
			if found.subvolume != nil {
				used += int64(len(found.subvolume.data))
			}
		}
		room = btrfs.Room{Size: f.Size, Available: f.Size - used, Metadata: f.Size - used, ReadOnly: f.readOnly}
		return nil
	})
	return room, err
}

func (f *Filesystem) Space() (btrfs.Space, error) {
	f.answering("Space")
	room, err := f.Room()
	return btrfs.Space{Room: room, DataTotal: room.Size, DataUsed: room.Size - room.Available}, err
}

func (f *Filesystem) Devices() ([]btrfs.Device, error) {
	return nil, f.look("Devices", pool.Slot{}, func(*state) error { return nil })
}

func (f *Filesystem) SlotPath(at pool.Slot) string {
	return path.Join("/memory", f.ID, at.String(), "fs")
}

func (f *Filesystem) List() (slots []pool.Slot, err error) {
	err = f.look("List", pool.Slot{}, func(s *state) error {
		slots = slices.SortedFunc(maps.Keys(s.slots), func(a, b pool.Slot) int {
			return cmp.Or(cmp.Compare(slices.Index(pool.Areas, a.Area), slices.Index(pool.Areas, b.Area)), cmp.Compare(a.Name, b.Name))
		})
		return nil
	})
	return slots, err
}

func (f *Filesystem) Mkdir(at pool.Slot) error {
	return f.step("Mkdir", at, func(s *state) error {
		if s.slots[at] != nil {
			return fs.ErrExist
		}
		s.makeSlot(at)
		return nil
	})
}

func (f *Filesystem) Rmdir(at pool.Slot) error {
	return f.step("Rmdir", at, func(s *state) error {
		found, err := s.at(at)
		if err != nil {
			return err
		}
		if found.subvolume != nil || found.file {
			return fmt.Errorf("%w: it contains a file or a subvolume", pool.ErrNotEmpty)
		}
		delete(s.slots, at)
		return nil
	})
}

func (f *Filesystem) Find(slots ...pool.Slot) (all []pool.Contents, err error) {
	err = f.look("Find", slots[0], func(s *state) error {
		for _, at := range slots {
			if found, ok := s.slots[at]; ok {
				all = append(all, f.contents(at, found))
			}
		}
		return nil
	})
	return all, err
}

// contents returns what a slot contains. Fail("Info") fails it too.
func (f *Filesystem) contents(at pool.Slot, found *slot) pool.Contents {
	is := pool.Contents{Slot: at, Record: slices.Clone(found.record), InfoError: f.failing["Info"]}
	if is.InfoError == nil && found.subvolume == nil {
		is.InfoError = fs.ErrNotExist
	}
	if is.InfoError == nil {
		is.Info = found.subvolume.SubvolumeInfo
	}
	if found.file {
		is.Beside = []string{"file"}
	}
	return is
}

func (f *Filesystem) SwapFiles(at pool.Slot) ([]string, error) {
	return nil, f.look("SwapFiles", at, func(*state) error { return nil })
}

func (f *Filesystem) QuotaMode() btrfs.QuotaMode { return f.Mode }

func (f *Filesystem) MountOptions() []string { return nil }

func (f *Filesystem) Outside() (found []pool.OutsideSubvolume, err error) {
	err = f.look("Outside", pool.Slot{}, func(s *state) error {
		for _, o := range s.outside {
			found = append(found, pool.OutsideSubvolume{
				Slot: o.at, Record: slices.Clone(o.record), Path: path.Join("broken", o.at.String(), "fs"), Home: path.Join("pool", o.at.String(), "fs"),
			})
		}
		return nil
	})
	return found, err
}

func (f *Filesystem) Move(from, to pool.Slot) error {
	return f.step("Move", from, func(s *state) error {
		found, err := s.at(from)
		if err != nil {
			return err
		}
		if s.slots[to] != nil {
			return fs.ErrExist
		}
		delete(s.slots, from)
		s.slots[to] = found
		return nil
	})
}

func (f *Filesystem) SetRecord(at pool.Slot, record []byte) error {
	return f.step("SetRecord", at, func(s *state) error {
		found, err := s.at(at)
		if err == nil {
			found.record = slices.Clone(record)
		}
		return err
	})
}

func (f *Filesystem) Commit() error {
	return f.step("Commit", pool.Slot{}, func(*state) error { f.commit(); return nil })
}

func (f *Filesystem) Sync(at pool.Slot) error {
	return f.step("Sync", at, func(s *state) error {
		found, err := s.at(at)
		switch {
		case err != nil:
			return err
		case found.changed == s.transid:
			f.commit()
		default:
			f.log(at, found)
		}
		return nil
	})
}

// log makes a slot durable with its name and record, but without its subvolume or properties.
func (f *Filesystem) log(at pool.Slot, found *slot) {
	if f.unlogged {
		return
	}
	logged := found.clone()
	logged.subvolume = nil
	for was, old := range f.durable.slots {
		if old.inode == found.inode {
			logged.subvolume = old.subvolume
			delete(f.durable.slots, was)
		}
	}
	f.durable.slots[at] = logged
}

func (f *Filesystem) Create(at pool.Slot) (info btrfs.SubvolumeInfo, err error) {
	err = f.step("Create", at, func(s *state) error {
		to, err := s.room(at)
		if err == nil {
			info = s.add(to, subvolume{})
		}
		return err
	})
	return info, err
}

func (f *Filesystem) Snapshot(from, to pool.Slot, readOnly bool) (info btrfs.SubvolumeInfo, err error) {
	err = f.step("Snapshot", to, func(s *state) (err error) {
		if info, err = s.snapshot(from, to, readOnly); err == nil {
			f.commit()
		}
		return err
	})
	return info, err
}

func (s *state) snapshot(from, to pool.Slot, readOnly bool) (info btrfs.SubvolumeInfo, err error) {
	source, err := s.in(from)
	if err != nil {
		return info, err
	}
	target, err := s.room(to)
	if err != nil {
		return info, err
	}
	return s.add(target, subvolume{
		SubvolumeInfo: btrfs.SubvolumeInfo{ParentUUID: source.UUID, ReadOnly: readOnly},
		data:          source.data, properties: source.properties, disk: source.disk, // nested subvolumes are left out
	}), nil
}

// SnapshotTogether takes a step for each snapshot. All are in one transaction, unless Part was
// called.
func (f *Filesystem) SnapshotTogether(copies ...pool.Copy) ([]btrfs.SubvolumeInfo, error) {
	infos := make([]btrfs.SubvolumeInfo, len(copies))
	for i, c := range copies {
		err := f.step("SnapshotTogether", c.To, func(s *state) (err error) {
			infos[i], err = s.snapshot(c.From, c.To, true)
			switch {
			case err != nil:
			case i == len(copies)-1:
				f.parts = max(0, f.parts-1)
				f.commit()
			case f.parts > 0:
				f.commit()
			}
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	return infos, nil
}

// Part makes the next n tries of SnapshotTogether need a transaction for each snapshot.
func (f *Filesystem) Part(n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.parts = n
}

func (f *Filesystem) SyncRoot(at pool.Slot) error {
	return f.step("SyncRoot", at, func(s *state) error {
		sub, err := s.in(at)
		if err != nil {
			return err
		}
		if sub.CreatedTransid == s.transid {
			f.commit()
			return nil
		}
		if f.unlogged {
			return nil
		}
		for _, old := range f.durable.slots {
			if old.subvolume != nil && old.subvolume.ID == sub.ID {
				old.subvolume.properties, old.subvolume.disk = sub.properties, sub.disk
			}
		}
		return nil
	})
}

func (f *Filesystem) MakeDisk(at pool.Slot, content meta.Content, size int64) error {
	return f.step("MakeDisk", at, func(s *state) error {
		sub, err := s.in(at)
		if err == nil {
			sub.disk = disk{content, size}
		}
		return err
	})
}

func (f *Filesystem) GrowDisk(at pool.Slot, size int64) error {
	return f.step("GrowDisk", at, func(s *state) error {
		sub, err := s.in(at)
		if err == nil && sub.disk.content == meta.Files {
			err = fs.ErrNotExist
		}
		if err == nil {
			sub.disk.size = max(sub.disk.size, size)
		}
		return err
	})
}

func (f *Filesystem) Freeze(at pool.Slot) (frozen bool, err error) {
	err = f.step("Freeze", at, func(s *state) error {
		sub, err := s.in(at)
		if err != nil || sub.disk.content == meta.Files {
			return cmp.Or(err, fs.ErrNotExist)
		}
		if frozen = !f.frozen[at]; frozen {
			f.frozen[at] = true
		}
		return nil
	})
	return frozen, err
}

func (f *Filesystem) Thaw(at pool.Slot) error {
	return f.step("Thaw", at, func(*state) error {
		if !f.frozen[at] {
			return pool.ErrThawed
		}
		delete(f.frozen, at)
		return nil
	})
}

// Frozen returns how many filesystems in disk files are frozen.
func (f *Filesystem) Frozen() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.frozen)
}

func (f *Filesystem) DiskSize(at pool.Slot) (size int64, err error) {
	err = f.look("DiskSize", at, func(s *state) error {
		sub, err := s.in(at)
		if err == nil && sub.disk.content == meta.Files {
			err = fs.ErrNotExist
		}
		if err == nil {
			size = sub.disk.size
		}
		return err
	})
	return size, err
}

func (f *Filesystem) Destroy(at pool.Slot) error {
	return f.step("Destroy", at, func(s *state) error {
		sub, err := s.in(at)
		if err != nil {
			return err
		}
		if limit := s.groups[sub.ID]; f.Mode == btrfs.QuotaSimple && limit > 0 && int64(len(sub.data)) >= limit {
			return unix.EDQUOT
		}
		found := s.slots[at]
		found.subvolume, found.changed = nil, s.transid
		s.dropped[sub.ID] = true
		return nil
	})
}

func (f *Filesystem) Info(at pool.Slot) (info btrfs.SubvolumeInfo, err error) {
	err = f.look("Info", at, func(s *state) error {
		sub, err := s.in(at)
		if err == nil {
			info = sub.SubvolumeInfo
		}
		return err
	})
	return info, err
}

func (f *Filesystem) Nested(at pool.Slot) (paths []string, err error) {
	f.answering("Nested")
	return f.NestedUpTo(at, math.MaxUint64)
}

func (f *Filesystem) NestedUpTo(at pool.Slot, transid uint64) (paths []string, err error) {
	err = f.look("NestedUpTo", at, func(s *state) error {
		sub, err := s.in(at)
		if err != nil {
			return err
		}
		for i, path := range sub.nested {
			if sub.nestedAt[i] <= transid {
				paths = append(paths, path)
			}
		}
		return nil
	})
	return paths, err
}

func (f *Filesystem) Apply(at pool.Slot, p meta.Parameters) error {
	return f.step("Apply", at, func(s *state) error {
		sub, err := s.in(at)
		if err != nil {
			return err
		}
		if p.NoDataCow && p.Compression != "" {
			return unix.EINVAL
		}
		sub.properties.NoDataCow = sub.properties.NoDataCow || p.NoDataCow
		if p.Compression != "" {
			sub.properties.Compression = p.Compression
		}
		return nil
	})
}

func (f *Filesystem) QuotaStatus() (status btrfs.QuotaStatus, err error) {
	err = f.look("QuotaStatus", pool.Slot{}, func(*state) error {
		status = f.quotaStatus()
		return nil
	})
	return status, err
}

func (f *Filesystem) quotaStatus() btrfs.QuotaStatus {
	return btrfs.QuotaStatus{Mode: f.Mode, Enabled: f.Mode != btrfs.QuotaNone, Inconsistent: f.inconsistent}
}

func (f *Filesystem) Rescan() error {
	return f.step("Rescan", pool.Slot{}, func(*state) error {
		if f.Mode != btrfs.QuotaFull {
			return unix.EINVAL
		}
		f.inconsistent = false
		return nil
	})
}

func (f *Filesystem) SetLimit(id uint64, bytes int64) error {
	return f.quota("SetLimit", func(s *state) error {
		if _, ok := s.groups[id]; !ok {
			return fs.ErrNotExist
		}
		s.groups[id] = bytes
		return nil
	})
}

func (f *Filesystem) LiftLimit(id uint64) error {
	return f.quota("LiftLimit", func(s *state) error {
		if _, ok := s.groups[id]; ok {
			s.groups[id] = 0
		}
		return nil
	})
}

func (f *Filesystem) ForgetQuota(id uint64) error {
	return f.quota("ForgetQuota", func(s *state) error {
		if s.live(id) || s.dropped[id] {
			return unix.EBUSY
		}
		delete(s.groups, id)
		return nil
	})
}

// quota is step, without effect in a pool without quota.
func (f *Filesystem) quota(method string, do func(*state) error) error {
	return f.step(method, pool.Slot{}, func(s *state) error {
		if f.Mode == btrfs.QuotaNone {
			return nil
		}
		return do(s)
	})
}

func (f *Filesystem) Groups() (g pool.Groups, err error) {
	err = f.look("Groups", pool.Slot{}, func(s *state) error {
		if f.Mode == btrfs.QuotaNone {
			return nil
		}
		g.Status = f.quotaStatus()
		g.Limits, g.Pinned = maps.Clone(s.groups), slices.Collect(maps.Keys(s.dropped))
		for id := range s.groups {
			if !s.live(id) && !s.dropped[id] {
				g.Stale = append(g.Stale, id)
			}
		}
		return nil
	})
	return g, err
}

func (f *Filesystem) Usage(id uint64) (usage pool.Usage, err error) {
	err = f.look("Usage", pool.Slot{}, func(s *state) error {
		limit, ok := s.groups[id]
		switch {
		case f.Mode == btrfs.QuotaNone:
			return pool.ErrNoQuota
		case !ok:
			return fs.ErrNotExist
		}
		usage.Limit = limit
		for _, found := range s.slots {
			if found.subvolume != nil && found.subvolume.ID == id {
				usage.Used = int64(len(found.subvolume.data))
			}
		}
		return nil
	})
	return usage, err
}
