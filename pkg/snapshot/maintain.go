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
	"github.com/btrfs-csi/btrfs-csi/pkg/pool"
)

// staleQgroups are destroyed subvolumes whose qgroups the kernel may keep until it has dropped
// the tree. In simple mode it keeps them while a snapshot contains data that they wrote. Without
// a sweep they pile up by the thousand.
type staleQgroups struct {
	mu         sync.Mutex // protects subvolumes
	subvolumes map[uint64]struct{}
}

func (l *staleQgroups) add(subvolume uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.subvolumes == nil {
		l.subvolumes = map[uint64]struct{}{}
	}
	l.subvolumes[subvolume] = struct{}{}
}

// has reports whether the set contains a subvolume.
func (l *staleQgroups) has(subvolume uint64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, ok := l.subvolumes[subvolume]
	return ok
}

func (l *staleQgroups) remove(subvolume uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.subvolumes, subvolume)
}

// all returns a copy of the set.
func (l *staleQgroups) all() map[uint64]struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	return maps.Clone(l.subvolumes)
}

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

// tend maintains a pool, unless its maintenance is running.
func (e *Engine) tend(ctx context.Context, p *servedPool) {
	if !p.tending.TryLock() {
		return
	}
	defer p.tending.Unlock()
	if _, silence := p.Silence(); silence != nil || ctx.Err() != nil {
		return
	}
	if err := p.Thawed(); err != nil {
		e.complain(ctx, "Pool is not maintained", p.Name, err)
		return
	}
	if p.returned.Swap(false) {
		findings, _, err := e.repair(ctx, p)
		logFindings(ctx, findings)
		if err != nil {
			p.returned.Store(true)
			e.complain(ctx, "What was left half done cannot be completed", p.Name, err)
		}
	}
	e.maintainPool(ctx, p)
	p.logNews(ctx)
}

// maintainPool removes stale qgroups, and adds subvolumes to the index that somebody put into a
// slot. It corrects limits, and rescans an inconsistent full quota, whose limits have no effect.
// Its cost is that of reading the root tree and the quota tree.
func (e *Engine) maintainPool(ctx context.Context, p *servedPool) {
	complain := func(err error, message string) {
		if !errors.Is(err, pool.ErrSilent) { // which is logged already
			e.complain(ctx, message, p.Name, err)
		}
	}
	for subvolume := range p.stale.all() {
		if err := p.ForgetQuota(subvolume); err == nil {
			p.stale.remove(subvolume)
		}
	}
	// Subvolumes that somebody else destroyed are forgotten in the next round.
	stale, err := p.StaleQuota()
	for _, subvolume := range stale {
		p.stale.add(subvolume)
	}
	if err != nil {
		complain(err, "Stale quota cannot be read")
	}
	if err := e.mend(ctx, p); err != nil {
		complain(err, "Slots, index and qgroup limits cannot be compared")
	}
	status, err := p.QuotaStatus()
	if err != nil {
		complain(err, "Quota status cannot be read")
		return
	}
	if needsRescan(status) {
		klog.FromContext(ctx).Info("Quota is inconsistent, sizes are not enforced until it has been rescanned", "pool", p.Name, "rescanError", p.rescan())
		e.changed(meta.Ref{})
	}
}

// looked is the result of a look at a pool: the subvolume in each slot, and the limits by
// subvolume ID.
type looked struct {
	slots  map[pool.Slot]uint64
	limits map[uint64]int64
}

// known is what the index has for a slot.
type known struct {
	subvolume uint64 // 0: it cannot be read
	size      int64
}

// mend compares the subvolumes in the slots of a pool, and their limits, with the index. They
// differ if somebody has exchanged a subvolume or put one back, has changed a limit, or has
// turned quota off and on again. They also differ if adopt skipped a volume because of a running
// operation. While neither subvolumes nor limits change, mend costs no more than reading both.
func (e *Engine) mend(ctx context.Context, p *servedPool) error {
	census, err := p.Census()
	if err != nil {
		return err
	}
	limits, err := p.Limits()
	if err != nil {
		return err
	}
	now := looked{census.Slots, limits}
	if p.right.slots != nil && maps.Equal(p.right.slots, now.slots) && maps.Equal(p.right.limits, now.limits) {
		return nil
	}
	p.right = looked{}
	right, err := e.mendAll(ctx, p, now)
	if right {
		p.right = now
	}
	return err
}

