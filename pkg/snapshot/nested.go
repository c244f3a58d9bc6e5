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
	// nestedInterval is the time between two looks for nested subvolumes.
	nestedInterval = time.Second
	// nestedRest is how many times longer than its last look a pool is left alone.
	nestedRest = 10
)

// nested records what pods have nested in the volumes of a pool.
type nested struct {
	looking sync.Mutex // held during a look; protects all but usage

	// A look asks for IDs above from, the largest ID of the last look but one. So it asks for
	// each ID twice, because the entry of an ID may appear after that of a larger one.
	from, last uint64    // last is the largest ID of the last look
	full       time.Time // when the last full look began
	next       time.Time // the time of the next look at the earliest

	mu    sync.Mutex            // protects what follows
	usage map[uint64]pool.Usage // results of Bound, by ID of each volume with nested subvolumes
}

// volumes returns the number of volumes with nested subvolumes.
func (n *nested) volumes() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.usage)
}

// in returns the usage of the subvolumes nested in a volume, as of the last look, and whether
// there are any.
func (n *nested) in(volume uint64) (pool.Usage, bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	inside, nests := n.usage[volume]
	return inside, nests
}

// set records the result of a look at a volume, and reports whether it is the first one with
// nested subvolumes, or the first one without.
func (n *nested) set(volume uint64, inside pool.Usage, nests bool) (changed bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	_, did := n.usage[volume]
	switch {
	case !nests:
		delete(n.usage, volume)
	case n.usage == nil:
		n.usage = map[uint64]pool.Usage{volume: inside}
	default:
		n.usage[volume] = inside
	}
	return did != nests
}

// keep removes the volumes that are not in slots.
func (n *nested) keep(slots map[uint64]pool.Slot) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for volume := range n.usage {
		if _, there := slots[volume]; !there {
			delete(n.usage, volume)
		}
	}
}

// Nested returns the paths of the subvolumes nested in a volume, one level deep.
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

// lookForNested limits nested subvolumes. If there are none, and nobody has made a subvolume
// since the last look, it costs one system call and no disk access. Pods determine the cost of a
// look, so the pool is then left alone in proportion. While another look is running it does
// nothing.
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
	if err != nil && !errors.Is(err, pool.ErrAway) && !errors.Is(err, pool.ErrFrozen) { // which others report
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

// boundNested limits each volume and its nested subvolumes together to the volume's size.
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

// boundIn limits one volume. A volume that is gone is no error.
func (p *servedPool) boundIn(ctx context.Context, slot pool.Slot, volume uint64, subvolumes []uint64) error {
	l, err := p.read(slot)
	var inside pool.Usage
	if err == nil {
		inside, err = p.Bound(volume, l.record.Size, subvolumes)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("%s: %w", slot, err)
	}
	if p.nested.set(volume, inside, len(subvolumes) > 0) {
		klog.FromContext(ctx).Info("Pods have begun to nest subvolumes in a volume, or ceased to", "pool", p.Name, "volumeID", slot.Name, "subvolumes", len(subvolumes))
	}
	return nil
}

// usageOf returns the usage of a volume or snapshot with that of its nested subvolumes.
func (p *servedPool) usageOf(subvolume uint64) (pool.Usage, error) {
	usage, err := p.Usage(subvolume)
	inside, _ := p.nested.in(subvolume)
	usage.Used += inside.Used
	usage.Exclusive += inside.Exclusive
	return usage, err
}

// setLimit sets the limit of a volume to its size minus the usage of its nested subvolumes.
func (l *located) setLimit(subvolume uint64) error {
	inside, _ := l.pool.nested.in(subvolume)
	return l.fs.SetLimit(subvolume, max(1, l.record.Size-inside.Used)) // 0 would mean no limit
}

// limitWrong reports whether a limit is wrong. The right one is the volume's size, or less under
// full quota while the volume has nested subvolumes.
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
