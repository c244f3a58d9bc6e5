package pool

import (
	"context"
	"slices"
	"strings"

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs"
	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
)

// Area is a directory of a pool: one for each kind, and one for what is on its
// way out.
type Area string

// AreaRemoving holds slots that were removed and whose subvolume may be there
// still.
const AreaRemoving Area = "removing"

// Areas are all areas of a pool.
var Areas = []Area{Area(meta.Active), Area(meta.Committed), Area(meta.View), AreaRemoving}

// Slot is the place of one subvolume: the directory <area>/<name>, which bears
// the record, and the subvolume fs in it. Each subvolume has a directory of its
// own because the kernel locks the directory that a snapshot is made in until
// the transaction has been committed: in separate directories concurrent
// snapshots share one commit.
type Slot struct {
	Area Area
	Name string
}

// SlotOf is where the subvolume of a kind and ID lives.
func SlotOf(kind meta.Kind, id string) Slot { return Slot{Area(kind), id} }

// Removing is where a slot goes on its way out. The kind keeps a volume and a
// snapshot of one ID apart.
func (s Slot) Removing() Slot { return Slot{AreaRemoving, string(s.Area) + "-" + s.Name} }

// Ref is what a slot in AreaRemoving was, as far as its name says.
func (s Slot) Ref() (meta.Ref, bool) {
	kind, id, ok := string(s.Area), s.Name, true
	if s.Area == AreaRemoving {
		kind, id, ok = strings.Cut(s.Name, "-")
	}
	return meta.Ref{Class: meta.Kind(kind).Class(), ID: id}, ok && meta.ValidID(id)
}

// VolumeAt returns the ID of the volume whose subvolume is at a path, wherever its pool
// is, also if the volume is on its way out; false for anything else. It goes by the names
// in the path alone, and the last ones count: a pool may lie in a volume of another one.
func VolumeAt(subvolume string) (id string, ok bool) {
	names := strings.Split(subvolume, "/")
	last := len(names) - 1
	if last < 3 || names[last] != subvolumeName { // the first is empty: the path is absolute
		return "", false
	}
	kind, id := names[last-2], names[last-1]
	if kind == string(AreaRemoving) {
		kind, id, _ = strings.Cut(id, "-")
	}
	return id, slices.Contains(meta.Volumes.Kinds(), meta.Kind(kind)) && meta.ValidID(id)
}

// String returns the slot's path within its pool.
func (s Slot) String() string { return string(s.Area) + "/" + s.Name }

// Filesystem is what the engine needs of the filesystem below a pool. Every
// method that changes something is one step of the kernel's: it happened or it
// did not. Anyone may commit between two steps, and so make the earlier ones durable
// and not the later ones. What is absent gives fs.ErrNotExist, what
// is in the way fs.ErrExist. All methods may be called at the same time.
type Filesystem interface {
	// PoolID returns the pool's UUID.
	PoolID() string
	// Alive fails when the filesystem that was opened is no longer the one
	// mounted there.
	Alive() error
	// Thawed returns when the filesystem lets a writer in, and waits while it is frozen.
	Thawed() error
	// Pin makes what is done until release cheaper: what each method opens, and
	// closes again, stays open.
	Pin() (release func())
	// Room returns the room in the pool, at little cost.
	Room() (btrfs.Room, error)
	// MountOptions returns the mount options that the whole filesystem had when the pool was
	// opened, none where they are not known. It asks nobody.
	MountOptions() []string
	// Space returns where the room in the pool is.
	Space() (btrfs.Space, error)
	// Devices returns the devices and their error counters.
	Devices() ([]btrfs.Device, error)
	// SlotPath returns the absolute path of the subvolume, to be mounted.
	SlotPath(Slot) string

	Ledger
	Subvolumes
	Quota
}

// Ledger keeps the slots and their records.
type Ledger interface {
	// List returns the names in an area, in no order.
	List(Area) ([]string, error)
	// Mkdir makes an empty slot.
	Mkdir(Slot) error
	// Rmdir takes an empty slot away; ErrNotEmpty for any other. The stub of a subvolume,
	// see btrfs.IsStub, goes with it.
	Rmdir(Slot) error
	// Beside returns the names of what lies in a slot beside its subvolume, or the stub of
	// one, and stops Rmdir. ErrForeign for a slot that is no directory.
	Beside(Slot) ([]string, error)
	// Move renames a slot with all that is in it; fs.ErrExist if to is there.
	Move(from, to Slot) error
	// Record returns what SetRecord wrote, nil for a slot without a record.
	Record(Slot) ([]byte, error)
	SetRecord(Slot, []byte) error
	// Sync makes durable the slot and its record, and the making or end of its subvolume;
	// for a Slot without a name the area: which slots there are; for the zero Slot the pool's
	// directory. What lies in another tree it makes durable only by chance: limits, and what
	// was set on the subvolume.
	Sync(Slot) error
}

