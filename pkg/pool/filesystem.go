package pool

import (
	"context"
	"path"
	"slices"
	"strings"

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs"
	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
)

// Area is a directory of a pool: one for each kind, and one for removed slots.
type Area string

// AreaRemoving contains removed slots, whose subvolumes may still exist.
const AreaRemoving Area = "removing"

// Areas are all areas of a pool.
var Areas = []Area{Area(meta.Active), Area(meta.Committed), Area(meta.View), AreaRemoving}

// Slot is the directory <area>/<name>, which bears the record of one subvolume and contains the
// subvolume as fs. Each subvolume has its own slot, because the kernel locks the destination
// directory of a snapshot until the transaction is committed. Concurrent snapshots share a commit
// only in separate directories.
type Slot struct {
	Area Area
	Name string
}

// SlotOf returns the slot of a kind and ID.
func SlotOf(kind meta.Kind, id string) Slot { return Slot{Area(kind), id} }

// SlotsOf returns the slots that a volume or snapshot may have, one for each kind of its class.
func SlotsOf(ref meta.Ref) []Slot {
	kinds := ref.Class.Kinds()
	slots := make([]Slot, len(kinds))
	for i, kind := range kinds {
		slots[i] = Slot{Area(kind), ref.ID}
	}
	return slots
}

// Removing returns the name of the slot in AreaRemoving. The kind in the name distinguishes a
// volume from a snapshot with the same ID.
func (s Slot) Removing() Slot { return Slot{AreaRemoving, string(s.Area) + "-" + s.Name} }

// Ref returns the volume or snapshot that the slot's name stands for; false for another name.
func (s Slot) Ref() (meta.Ref, bool) {
	kind, id, ok := string(s.Area), s.Name, true
	if s.Area == AreaRemoving {
		kind, id, ok = strings.Cut(s.Name, "-")
	}
	return meta.Ref{Class: meta.Kind(kind).Class(), ID: id}, ok && meta.ValidID(id)
}

// VolumeAt returns the ID of the volume whose subvolume has this absolute path, also in
// AreaRemoving; false for any other path. Only the last names of the path count, because a pool
// may lie in a volume of another pool.
func VolumeAt(subvolume string) (id string, ok bool) {
	names := strings.Split(subvolume, "/")
	last := len(names) - 1
	if last < 3 || names[last] != subvolumeName { // names[0] is empty, because the path is absolute
		return "", false
	}
	kind, id := names[last-2], names[last-1]
	if kind == string(AreaRemoving) {
		kind, id, _ = strings.Cut(id, "-")
	}
	return id, slices.Contains(meta.Volumes.Kinds(), meta.Kind(kind)) && meta.ValidID(id)
}

// Split splits the absolute path of a subvolume into the directory of its pool, and the path of
// the subvolume below it.
func Split(subvolume string) (dir, below string) {
	slot := path.Dir(subvolume)
	dir = path.Dir(path.Dir(slot))
	return dir, strings.TrimPrefix(subvolume, strings.TrimSuffix(dir, "/")+"/")
}

// String returns the slot's path within its pool.
func (s Slot) String() string { return string(s.Area) + "/" + s.Name }

// Filesystem is one pool of a Host. All methods may be called concurrently.
type Filesystem interface {
	// PoolID returns the pool's UUID, "" before Prepare if it has none yet.
	PoolID() string
	// Prepare makes the pool ready for use: it makes a missing ID and missing areas, and turns
	// quota on.
	Prepare(ctx context.Context) error
	// Alive fails if Host.Open has to be called again, for example because another filesystem is
	// mounted at the pool's path.
	Alive() error
	// Open opens the directory of the pool for one operation. It fails with ErrAway if the pool
	// is not there any more.
	Open() (Directory, error)
	// QuotaMode returns the mode of the quota as of Prepare. It does not access the disk.
	QuotaMode() btrfs.QuotaMode
	// MountOptions returns the mount options of the whole filesystem as of Prepare, nil if
	// unknown. It does not access the disk.
	MountOptions() []string
	// SlotPath returns the absolute path of the subvolume, for mounts.
	SlotPath(Slot) string
}

// Directory is the open directory of a pool. Every method that changes something is one step of
// an operation. Anyone may commit between two steps, which makes the earlier one durable and not
// the later one. Destroy and the methods for limits may fail half-way; the next call completes
// them. fs.ErrNotExist means that a slot or subvolume is absent, fs.ErrExist that it is in the
// way. All methods but Close may be called concurrently.
type Directory interface {
	// Close must be called when no other call is running.
	Close()
	// Named returns an error of another method with the paths that users know.
	Named(error) error
	// Thawed returns when the filesystem lets a writer in. It waits while the filesystem is
	// frozen.
	Thawed() error
	// Room returns the free space of the pool, at little cost.
	Room() (btrfs.Room, error)
	// Space returns how the space of the pool is used.
	Space() (btrfs.Space, error)
	// Devices returns the devices and their error counters.
	Devices() ([]btrfs.Device, error)

	Ledger
	Subvolumes
	Quota
}

