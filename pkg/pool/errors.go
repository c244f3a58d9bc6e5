package pool

import (
	"errors"
	"fmt"

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs"
)

// Errors of a pool, besides fs.ErrNotExist and fs.ErrExist.
var (
	// ErrNoSpace: the pool has too little free space, or a limit is reached (ENOSPC, EDQUOT).
	ErrNoSpace = errors.New("not enough space")
	// ErrAway: the pool is not mounted, or cannot be used now (EIO, ESTALE).
	ErrAway = errors.New("pool is away")
	// ErrSilent: the disk of the pool does not answer. It wraps ErrAway, and may end by itself.
	ErrSilent = fmt.Errorf("%w: its disk does not answer", ErrAway)
	// ErrFrozen: the filesystem of the pool is frozen. Writers wait until the thaw.
	ErrFrozen = errors.New("filesystem is frozen")
	// ErrThawed: the filesystem in a disk file is not frozen, or no longer.
	ErrThawed = errors.New("the filesystem is not frozen")
	// ErrReadOnly: the filesystem of the pool is, or has become, read-only (EROFS).
	ErrReadOnly = errors.New("pool is read-only")
	// ErrSwapFile: the kernel does not snapshot a subvolume with an active swap file (ETXTBSY).
	ErrSwapFile = errors.New("an active swap file is in it; swapoff first")
	// ErrInUse: the kernel refuses to remove the subvolume. The text lists the possible reasons.
	ErrInUse = btrfs.ErrInUse
	// ErrUnsupported: the running kernel lacks what is wanted. The text names the version.
	ErrUnsupported = btrfs.ErrUnsupported
	// ErrRolledBack: the filesystem was rolled back to a snapshot that does not contain the
	// subvolume of the pool.
	ErrRolledBack = errors.New("it is not in this snapshot of the filesystem, which was rolled back")
	// ErrForeign: something that btrfs-csi did not make is in the way.
	ErrForeign = errors.New("not made by btrfs-csi")
	// ErrNotEmpty: the slot is not empty, and cannot be removed.
	ErrNotEmpty = errors.New("not empty")
	// ErrNoQuota: usage is unknown, because the pool has no quota.
	ErrNoQuota = errors.New("no quota")
)
