package snapshot

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs"
	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
	"github.com/btrfs-csi/btrfs-csi/pkg/meta/index"
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

// Walk calls fn for the volumes or snapshots with an ID greater than after, ordered by ID, until
// fn returns false. fn must not call the engine. Walk omits pools that are away.
func (e *Engine) Walk(ctx context.Context, class meta.Class, after string, fn func(meta.Entry) bool) error {
	return e.walk(ctx, func(fn func(meta.Entry) bool) error { return e.index.Walk(class, after, fn) }, fn,
		func(entry meta.Entry) bool { return entry.Kind.Class() == class && entry.ID > after })
}

// WalkSnapshots is Walk over the snapshots of one volume, which may be gone.
func (e *Engine) WalkSnapshots(ctx context.Context, volume, after string, fn func(meta.Entry) bool) error {
	source := meta.Volume(volume)
	return e.walk(ctx, func(fn func(meta.Entry) bool) error {
		return e.index.WalkChildren(source, meta.Snapshots, after, fn)
	}, fn, func(entry meta.Entry) bool {
		return entry.Kind == meta.Committed && entry.Source == source && entry.ID > after
	})
}

// walk lists from the index or, if that is behind and cannot be rebuilt, from the ledgers.
func (e *Engine) walk(ctx context.Context, indexed func(func(meta.Entry) bool) error, fn, match func(meta.Entry) bool) error {
	e.indexed(ctx, e.index.Flush())
	if e.indexBehind.Load() {
		e.indexed(ctx, e.syncIndex())
	}
	if !e.indexBehind.Load() {
		inUse := map[string]bool{}
		for _, p := range e.allPools() {
			inUse[p.PoolID()] = true
		}
		called := false
		err := indexed(func(entry meta.Entry) bool { called = true; return !inUse[entry.PoolID] || fn(entry) })
		e.indexed(ctx, err)
		if err == nil || called {
			return err
		}
	}
	var entries []meta.Entry
	for _, p := range e.allPools() {
		slots, err := p.scan()
		if err != nil {
			return err
		}
		found, _ := p.entries(slots)
		entries = append(entries, slices.DeleteFunc(found, func(entry meta.Entry) bool { return !match(entry) })...)
	}
	slices.SortFunc(entries, func(a, b meta.Entry) int { return strings.Compare(a.ID, b.ID) })
	for _, entry := range entries {
		if !fn(entry) {
			break
		}
	}
	return nil
}

// History returns the last removals, the newest first. Only the index has them: they are lost
// with it, and subvolumes that somebody else removed are not among them.
func (e *Engine) History() ([]index.Removed, error) { return e.index.History() }

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

// PoolIDs returns the IDs of the pools in use, by name.
func (e *Engine) PoolIDs() map[string]string {
	ids := map[string]string{}
	for _, p := range e.allPools() {
		ids[p.Name] = p.PoolID()
	}
	return ids
}

// Forget removes a pool that will not come back to this node from Away.
func (e *Engine) Forget(poolID string) error { return e.host.Forget(poolID) }

// Pools returns the state of every pool, also of those that cannot be used, ordered by name.
func (e *Engine) Pools(context.Context) []pool.Status {
	all := each(e.allPools(), (*servedPool).status)
	e.mu.RLock()
	for name, err := range e.broken {
		all = append(all, pool.Status{Name: name, Error: err.Error(), Silent: pool.ProblemOf(err) == pool.Silent})
	}
	e.mu.RUnlock()
	slices.SortFunc(all, func(a, b pool.Status) int { return strings.Compare(a.Name, b.Name) })
	return all
}

// status is Status with the counters of the engine.
func (p *servedPool) status() pool.Status {
	s := p.Status()
	if !s.Silent {
		s.Rescans, s.Nesting = p.rescans.Load(), p.nested.volumes()
	}
	return s
}
