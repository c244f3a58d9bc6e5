package snapshot

import (
	"errors"
	"fmt"

	"github.com/btrfs-csi/btrfs-csi/pkg/pool"
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
	// ErrNotAllowed: it would be made in a pool where the caller cannot use it.
	ErrNotAllowed = errors.New("pool is none of those that are allowed")
	// ErrNested: the volume holds subvolumes of its own, which a snapshot would
	// show as empty directories.
	ErrNested = errors.New("nested subvolumes")
)

// The node cannot do it, or not now.
var (
	// ErrBusy: another operation on the same volume or snapshot is under way, or the pools
	// have changed while it was looked for.
	ErrBusy = errors.New("another operation is under way")
	// ErrNoPool: no such pool on this node; nothing was left behind.
	ErrNoPool = errors.New("no such pool on this node")
	// ErrForgotten: a pool is away, and what it held was forgotten with the index. It
	// is an pool.ErrAway for any ID that is in no pool here.
	ErrForgotten = fmt.Errorf("%w, and what it held was forgotten with the index", pool.ErrAway)
)

// What is on disk is not as it should be; nothing is touched.
var (
	// ErrLost: the record is there and says the subvolume was made, but the
	// subvolume is gone.
	ErrLost = errors.New("subvolume is lost")
	// ErrOutside: it is an ErrLost whose data is on the filesystem still, outside of the
	// pool.
	ErrOutside = fmt.Errorf("%w from the pool, but not from its filesystem", ErrLost)
	// ErrMadeReadOnly: a read-write volume is read-only.
	ErrMadeReadOnly = errors.New("volume was made read-only")
	// ErrUnreadable: the record is damaged or of a later version.
	ErrUnreadable = errors.New("record cannot be read")
	// ErrAmbiguous: two pools contain the same ID.
	ErrAmbiguous = errors.New("found in more than one pool")
)

// ErrUnfinished marks a failure after which work may be left behind: a retry of
// the same request, or the next reconcile, completes or undoes it.
var ErrUnfinished = errors.New("unfinished")

// unfinished marks err where work may be left behind.
func unfinished(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%w: %w", ErrUnfinished, err)
}
