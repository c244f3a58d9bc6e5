package snapshot

import (
	"errors"
	"fmt"

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs"
)

// What the caller asked for cannot be.
var (
	// ErrNotFound: no volume or snapshot has this ID on this node.
	ErrNotFound = errors.New("not found")
	// ErrExists: the name is taken by something made with other options.
	ErrExists = errors.New("exists with other properties")
	// ErrInvalid: the request contradicts itself.
	ErrInvalid = errors.New("invalid request")
	// ErrOutOfRange: no size satisfies the request.
	ErrOutOfRange = errors.New("size out of range")
	// ErrNested: the volume holds subvolumes of its own, which a snapshot would
	// show as empty directories.
	ErrNested = errors.New("nested subvolumes")
)

// The node cannot do it, or not now.
var (
	// ErrBusy: another operation on the same volume or snapshot is under way, or the pools
	// have changed while it was looked for.
	ErrBusy = errors.New("another operation is under way")
	// ErrNoSpace: the pool has not the room; nothing was left behind.
	ErrNoSpace = errors.New("not enough space")
	// ErrNoPool: no such pool on this node; nothing was left behind.
	ErrNoPool = errors.New("no such pool on this node")
	// ErrPoolAway: the pool that holds it is not there, or not usable, now.
	ErrPoolAway = errors.New("pool is away")
	// ErrSilent: the disk of the pool gives no answer, and no error. It is an ErrPoolAway
	// that may pass by itself.
	ErrSilent = fmt.Errorf("%w: its disk does not answer", ErrPoolAway)
	// ErrFrozen: the pool's filesystem lets nobody write until it is thawed.
	ErrFrozen = errors.New("filesystem is frozen")
	// ErrForgotten: a pool is away, and what it held was forgotten with the index. It
	// is an ErrPoolAway for any ID that is in no pool here.
	ErrForgotten = fmt.Errorf("%w, and what it held was forgotten with the index", ErrPoolAway)
	// ErrReadOnly: the pool's filesystem is mounted, or has turned, read-only.
	ErrReadOnly = errors.New("pool is read-only")
)

// What is on disk is not as it should be; nothing is touched.
var (
	// ErrLost: the record is there and says the subvolume was made, but the
	// subvolume is gone.
	ErrLost = errors.New("subvolume is lost")
	// ErrOutside: it is an ErrLost whose data is on the filesystem still, outside of the
	// pool.
	ErrOutside = fmt.Errorf("%w from the pool, but not from its filesystem", ErrLost)
	// ErrSwapFile: the kernel copies no subvolume with an active swap file.
	ErrSwapFile = errors.New("an active swap file is in it; swapoff first")
	// ErrHeld: the kernel does not let go of the subvolume, which the text has the reasons for.
	ErrHeld = btrfs.ErrHeld
	// ErrMadeReadOnly: a read-write volume is read-only.
	ErrMadeReadOnly = errors.New("volume was made read-only")
	// errRolledBack: the pool is a subvolume that the snapshot which took the place of the
	// filesystem around it does not hold.
	errRolledBack = errors.New("it is not in this snapshot of the filesystem, which was rolled back")
	// ErrForeign: something that is not ours stands in the way.
	ErrForeign = errors.New("not made by btrfs-csi")
	// ErrUnreadable: the record is damaged or of a later version.
	ErrUnreadable = errors.New("record cannot be read")
	// ErrAmbiguous: two pools hold the same ID.
	ErrAmbiguous = errors.New("found in more than one pool")
)

// ErrUnfinished marks a failure after which work may be left behind: a retry of
// the same request, or the next reconcile, completes or undoes it.
var ErrUnfinished = errors.New("unfinished")

// What a Filesystem answers, apart from fs.ErrNotExist and fs.ErrExist.
var (
	// ErrNotEmpty: a slot that holds something cannot be taken away.
	ErrNotEmpty = errors.New("not empty")
	// ErrNoQuota: usage is not known because the pool has no quota.
	ErrNoQuota = errors.New("no quota")
)

// unfinished marks err where work may be left behind.
func unfinished(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%w: %w", ErrUnfinished, err)
}