// Ledger stores the slots and their records.
type Ledger interface {
	// List returns all slots, in the order of Areas and names.
	List() ([]Slot, error)
	// Find returns the contents of those slots that exist.
	Find(...Slot) ([]Contents, error)
	// Mkdir makes an empty slot.
	Mkdir(Slot) error
	// Rmdir removes an empty slot, or one with only a stub (see btrfs.IsStub); ErrNotEmpty for
	// any other.
	Rmdir(Slot) error
	// Move renames a slot with its contents; fs.ErrExist if to exists.
	Move(from, to Slot) error
	SetRecord(Slot, []byte) error
	// Sync makes the creation or removal of the slot's subvolume durable, by a commit with all that
	// was changed before. If others have committed since, it writes the log of the slot with its
	// record, which Linux may leave unwritten (see docs/reliability.md).
	Sync(Slot) error
	// Commit makes all durable that was changed before: slots, records, subvolumes, limits and
	// properties. Concurrent calls share commits.
	Commit() error
}

// Contents is what a slot contains.
type Contents struct {
	Slot   Slot
	Record []byte // what SetRecord wrote; nil for none
	// Info are the properties and the lineage of the subvolume as btrfs has them. InfoError is
	// why they cannot be read, fs.ErrNotExist if there is no subvolume.
	Info      btrfs.SubvolumeInfo
	InfoError error
	// Beside are the names that block Rmdir: all but the subvolume or its stub. If the slot is
	// not a directory, it is its own name.
	Beside []string
}

// Copy is a subvolume and the slot in which its snapshot is made.
type Copy struct{ From, To Slot }

// Subvolumes makes and removes the subvolume of a slot.
type Subvolumes interface {
	// Create makes an empty subvolume. Its root directory has the mode 0777 without the umask
	// bits from the start: a power cut could undo a chmod that follows. Create returns Info.
	Create(Slot) (btrfs.SubvolumeInfo, error)
	// Snapshot makes a snapshot, and returns its Info. The snapshot, and all changes before it,
	// are durable when Snapshot returns. Concurrent snapshots share commits.
	Snapshot(from, to Slot, readOnly bool) (btrfs.SubvolumeInfo, error)
	// SnapshotTogether makes several read-only snapshots in one try to have them in one
	// transaction. They show one instant if CreatedTransid is equal in all of their Infos. After an
	// error some may have been made.
	SnapshotTogether(...Copy) ([]btrfs.SubvolumeInfo, error)
	// Destroy removes the subvolume and all subvolumes nested in it.
	Destroy(Slot) error
	// Info returns the properties and the lineage of the subvolume as btrfs has them;
	// fs.ErrNotExist for an entry that is no subvolume.
	Info(Slot) (btrfs.SubvolumeInfo, error)
	// SwapFiles returns the active swap files in the subvolume whose paths lead into it in the
	// driver's mount namespace.
	SwapFiles(Slot) ([]string, error)
	// Outside returns the subvolumes of the pool that lie outside of it; with an error, those
	// that could be read.
	Outside() ([]OutsideSubvolume, error)
	// Nested returns the relative paths of the subvolumes nested in it, one level deep.
	Nested(Slot) ([]string, error)
	// NestedUpTo is Nested for subvolumes that were made in transaction transid or before.
	NestedUpTo(s Slot, transid uint64) ([]string, error)
	// Census returns all subvolumes and where they lie, read in one pass.
	Census() (Census, error)
	// NestedSince is Census, without Slots, of the subvolumes with an ID of at least from. A new
	// subvolume gets a larger ID than all others, so the cost depends on how many were made
	// since.
	NestedSince(from uint64) (Census, error)
	// SyncRoot makes the properties durable that Apply has set, and the disk file.
	SyncRoot(Slot) error
	// MakeDisk makes the disk file of a new subvolume, size bytes large, with a filesystem as
	// content says. It replaces a file that an earlier call left. The file inherits the
	// properties of the subvolume's root directory.
	MakeDisk(s Slot, content meta.Content, size int64) error
	// GrowDisk makes the disk file at least size bytes large.
	GrowDisk(s Slot, size int64) error
	// Freeze freezes the filesystem in the disk file for a snapshot, until Thaw, but only for
	// seconds. It reports false if there is nothing to thaw: the filesystem is not mounted, or
	// somebody else has frozen it.
	Freeze(Slot) (frozen bool, err error)
	// Thaw undoes Freeze, also that of a process that died. ErrThawed means that the filesystem is
	// not frozen: it may have changed since Freeze.
	Thaw(Slot) error
	// DiskSize returns the size of the disk file in bytes; fs.ErrNotExist if there is none.
	DiskSize(Slot) (int64, error)
	// Apply sets the properties of the subvolume's root directory. New files inherit them.
	Apply(Slot, meta.Parameters) error
}