// mendAll corrects the slots that look wrong, and reports whether none was wrong.
func (e *Engine) mendAll(ctx context.Context, p *servedPool, now looked) (right bool, err error) {
	indexed, err := e.knownOf(p)
	if err != nil {
		return false, err
	}
	right = true
	for slot, id := range now.slots {
		if k, is := indexed[slot]; is && (k.subvolume == 0 || k.subvolume == id && !p.odd(slot, k, now.limits)) {
			continue
		}
		mended, err := e.mendSlot(ctx, p, slot)
		if err != nil || ctx.Err() != nil {
			return false, err // the others would fail too; try again in the next round
		}
		right = right && !mended
	}
	return right, nil
}

// odd reports whether the limit of a volume may be wrong.
func (p *servedPool) odd(slot pool.Slot, k known, limits map[uint64]int64) bool {
	if slot.Area != pool.Area(meta.Active) || limits == nil || limits[k.subvolume] == k.size {
		return false
	}
	_, nests := p.nested.in(k.subvolume)
	return !nests || limits[k.subvolume] == 0 || limits[k.subvolume] > k.size
}

// knownOf returns what the index has for the slots of a pool.
func (e *Engine) knownOf(p *servedPool) (map[pool.Slot]known, error) {
	all := map[pool.Slot]known{}
	add := func(entry meta.Entry) bool {
		if entry.PoolID == p.PoolID() {
			all[pool.SlotOf(entry.Kind, entry.ID)] = known{entry.SubvolumeID, entry.Size}
		}
		return true
	}
	err := e.Walk(context.Background(), meta.Volumes, "", add)
	if err == nil {
		err = e.Walk(context.Background(), meta.Snapshots, "", add)
	}
	return all, err
}

// mendSlot looks at a slot under its lock, adds its subvolume to the index if the index has
// another one, and corrects a wrong limit. It reports whether it changed something or the slot is
// locked. It fails if the limit cannot be set.
func (e *Engine) mendSlot(ctx context.Context, p *servedPool, slot pool.Slot) (mended bool, err error) {
	ref, named := slot.Ref()
	if !named {
		return false, nil
	}
	release, err := e.locks.acquire(ref, meta.Ref{})
	if err != nil {
		return true, nil
	}
	defer release()
	s, err := p.look(slot)
	if err != nil || s.state != slotReady {
		return false, nil // gone, or a fault that check reports
	}
	if entry := entryOf(p, s.record, s.info); !e.indexHas(entry) {
		klog.FromContext(ctx).Info("Somebody has exchanged a subvolume, or put it back", "pool", p.Name, "path", slot.String(), "subvolume", entry.SubvolumeID)
		e.indexPut(ctx, entry)
		mended = true
	}
	for _, a := range s.judgeReady(p.limitOf) {
		if a.run == nil {
			continue
		}
		mended = true
		done := a.apply()
		logFindings(ctx, []Finding{done})
		if done.Error != "" {
			err = errors.Join(err, errors.New(done.Error))
		}
	}
	return mended, err
}

// notice calls mendSlot if the index has another subvolume in a slot that is about to be mounted,
// and that may have no limit.
func (e *Engine) notice(ctx context.Context, l located, entry meta.Entry) {
	if e.indexHas(entry) {
		return
	}
	err := l.pool.Thawed()
	if err == nil {
		_, err = e.mendSlot(ctx, l.pool, l.slot)
	}
	if err != nil {
		klog.FromContext(ctx).Error(err, "Qgroup limit cannot be set", "pool", l.pool.Name, "path", l.slot.String())
	}
}

// rescan starts a quota rescan.
func (p *servedPool) rescan() error {
	err := p.Rescan()
	if err == nil {
		p.rescans.Add(1)
	}
	return err
}

func needsRescan(s btrfs.QuotaStatus) bool {
	return s.Mode == btrfs.QuotaFull && s.Inconsistent && !s.Rescanning
}
