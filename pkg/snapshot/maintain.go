package snapshot

import (
	"context"
	"errors"
	"slices"
	"time"

	"k8s.io/klog/v2"

	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
	"github.com/btrfs-csi/btrfs-csi/pkg/pool"
	"github.com/btrfs-csi/btrfs-csi/pkg/slot"
)

// every calls do at each tick until ctx ends.
func every(ctx context.Context, interval time.Duration, do func()) {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		do()
	}
}

// everyPool calls visit for each pool at each tick until ctx ends. The calls run concurrently, so
// that a silent pool delays no other.
func (e *Engine) everyPool(ctx context.Context, interval time.Duration, visit func(context.Context, *servedPool)) {
	every(ctx, interval, func() {
		for _, p := range e.allPools() {
			go visit(ctx, p)
		}
	})
}

// nestedInterval is the time between two looks for nested subvolumes.
const nestedInterval = time.Second

// lookForNested limits what pods nest in volumes.
func (e *Engine) lookForNested(ctx context.Context, p *servedPool) {
	if _, silence := p.Silence(); silence != nil {
		return
	}
	if err := p.BoundNested(ctx, e.maintenance); err != nil {
		e.complain(ctx, "Nested subvolumes cannot be bounded", p.Name, err)
	}
}

// tend maintains a pool, unless its maintenance is running.
func (e *Engine) tend(ctx context.Context, p *servedPool) {
	if !p.tending.TryLock() {
		return
	}
	defer p.tending.Unlock()
	if _, silence := p.Silence(); silence != nil || ctx.Err() != nil {
		return
	}
	s, err := p.Open()
	if err == nil {
		defer s.Close()
		err = s.Thawed()
	}
	if err != nil {
		e.complain(ctx, "Pool is not maintained", p.Name, err)
		return
	}
	if p.returned.Swap(false) {
		findings, _, err := e.repair(ctx, s)
		logFindings(ctx, findings)
		if err != nil {
			p.returned.Store(true)
			e.complain(ctx, "What was left half done cannot be completed", p.Name, err)
		}
	}
	e.maintainPool(ctx, p, s)
	p.logNews(ctx)
}

// answered is called when a pool has become silent, and when it answers again. It then completes
// unfinished operations, as at a start.
func (e *Engine) answered(ctx context.Context, p *servedPool) {
	if _, silence := p.Silence(); silence != nil {
		klog.FromContext(ctx).Error(silence, "Pool does not answer", "pool", p.Name)
		e.changed(meta.Ref{})
		return
	}
	klog.FromContext(ctx).Info("Pool answers again", "pool", p.Name)
	p.returned.Store(true)
	e.changed(meta.Ref{})
	if e.index != nil && ctx.Err() == nil && slices.Contains(e.allPools(), p) {
		e.tend(ctx, p)
	}
}

// maintainPool removes stale qgroups, and adds subvolumes to the index that somebody put into a
// slot. It corrects limits, and rescans an inconsistent full quota, whose limits have no effect.
// Its cost is that of reading the root tree and the quota tree.
func (e *Engine) maintainPool(ctx context.Context, p *servedPool, s *slot.Session) {
	complain := func(err error, message string) {
		if err != nil && !errors.Is(err, pool.ErrSilent) { // which is logged already
			e.complain(ctx, message, p.Name, err)
		}
	}
	groups, err := s.Sweep()
	if err != nil {
		complain(err, "Qgroups cannot be read")
		return
	}
	complain(e.mend(ctx, p, s, groups.Limits), "Slots, index and qgroup limits cannot be compared")
	if slot.NeedsRescan(groups.Status) {
		klog.FromContext(ctx).Info("Quota is inconsistent, sizes are not enforced until it has been rescanned", "pool", p.Name, "rescanError", s.RescanQuota())
		e.changed(meta.Ref{})
	}
}
