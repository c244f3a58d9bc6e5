package snapshot

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"

	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
	"github.com/btrfs-csi/btrfs-csi/pkg/meta/index"
	"github.com/btrfs-csi/btrfs-csi/pkg/pool"
)

// indexPut adds an entry to the index. A failure fails no request, because the index is rebuilt
// from the ledger.
func (e *Engine) indexPut(ctx context.Context, entry meta.Entry) {
	defer e.changed(entry.Ref())
	indexing := e.indexingOf(entry.PoolID)
	indexing.RLock()
	defer indexing.RUnlock()
	e.indexed(ctx, e.index.Put(entry))
}

// indexRemove removes an entry from the index.
func (e *Engine) indexRemove(ctx context.Context, p *servedPool, ref meta.Ref) {
	defer e.changed(ref)
	indexing := e.indexingOf(p.PoolID())
	indexing.RLock()
	defer indexing.RUnlock()
	e.indexed(ctx, e.index.Remove(ref, p.PoolID()))
}

// syncIndex rebuilds the index from the ledgers of all pools. It keeps the entries of a pool that
// is away, until maintainIndex can read the pool.
func (e *Engine) syncIndex() error {
	if e.index == nil {
		return nil
	}
	e.indexBehind.Store(false) // first, because a failure meanwhile sets it again
	for _, p := range e.allPools() {
		if err := e.syncPool(p); err != nil && !errors.Is(err, pool.ErrAway) {
			e.indexBehind.Store(true)
			return err
		}
	}
	return nil
}

func (e *Engine) indexingOf(poolID string) *sync.RWMutex {
	indexing, _ := e.indexing.LoadOrStore(poolID, new(sync.RWMutex))
	return indexing.(*sync.RWMutex)
}

func (e *Engine) syncPool(p *servedPool) error {
	indexing := e.indexingOf(p.PoolID())
	indexing.Lock()
	defer indexing.Unlock()
	slots, err := p.scan()
	p.unread.Store(err != nil)
	if err != nil {
		return err
	}
	return e.indexPool(p, slots)
}

// indexPool writes the slots of a pool to the index. The caller has held the pool's indexing lock
// since before it read the slots.
func (e *Engine) indexPool(p *servedPool, slots []scanned) error {
	entries, unlisted := p.entries(slots)
	_, err := e.index.SyncPool(p.PoolID(), index.PoolState{Name: p.Name, Unlisted: unlisted}, entries)
	return err
}

// entries returns what the index should have of the pool, also of subvolumes that cannot be read.
// unlisted are the slots without an entry that need attention: half made, or with an unreadable
// record.
func (p *servedPool) entries(slots []scanned) (entries []meta.Entry, unlisted []meta.Ref) {
	for _, s := range slots {
		switch s.state {
		case slotReady, slotDamaged:
			entries = append(entries, entryOf(p, s.record, s.info))
		case slotHalf, slotUnreadable:
			if ref, named := s.slot.Ref(); named {
				unlisted = append(unlisted, ref)
			}
		}
	}
	return entries, unlisted
}

// indexed handles a failed write to the index.
func (e *Engine) indexed(ctx context.Context, err error) {
	if err == nil {
		return
	}
	e.indexBehind.Store(true)
	e.complain(ctx, "Index not written, it will be made anew from the ledger", "", err)
}

// lookup returns what the index has for ref. After a failure the index is rebuilt.
func (e *Engine) lookup(ref meta.Ref) ([]meta.Entry, error) {
	known, err := e.index.Lookup(ref)
	if err != nil {
		e.indexBehind.Store(true)
	}
	return known, err
}

// remembered returns the pools in the index. After a failure the index is rebuilt.
func (e *Engine) remembered() (map[string]index.PoolState, error) {
	pools, err := e.index.Pools()
	if err != nil {
		e.indexBehind.Store(true)
	}
	return pools, err
}

// indexHas reports whether the index has the subvolume of an entry.
func (e *Engine) indexHas(entry meta.Entry) bool {
	known, err := e.lookup(entry.Ref())
	return err == nil && slices.ContainsFunc(known, func(k meta.Entry) bool {
		return k.PoolID == entry.PoolID && k.Kind == entry.Kind && k.Lineage == entry.Lineage
	})
}

// maintainIndex flushes the index, and rebuilds it after a failure.
func (e *Engine) maintainIndex(ctx context.Context) {
	if slices.ContainsFunc(e.allPools(), func(p *servedPool) bool { return p.unread.Load() }) {
		e.indexBehind.Store(true)
	}
	e.indexed(ctx, e.index.Flush())
	if e.indexBehind.Load() {
		e.indexed(ctx, e.syncIndex())
	}
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