// Subvolumes makes and removes the subvolume of a slot.
type Subvolumes interface {
	// Create makes an empty subvolume. The mode of its root directory is 0777 without the
	// bits of the umask: set in a step of its own, a power cut could take it alone.
	Create(Slot) error
	// Snapshot makes a copy. It is durable, and so is all that came before it, when
	// Snapshot returns. Those that are made at the same time share commits.
	Snapshot(from, to Slot, readOnly bool) error
	// Destroy removes the subvolume with all that is nested in it.
	Destroy(Slot) error
	// Info returns what btrfs knows of the subvolume.
	Info(Slot) (btrfs.SubvolumeInfo, error)
	// SwapFiles returns the active swap files in the subvolume, as far as their paths can be
	// seen from here.
	SwapFiles(Slot) ([]string, error)
	// Outside returns the subvolumes of the pool that lie outside of it; with an error those
	// that could be read.
	Outside() ([]OutsideSubvolume, error)
	// Nested returns the paths of the subvolumes inside, relative to it, one
	// level deep.
	Nested(Slot) ([]string, error)
	// NestedUpTo is Nested for those that were made up to a transaction.
	NestedUpTo(s Slot, transid uint64) ([]string, error)
	// Census returns which subvolumes there are and where, read in one pass.
	Census() (Census, error)
	// NestedSince is Census, without the slots, of the subvolumes with an ID of at least from.
	// What is made has a larger ID than all before, so it costs as much as was made since.
	NestedSince(from uint64) (Census, error)
	// SyncRoot makes durable what Apply has set.
	SyncRoot(Slot) error
	// Apply sets the properties of the subvolume's root directory, which what
	// is created in it inherits.
	Apply(Slot, meta.Parameters) error
}

// Census is which subvolumes there are, by ID.
type Census struct {
	Slots  map[Slot]uint64   // those of volumes and snapshots
	Nested map[uint64]uint64 // those that lie in other ones, also in foreign ones, and in which
	Last   uint64            // the largest ID, 0 for none
}

// Hosts returns what is nested in each subvolume that is not nested itself, at any depth.
func (c Census) Hosts() map[uint64][]uint64 {
	hosts, known := map[uint64][]uint64{}, make(map[uint64]uint64, len(c.Nested))
	for id := range c.Nested {
		host := c.hostOf(id, known)
		hosts[host] = append(hosts[host], id)
	}
	return hosts
}

// hostOf follows a nested subvolume outwards to the one that is not nested. Whoever nests
// them chooses the depth, so it goes no way twice. They may change while they are read: no
// circle holds it up.
func (c Census) hostOf(id uint64, known map[uint64]uint64) uint64 {
	var way []uint64
	for range len(c.Nested) {
		host, is := known[id]
		parent, nested := c.Nested[id]
		if is {
			id = host
		}
		if is || !nested {
			break
		}
		way = append(way, id)
		id = parent
	}
	for _, passed := range way {
		known[passed] = id
	}
	return id
}

// Quota limits and counts, by subvolume ID. Where the pool has no quota, limits
// are accepted and void.
type Quota interface {
	// QuotaStatus returns the state of the accounting.
	QuotaStatus() (btrfs.QuotaStatus, error)
	// Rescan starts to count anew; nil if that is under way.
	Rescan() error
	// SetLimit bounds what a subvolume uses, in bytes. It may be repeated.
	SetLimit(subvolume uint64, bytes int64) error
	// Bound sees to it that a volume and what is nested in it, at any depth, hold no more
	// than size together. What was written or made since the last time it sees only now. It
	// returns what the nested ones hold that Usage of the volume leaves out.
	Bound(volume uint64, size int64, nested []uint64) (held Usage, err error)
	// LiftLimit takes the limit away: at it, simple quota refuses even Destroy.
	LiftLimit(subvolume uint64) error
	// Limits returns all limits set, by subvolume ID, read in one pass.
	Limits() (map[uint64]int64, error)
	// Usage returns what a subvolume uses; ErrNoQuota where nobody counts.
	Usage(subvolume uint64) (Usage, error)
	// ForgetQuota removes the accounting of a destroyed subvolume. It fails
	// while the kernel still needs it, and is tried again later.
	ForgetQuota(subvolume uint64) error
	// PinnedQuota returns the destroyed subvolumes whose accounting the kernel needs still:
	// it has not dropped their tree or, in simple mode, a snapshot holds what they wrote.
	PinnedQuota() ([]uint64, error)
	// StaleQuota returns the destroyed subvolumes whose accounting nobody needs.
	StaleQuota() ([]uint64, error)
}

// OutsideSubvolume is a subvolume that is of a pool and lies outside of it: in another subvolume
// of its filesystem, as when a snapshot has taken the place of the one around the pool.
type OutsideSubvolume struct {
	Slot   Slot
	Record []byte
	Path   string // of the subvolume, from the top level of the filesystem
	Home   string // where the pool has its slot's, likewise
}

// Usage is what a subvolume uses, in bytes. Numbers are those of the last
// transaction, at most 30 s old.
type Usage struct {
	Used      int64 `json:"used"`      // referenced: shared with others or not
	Exclusive int64 `json:"exclusive"` // freed by its removal; not known in simple mode
	Limit     int64 `json:"limit"`     // 0: none
}

// Host finds the pools of a node.
type Host interface {
	// Look reads what Open would read of a pool, and changes nothing: where it does not
	// return, Open would not.
	Look(ctx context.Context, name string) error
	// Thawed returns when the filesystem of a pool lets a writer in, and waits while it is
	// frozen: until then Open would not return.
	Thawed(name string) error
	// Pools returns the names of the pools that are there now, and of the
	// directories that look like one and are not, with the reason.
	Pools() (names []string, refused map[string]error, err error)
	// Open makes a pool ready for use: it is given an ID and areas if it has
	// none, and its quota is turned on.
	Open(ctx context.Context, name string) (Filesystem, error)
	// Remember notes, durably, that a pool is in use under a name. Known returns the
	// last name of every pool that ever was, by ID, until Forget.
	Remember(poolID, name string) error
	Known() (map[string]string, error)
	Forget(poolID string) error
	// Wait returns when the pools may have changed, or ctx has ended.
	Wait(ctx context.Context)
}
