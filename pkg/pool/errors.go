package pool

import (
	"errors"
	"fmt"

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs"
)

// What a pool answers, apart from fs.ErrNotExist and fs.ErrExist.
var (
	// ErrNoSpace: the pool has not the room; nothing was left behind.
	ErrNoSpace = errors.New("not enough space")
	// ErrAway: the pool that contains it is not there, or not usable, now.
	ErrAway = errors.New("pool is away")
	// ErrSilent: the disk of the pool gives no answer, and no error. It is an ErrAway
	// that may pass by itself.
	ErrSilent = fmt.Errorf("%w: its disk does not answer", ErrAway)
	// ErrFrozen: the pool's filesystem lets nobody write until it is thawed.
	ErrFrozen = errors.New("filesystem is frozen")
	// ErrReadOnly: the pool's filesystem is mounted, or has turned, read-only.
	ErrReadOnly = errors.New("pool is read-only")
	// ErrSwapFile: the kernel copies no subvolume with an active swap file.
	ErrSwapFile = errors.New("an active swap file is in it; swapoff first")
	// ErrInUse: the kernel does not let go of the subvolume, which the text has the reasons for.
	ErrInUse = btrfs.ErrInUse
	// ErrRolledBack: the pool is a subvolume that the snapshot which took the place of the
	// filesystem around it does not hold.
	ErrRolledBack = errors.New("it is not in this snapshot of the filesystem, which was rolled back")
	// ErrForeign: something that is not ours stands in the way.
	ErrForeign = errors.New("not made by btrfs-csi")
	// ErrNotEmpty: a slot that contains something cannot be taken away.
	ErrNotEmpty = errors.New("not empty")
	// ErrNoQuota: usage is not known because the pool has no quota.
	ErrNoQuota = errors.New("no quota")
)
