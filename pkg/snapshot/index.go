package snapshot

import (
	"context"
	"maps"
	"slices"
	"sync"

	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
	"github.com/btrfs-csi/btrfs-csi/pkg/meta/index"
	"github.com/btrfs-csi/btrfs-csi/pkg/slot"
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
func (e *Engine) indexRemove(ctx context.Context, poolID string, ref meta.Ref) {
	defer e.changed(ref)
	indexing := e.indexingOf(poolID)
	indexing.RLock()
	defer indexing.RUnlock()
	e.indexed(ctx, e.index.Remove(ref, poolID))
}

// indexPool writes the slots of a pool to the index. The caller has held the pool's indexing lock
// since before it read the slots.
func (e *Engine) indexPool(p *servedPool, slots []*slot.Slot) error {
	entries, unlisted := slot.Entries(slots)
	state := index.PoolState{Name: p.Name, Unlisted: unlisted}
	_, err := e.index.SyncPool(p.ID, state, entries)
	if err == nil {
		e.seen.add(p.ID, state)
	}
	return err
}

func (e *Engine) indexingOf(poolID string) *sync.RWMutex {
	indexing, _ := e.indexing.LoadOrStore(poolID, new(sync.RWMutex))
	return indexing.(*sync.RWMutex)
}

// indexed handles a failed write to the index.
func (e *Engine) indexed(ctx context.Context, err error) {
	if err == nil {
		return
	}
	e.indexFailed()
	e.complain(ctx, "Index not written, it will be made anew from the ledger", "", err)
}

// lookup returns what the index has for ref. After a failure the index is rebuilt.
func (e *Engine) lookup(ref meta.Ref) ([]meta.Entry, error) {
	known, err := e.index.Lookup(ref)
	if err != nil {
		e.indexFailed()
	}
	return known, err
}

// indexFailed notes that the index has to be rebuilt.
func (e *Engine) indexFailed() {
	e.indexBehind.Store(true)
	e.seen.clear()
}

// remembered returns the pools in the index. After a failure the index is rebuilt.
func (e *Engine) remembered() (map[string]index.PoolState, error) {
	e.seen.mu.Lock()
	defer e.seen.mu.Unlock()
	if e.seen.pools != nil {
		return e.seen.pools, nil
	}
	pools, err := e.index.Pools()
	if err != nil {
		e.indexBehind.Store(true)
		return nil, err
	}
	e.seen.pools = pools
	return pools, nil
}

// seenPools are the pools in the index, which every request for something new asks for.
type seenPools struct {
	mu    sync.Mutex                 // protects pools, and is held while they are read
	pools map[string]index.PoolState // never changed; nil: to be read
}

// add follows a change of the index.
func (s *seenPools) add(poolID string, state index.PoolState) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pools != nil {
		s.pools = maps.Clone(s.pools)
		s.pools[poolID] = state
	}
}

// clear makes the pools be read again, since the index may be another one after a failure.
func (s *seenPools) clear() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pools = nil
}

// indexHas reports whether the index has the subvolume of an entry.
func (e *Engine) indexHas(entry meta.Entry) bool {
	known, err := e.lookup(entry.Ref())
	return err == nil && slices.ContainsFunc(known, func(k meta.Entry) bool {
		return k.PoolID == entry.PoolID && k.Kind == entry.Kind && k.Lineage == entry.Lineage
	})
}