// Census lists subvolumes by ID.
type Census struct {
	Slots  map[Slot]uint64   // the subvolume in each slot, except in AreaRemoving
	Nested map[uint64]uint64 // nested subvolumes, also foreign ones, and what contains each
	Last   uint64            // the largest ID, 0 for none
}

// Hosts returns the nested subvolumes, at any depth, of each subvolume that is not nested itself.
func (c Census) Hosts() map[uint64][]uint64 {
	hosts, known := map[uint64][]uint64{}, make(map[uint64]uint64, len(c.Nested))
	for id := range c.Nested {
		host := c.hostOf(id, known)
		hosts[host] = append(hosts[host], id)
	}
	return hosts
}

// hostOf returns the outermost subvolume around a nested one. Pods choose the depth, so known
// caches the results and no path is followed twice. Subvolumes may move while the census is read
// and form a cycle, so the loop is bounded.
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

// Quota limits and counts usage by subvolume ID. In a pool without quota, limits are accepted and
// have no effect.
type Quota interface {
	// QuotaStatus returns the mode and state of the quota.
	QuotaStatus() (btrfs.QuotaStatus, error)
	// Rescan starts a quota rescan; nil if one is running.
	Rescan() error
	// SetLimit sets the limit of a subvolume, in bytes. It may be repeated.
	SetLimit(subvolume uint64, bytes int64) error
	// Bound limits a volume and its nested subvolumes, at any depth, to size bytes together. Each
	// call takes into account what was written or nested since the last one. It returns the usage
	// of the nested subvolumes that is not part of Usage of the volume.
	Bound(volume uint64, size int64, nested []uint64) (inside Usage, err error)
	// LiftLimit removes the limit. At its limit, simple quota refuses even Destroy.
	LiftLimit(subvolume uint64) error
	// Groups returns the qgroups of all subvolumes, read in one pass. They are empty in a pool
	// without quota.
	Groups() (Groups, error)
	// Usage returns the usage of a subvolume; ErrNoQuota in a pool without quota.
	Usage(subvolume uint64) (Usage, error)
	// ForgetQuota removes the qgroups of a destroyed subvolume. It fails while the kernel needs
	// them; the caller tries again later.
	ForgetQuota(subvolume uint64) error
}

// Groups are the qgroups of the subvolumes of a filesystem, and the state of its quota.
type Groups struct {
	Status btrfs.QuotaStatus
	Limits map[uint64]int64 // by subvolume ID, in bytes, 0 for none; nil in a pool without quota
	// Pinned are the destroyed subvolumes whose qgroups the kernel still needs. It has not
	// dropped their tree or, in simple mode, a snapshot contains data that they wrote.
	Pinned []uint64
	// Stale are the destroyed subvolumes whose qgroups nobody needs.
	Stale []uint64
}

// OutsideSubvolume is a subvolume of a pool that lies in another subvolume of the filesystem. It
// got there by a roll back: a snapshot took the place of the subvolume around the pool.
type OutsideSubvolume struct {
	Slot   Slot
	Record []byte
	Path   string // of the subvolume, relative to the top level of the filesystem
	Home   string // where it belongs in the pool, relative to the top level
}

// Usage is the usage of a subvolume, in bytes, as of the last commit, at most 30 s ago.
type Usage struct {
	Used      int64 `json:"used"`      // referenced, shared with others or not
	Exclusive int64 `json:"exclusive"` // freed by its removal; 0 in simple mode, where it is unknown
	Limit     int64 `json:"limit"`     // 0: none
}

// Host finds the pools of a node.
type Host interface {
	// Pools returns the names of the pools that exist now, and the entries of the pools directory
	// that are refused, with the reasons.
	Pools() (names []string, refused map[string]error, err error)
	// Open returns a pool. It changes nothing.
	Open(ctx context.Context, name string) (Filesystem, error)
	// Remember records, durably, that a pool is in use under a name. Known returns the last name
	// of every pool that was ever in use, by ID, until Forget.
	Remember(poolID, name string) error
	Known() (map[string]string, error)
	Forget(poolID string) error
	// Wait returns when the pools may have changed, or ctx has ended.
	Wait(ctx context.Context)
}
