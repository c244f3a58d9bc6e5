package snapshot

import (
	"context"
	"errors"
	"slices"

	"github.com/btrfs-csi/btrfs-csi/pkg/pool"
	"github.com/btrfs-csi/btrfs-csi/pkg/slot"
)

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

func (e *Engine) syncPool(p *servedPool) error {
	indexing := e.indexingOf(p.ID)
	indexing.Lock()
	defer indexing.Unlock()
	slots, err := p.scan()
	p.unread.Store(err != nil)
	if err != nil {
		return err
	}
	return e.indexPool(p, slots)
}

// scan reads every slot of the pool.
func (p *servedPool) scan() ([]*slot.Slot, error) {
	session, err := p.Open()
	if err != nil {
		return nil, err
	}
	defer session.Close()
	return session.Scan()
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
