package snapshot

import (
	"errors"
	"fmt"

	"github.com/btrfs-csi/btrfs-csi/pkg/pool"
)

// Errors of requests that cannot be served.
var (
	// ErrNotFound: no volume or snapshot has this ID on this node.
	ErrNotFound = errors.New("not found")
	// ErrExists: the name belongs to a volume or snapshot with other properties.
	ErrExists = errors.New("exists with other properties")
	// ErrInvalid: the request contradicts itself.
	ErrInvalid = errors.New("invalid request")
	// ErrOutOfRange: no size satisfies the request.
	ErrOutOfRange = errors.New("size out of range")
	// ErrNotAllowed: the pool is none of those that the caller can use.
	ErrNotAllowed = errors.New("pool is none of those that are allowed")
	// ErrNested: the volume contains nested subvolumes, which a snapshot would show as empty
	// directories.
	ErrNested = errors.New("nested subvolumes")
)

// Errors of this node, which may be temporary.
var (
	// ErrBusy: another operation on the same volume or snapshot is running, or the pools have
	// changed during the look-up.
	ErrBusy = errors.New("another operation is under way")
	// ErrNoPool: the pool is not on this node. Nothing was left behind.
	ErrNoPool = errors.New("no such pool on this node")
	// ErrForgotten: a pool is away, and the index does not remember its content. It wraps
	// pool.ErrAway, and concerns every ID that is in no pool of this node.
	ErrForgotten = fmt.Errorf("%w, and the index that knew what it contained was lost", pool.ErrAway)
)

// Errors of the state on disk. The engine changes nothing.
var (
	// ErrLost: the record says ready, but the subvolume is gone.
	ErrLost = errors.New("subvolume is lost")
	// ErrOutside: the subvolume lies outside of the pool on the same filesystem. It wraps
	// ErrLost.
	ErrOutside = fmt.Errorf("%w from the pool, but not from its filesystem", ErrLost)
	// ErrMadeReadOnly: somebody has made a read-write volume read-only.
	ErrMadeReadOnly = errors.New("volume was made read-only")
	// ErrUnreadable: the record is damaged or of a later version.
	ErrUnreadable = errors.New("record cannot be read")
	// ErrAmbiguous: two pools contain the same ID.
	ErrAmbiguous = errors.New("found in more than one pool")
)

// ErrUnfinished marks an error after which changes may be left behind. A retry of the request, or
// the next reconcile, completes or undoes them.
var ErrUnfinished = errors.New("unfinished")

// unfinished marks err with ErrUnfinished.
func unfinished(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%w: %w", ErrUnfinished, err)
}
