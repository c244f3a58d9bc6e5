package snapshot

import (
	"context"
	"errors"
	"fmt"

	"k8s.io/klog/v2"

	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
	"github.com/btrfs-csi/btrfs-csi/pkg/slot"
)

// takePool is addPool for a pool that may become silent meanwhile.
func (e *Engine) takePool(ctx context.Context, p *servedPool, fresh []*servedPool) error {
	begun, _ := p.Silence()
	return e.attempt(p.Name, silent(p.Name, "Reconcile"), nil, begun, func() error { return e.addPool(ctx, p, fresh) })
}

// addPool reconciles a pool and takes it into use. fresh are all pools that were just opened.
func (e *Engine) addPool(ctx context.Context, p *servedPool, fresh []*servedPool) error {
	if err := errors.Join(e.exclusion(p), e.onlyOne(p, fresh)); err != nil {
		return err
	}
	if e.index != nil {
		if err := e.adopt(ctx, p); err != nil {
			return fmt.Errorf("pool %q: reconcile: %w", p.Name, err)
		}
	}
	e.mu.Lock()
	e.pools[p.Name] = p
	delete(e.broken, p.Name)
	e.mu.Unlock()
	klog.FromContext(ctx).V(2).Info("Pool in use", "pool", p.Name, "poolID", p.ID)
	e.changed(meta.Ref{})
	return nil
}

// onlyOne refuses a pool whose ID another pool has. Of a disk and its copy, the one that is in
// use, or was last known under its name, can be used. If neither is known, nobody can say which
// is the copy, and both are refused.
func (e *Engine) onlyOne(p *servedPool, fresh []*servedPool) error {
	for _, other := range append(e.allPools(), fresh...) {
		if other.Name == p.Name || other.ID != p.ID {
			continue
		}
		known, err := e.host.Known()
		inUse := e.inUse(p.ID)
		switch {
		case !inUse && known[p.ID] == p.Name:
			continue
		case inUse || known[p.ID] == other.Name:
			return fmt.Errorf("pool %q: has the ID %s of pool %q: a copy of its disk? remove pool.json and the volumes of one of them",
				p.Name, p.ID, other.Name)
		}
		return errors.Join(fmt.Errorf("pool %q: has the ID %s, and so has pool %q: a disk and its copy? neither is used, since nobody can know which is which; unmount the copy",
			p.Name, p.ID, other.Name), err)
	}
	return nil
}

// adopt reconciles a pool that is taken into use. Operations from before the pool was reopened
// may still run. Their IDs are skipped, and maintainPool checks their limits.
func (e *Engine) adopt(ctx context.Context, p *servedPool) error {
	s, err := p.Open()
	if err != nil {
		return err
	}
	defer s.Close()
	if err := s.CommitErased(); err != nil {
		klog.FromContext(ctx).Error(err, "The pool's directories cannot be synced, what was deleted before may not be gone durably", "pool", p.Name)
	}
	if err := e.repairAndIndex(ctx, p, s); err != nil {
		return err
	}
	if err := e.host.Remember(p.ID, p.Name); err != nil {
		klog.FromContext(ctx).Error(err, "Pool cannot be remembered for when it is away and the index is lost", "pool", p.Name)
	}
	return nil
}

// repairAndIndex repairs a pool, and makes the index agree with what it has then.
func (e *Engine) repairAndIndex(ctx context.Context, p *servedPool, s *slot.Session) error {
	indexing := e.indexingOf(p.ID)
	indexing.Lock()
	defer indexing.Unlock()
	findings, slots, err := e.repair(ctx, s)
	if err != nil {
		return err
	}
	logFindings(ctx, findings)
	e.indexed(ctx, e.indexPool(p, slots))
	return nil
}
