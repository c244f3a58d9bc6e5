package snapshot

import (
	"context"
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
	_, err := e.index.SyncPool(p.ID, index.PoolState{Name: p.Name, Unlisted: unlisted}, entries)
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
