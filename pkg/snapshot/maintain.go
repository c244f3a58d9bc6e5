package snapshot

import (
	"context"
	"errors"
	"maps"
	"sync"
	"time"

	"k8s.io/klog/v2"

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs"
	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
)

// leftovers are destroyed subvolumes whose accounting the kernel may keep: for
// as long as it still drops the tree, or, in simple mode, while a snapshot holds
// what they wrote. Left alone they pile up by the thousand.
type leftovers struct {
	mu         sync.Mutex // protects subvolumes
	subvolumes map[uint64]struct{}
}

func (l *leftovers) add(subvolume uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.subvolumes == nil {
		l.subvolumes = map[uint64]struct{}{}
	}
	l.subvolumes[subvolume] = struct{}{}
}

// has reports whether a subvolume is among them.
func (l *leftovers) has(subvolume uint64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, ok := l.subvolumes[subvolume]
	return ok
}

func (l *leftovers) remove(subvolume uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.subvolumes, subvolume)
}

// all returns those of now.
func (l *leftovers) all() map[uint64]struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	return maps.Clone(l.subvolumes)
}

// maintain looks after every pool's quota until ctx ends.
func (e *Engine) maintain(ctx context.Context) {
	for _, p := range e.allPools() {
		go p.logFaults(ctx)
	}
	tick := time.NewTicker(maintenance)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		for _, p := range e.allPools() {
			go e.tend(ctx, p) // a step in a pool whose disk does not answer holds up that pool alone
			if p.unread.Load() {
				e.indexBehind.Store(true)
			}
		}
		e.indexed(ctx, e.index.Flush())
		if e.indexBehind.Load() {
			e.indexed(ctx, e.syncIndex())
		}
	}
}

// tend maintains a pool, unless that is under way.
func (e *Engine) tend(ctx context.Context, p *pool) {
	if !p.tending.TryLock() {
		return
	}
	defer p.tending.Unlock()
	if _, silence := p.guard.state(); silence != nil || ctx.Err() != nil {
		return
	}
	if err := p.Thawed(); err != nil {
		e.complain(ctx, "Pool is not maintained", p.name, err)
		return
	}
	if p.returned.Swap(false) {
		findings, err := e.repair(ctx, p)
		logFindings(ctx, findings)
		if err != nil {
			p.returned.Store(true)
			e.complain(ctx, "What was left half done cannot be completed", p.name, err)
		}
	}
	e.maintainPool(ctx, p)
	p.logNews(ctx)
}

// maintainPool forgets the accounting of what is gone, bounds what pods have nested, sets
// limits that are wrong, and has a full quota that has become inconsistent, whose limits
// are void, counted anew. Its cost is that of reading the root and the quota tree.
func (e *Engine) maintainPool(ctx context.Context, p *pool) {
	complain := func(err error, message string) {
		if !errors.Is(err, ErrSilent) { // which is said already
			e.complain(ctx, message, p.name, err)
		}
	}
	for subvolume := range p.leftovers.all() {
		if err := p.ForgetQuota(subvolume); err == nil {
			p.leftovers.remove(subvolume)
		}
	}
	// What vanished without us is forgotten the next time: at the second look.
	stale, err := p.StaleQuota()
	for _, subvolume := range stale {
		p.leftovers.add(subvolume)
	}
	if err != nil {
		complain(err, "Stale quota cannot be read")
	}
	if err := e.boundNested(ctx, p); err != nil {
		complain(err, "Nested subvolumes cannot be bounded")
	}
	if err := e.mendLimits(ctx, p); err != nil {
		complain(err, "Limits cannot be compared")
	}
	status, err := p.QuotaStatus()
	if err != nil {
		complain(err, "Quota status cannot be read")
		return
	}
	if needsRescan(status) {
		klog.FromContext(ctx).Info("Quota is inconsistent, limits are void until it has been rescanned", "pool", p.name, "rescanError", p.rescan())
		e.changed(meta.Ref{})
	}
}

// mendLimits sets the limits that are not the sizes of their volumes: somebody has turned
// quota off and on again, or changed one, or an operation passed the volume by as its pool
// was opened again. While no limit in the pool changes, it costs no more than reading them.
func (e *Engine) mendLimits(ctx context.Context, p *pool) error {
	limits, err := p.Limits()
	if err != nil || limits == nil || p.rightLimits != nil && maps.Equal(limits, p.rightLimits) {
		return err
	}
	wrong, err := e.volumesOf(p, func(v meta.Entry) bool {
		return v.SubvolumeID != 0 && limits[v.SubvolumeID] != v.Size // 0: it cannot be read
	})
	if err != nil {
		return err
	}
	p.rightLimits = nil
	if len(wrong) == 0 {
		p.rightLimits = limits
	}
	for _, v := range wrong {
		var mended Finding
		e.confirm(p, action{slot: slotOf(v.Kind, v.ID)}, func(a action) {
			if a.run != nil { // else it is for people, and check tells
				mended = a.apply(p)
				logFindings(ctx, []Finding{mended})
			}
		})
		if mended.Error != "" || ctx.Err() != nil {
			break // the others would fail as well: the next time
		}
	}
	return nil
}

// rescan has the quota counted anew.
func (p *pool) rescan() error {
	err := p.Rescan()
	if err == nil {
		p.rescans.Add(1)
	}
	return err
}

func needsRescan(s btrfs.QuotaStatus) bool {
	return s.Mode == btrfs.QuotaFull && s.Inconsistent && !s.Rescanning
}
