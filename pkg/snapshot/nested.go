package snapshot

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"sync"
	"time"

	"k8s.io/klog/v2"

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs"
	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
	"github.com/btrfs-csi/btrfs-csi/pkg/pool"
)

const (
	// nestedInterval is the time between two looks for subvolumes that pods have made.
	nestedInterval = time.Second
	// nestedRest is how much longer than the last look a pool is left alone.
	nestedRest = 10
)

// nested is what pods have made in the volumes of a pool.
type nested struct {
	looking sync.Mutex // held by who looks; protects all but usage

	// A look asks for IDs above from, the largest one of the look before the last. So each ID
	// is asked for twice: its entry may appear after that of a larger ID.
	from, last uint64    // last is the largest ID of the last look
	full       time.Time // when all was looked at
	next       time.Time // no look before

	mu    sync.Mutex            // protects what follows
	usage map[uint64]pool.Usage // by the ID of each volume that nests: what Bound returned
}

// volumes returns the number of volumes that nest.
func (n *nested) volumes() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.usage)
}

// in returns what is held by those in a volume, as of the last look, and whether there are
// any.
func (n *nested) in(volume uint64) (pool.Usage, bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	held, nests := n.usage[volume]
	return held, nests
}

// set notes a look at a volume, and reports whether it began or ceased to nest.
func (n *nested) set(volume uint64, held pool.Usage, nests bool) (changed bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	_, did := n.usage[volume]
	switch {
	case !nests:
		delete(n.usage, volume)
	case n.usage == nil:
		n.usage = map[uint64]pool.Usage{volume: held}
	default:
		n.usage[volume] = held
	}
	return did != nests
}

// keep forgets the volumes that are not among these.
func (n *nested) keep(slots map[uint64]pool.Slot) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for volume := range n.usage {
		if _, there := slots[volume]; !there {
			delete(n.usage, volume)
		}
	}
}

// Nested returns the paths of the subvolumes in a volume, one level deep.
func (e *Engine) Nested(_ context.Context, volume string) ([]string, error) {
	l, err := e.find(meta.Volume(volume))
	if err != nil {
		return nil, err
	}
	paths, err := l.pool.Nested(l.slot)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", l.record.Ref(), err)
	}
	return paths, nil
}

// lookForNested bounds what is nested, if there may be any: where nothing is, and nobody has
// made anything since the last look, that costs one system call, which reads nothing from a
// disk. Pods choose what a look costs, so a pool rests in proportion. It does nothing where
// a look is under way.
func (e *Engine) lookForNested(ctx context.Context, p *servedPool) {
	n := &p.nested
	if !n.looking.TryLock() {
		return
	}
	defer n.looking.Unlock()
	began := time.Now()
	if _, silence := p.Silence(); silence != nil {
		return
	}
	if began.Before(n.next) || n.volumes() == 0 && began.Sub(n.full) < e.maintenance && !p.nestsAnew(ctx) {
		return
	}
	n.full = began
	err := p.Thawed()
	if err == nil {
		err = e.boundNested(ctx, p)
	}
	n.next = time.Now().Add(nestedRest * time.Since(began))
	if err != nil && !errors.Is(err, pool.ErrAway) && !errors.Is(err, pool.ErrFrozen) { // which others say
		e.complain(ctx, "Nested subvolumes cannot be bounded", p.Name, err)
		n.next = time.Now().Add(e.maintenance)
	}
}

// nestsAnew reports whether somebody has nested a subvolume since the last looks.
func (p *servedPool) nestsAnew(ctx context.Context) bool {
	n := &p.nested
	census, err := p.NestedSince(n.from + 1)
	if err != nil {
		klog.FromContext(ctx).V(2).Info("New subvolumes cannot be looked for", "pool", p.Name, "reason", err)
		return false
	}
	n.from, n.last = n.last, max(n.last, census.Last)
	return len(census.Nested) > 0
}

// boundNested has each volume and what pods have nested in it hold no more than its size.
func (e *Engine) boundNested(ctx context.Context, p *servedPool) error {
	census, err := p.Census()
	if err != nil {
		return err
	}
	p.nested.from, p.nested.last = p.nested.last, census.Last
	hosts, slots := census.Hosts(), map[uint64]pool.Slot{}
	for slot, volume := range census.Slots {
		if slot.Area != pool.Area(meta.Active) {
			continue
		}
		slots[volume] = slot
		if _, did := p.nested.in(volume); did || len(hosts[volume]) > 0 {
			err = errors.Join(err, p.boundIn(ctx, slot, volume, hosts[volume]))
		}
	}
	p.nested.keep(slots)
	return err
}

// boundIn bounds one volume. What is gone meanwhile is no error.
func (p *servedPool) boundIn(ctx context.Context, slot pool.Slot, volume uint64, subvolumes []uint64) error {
	l, err := p.read(slot)
	var held pool.Usage
	if err == nil {
		held, err = p.Bound(volume, l.record.Size, subvolumes)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("%s: %w", slot, err)
	}
	if p.nested.set(volume, held, len(subvolumes) > 0) {
		klog.FromContext(ctx).Info("Pods have begun to nest subvolumes in a volume, or ceased to", "pool", p.Name, "volumeID", slot.Name, "subvolumes", len(subvolumes))
	}
	return nil
}

// usageOf returns what a volume or snapshot uses, with what is nested in it.
func (p *servedPool) usageOf(subvolume uint64) (pool.Usage, error) {
	usage, err := p.Usage(subvolume)
	held, _ := p.nested.in(subvolume)
	usage.Used += held.Used
	usage.Exclusive += held.Exclusive
	return usage, err
}

// setLimit gives a volume its size, less what is nested in it holds.
func (l *located) setLimit(subvolume uint64) error {
	held, _ := l.pool.nested.in(subvolume)
	return l.fs.SetLimit(subvolume, max(1, l.record.Size-held.Used)) // 0 reads as none
}

// limitWrong reports whether a limit is not that of the volume, which under full quota is
// less than its size while it nests others.
func (l *located) limitWrong(subvolume uint64, have int64) bool {
	if have == l.record.Size {
		return false
	}
	_, nests := l.pool.nested.in(subvolume)
	if !nests {
		status, err := l.fs.QuotaStatus()
		paths, failed := l.fs.Nested(l.slot)
		nests = err == nil && failed == nil && status.Mode == btrfs.QuotaFull && len(paths) > 0
	}
	return !nests || have == 0 || have > l.record.Size
}
