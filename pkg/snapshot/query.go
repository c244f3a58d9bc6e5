package snapshot

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs"
	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
	"github.com/btrfs-csi/btrfs-csi/pkg/pool"
)

// Mount describes what to bind-mount for a volume.
type Mount struct {
	Source   string // absolute path of the subvolume
	ReadOnly bool   // a view, which no mount option makes writable
	// MadeReadOnly says what to do about a read-write volume whose subvolume somebody made
	// read-only; empty for any other.
	MadeReadOnly string
}

// Capacity is the free space of a pool for volumes, in bytes.
type Capacity struct {
	PoolID      string `json:"poolID"`
	Available   int64  `json:"available"`   // what can be written now, without the headroom
	MaximumSize int64  `json:"maximumSize"` // of one volume
	MinimumSize int64  `json:"minimumSize"` // of one volume
}

// Stat returns a volume or snapshot, or fails with ErrNotFound, ErrLost or pool.ErrAway. It takes
// no lock. A volume that is being made is found as soon as its subvolume exists.
func (e *Engine) Stat(_ context.Context, ref meta.Ref) (meta.Entry, error) {
	defer e.pin()()
	l, err := e.find(ref)
	if err != nil {
		return meta.Entry{}, err
	}
	if l.record.State == meta.Creating {
		if _, err := l.fs.Info(l.slot); errors.Is(err, fs.ErrNotExist) {
			return meta.Entry{}, e.absence(ref)
		}
	}
	return l.entry()
}

// Mounts returns what to mount for a volume.
func (e *Engine) Mounts(ctx context.Context, volume string) (Mount, error) {
	defer e.pin()()
	l, err := e.find(meta.Volume(volume))
	if err != nil {
		return Mount{}, err
	}
	info, err := l.subvolume()
	if err != nil {
		return Mount{}, err
	}
	e.notice(ctx, l, entryOf(l.pool, l.record, info))
	mount := Mount{Source: l.fs.SlotPath(l.slot), ReadOnly: l.record.Kind.ReadOnly()}
	if info.ReadOnly && !mount.ReadOnly {
		mount.MadeReadOnly = l.madeReadOnly()
	}
	return mount, nil
}

// Usage returns the usage of a volume or snapshot; pool.ErrNoQuota if its pool has no quota.
func (e *Engine) Usage(_ context.Context, ref meta.Ref) (pool.Usage, error) {
	defer e.pin()()
	l, err := e.find(ref)
	if err != nil {
		return pool.Usage{}, err
	}
	entry, err := l.entry()
	if err != nil {
		return pool.Usage{}, err
	}
	usage, err := l.pool.usageOf(entry.SubvolumeID)
	if err != nil {
		return pool.Usage{}, fmt.Errorf("%s: %w", ref, err)
	}
	return usage, nil
}

// Capacity returns the free space of a pool; an empty name stands for the default one. A pool
// that cannot be written has none.
func (e *Engine) Capacity(_ context.Context, name string) (Capacity, error) {
	p, err := e.pool(name)
	if err != nil {
		return Capacity{}, err
	}
	available, err := p.Available()
	if err != nil {
		return Capacity{}, err
	}
	left := available / MinSize * MinSize
	return Capacity{PoolID: p.PoolID(), Available: left, MaximumSize: left, MinimumSize: MinSize}, nil
}

// Room returns the free space of the filesystem that contains a volume or snapshot.
func (e *Engine) Room(_ context.Context, ref meta.Ref) (btrfs.Room, error) {
	l, err := e.find(ref)
	if err != nil {
		return btrfs.Room{}, err
	}
	return l.pool.Room()
}

// Forget removes a pool that will not come back to this node from Away.
func (e *Engine) Forget(poolID string) error { return e.host.Forget(poolID) }
