package snapshot

import (
	"errors"
	"fmt"

	"github.com/btrfs-csi/btrfs-csi/pkg/pool"
	"github.com/btrfs-csi/btrfs-csi/pkg/slot"
)

// Errors of requests that cannot be served.
var (
	// ErrNotFound: no volume or snapshot has this ID on this node.
	ErrNotFound = errors.New("not found")
	// ErrExists: the name belongs to a volume or snapshot with other properties.
	ErrExists = errors.New("exists with other properties")
	// ErrInvalid: see slot.ErrInvalid.
	ErrInvalid = slot.ErrInvalid
	// ErrOutOfRange: no size satisfies the request.
	ErrOutOfRange = errors.New("size out of range")
	// ErrNotAllowed: the pool is none of those that the caller can use.
	ErrNotAllowed = errors.New("pool is none of those that are allowed")
	// ErrNested: see slot.ErrNested.
	ErrNested = slot.ErrNested
)

// Errors of groups.
var (
	// ErrPools: the volumes of a group are in more than one pool.
	ErrPools = errors.New("the volumes of a group have to be in one pool")
	// ErrApart: see slot.ErrApart.
	ErrApart = slot.ErrApart
	// ErrIncomplete: members of a group are missing.
	ErrIncomplete = errors.New("not all members of the group are there")
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
	// ErrLost and ErrOutside: see slot.ErrLost and slot.ErrOutside.
	ErrLost    = slot.ErrLost
	ErrOutside = slot.ErrOutside
	// ErrMadeReadOnly: somebody has made a read-write volume read-only.
	ErrMadeReadOnly = errors.New("volume was made read-only")
	// ErrUnreadable: see slot.ErrUnreadable.
	ErrUnreadable = slot.ErrUnreadable
	// ErrAmbiguous: two pools contain the same ID.
	ErrAmbiguous = errors.New("found in more than one pool")
)

// ErrUnfinished is slot.ErrUnfinished.
var ErrUnfinished = slot.ErrUnfinished
