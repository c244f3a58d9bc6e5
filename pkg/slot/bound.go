package slot

import (
	"context"
	"errors"
	"fmt"
	"time"

	"k8s.io/klog/v2"

	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
	"github.com/btrfs-csi/btrfs-csi/pkg/pool"
)

// nestedRest is how many times longer than its last look a pool is left alone.
const nestedRest = 10

// BoundNested limits nested subvolumes. If there are none, and nobody has made a subvolume since
// the last look, it costs one system call and no disk access, but for a full look after each
// interval. Pods determine the cost of a look, so the pool is then left alone in proportion. While
// another look is running it does nothing.
func (p *Pool) BoundNested(ctx context.Context, interval time.Duration) error {
	n := &p.nested
	if !n.looking.TryLock() {
		return nil
	}
	defer n.looking.Unlock()
	began := time.Now()
	if began.Before(n.next) {
		return nil
	}
	s, err := p.Open()
	if err != nil {
		return nil // which others report
	}
	defer s.Close()
	if n.volumes() == 0 && began.Sub(n.full) < interval && !s.nestsAnew(ctx) {
		return nil
	}
	n.full = began
	if err = s.Thawed(); err == nil {
		err = s.boundNested(ctx)
	}
	n.next = time.Now().Add(nestedRest * time.Since(began))
	if err == nil || errors.Is(err, pool.ErrAway) || errors.Is(err, pool.ErrFrozen) {
		return nil // which others report
	}
	n.next = time.Now().Add(interval)
	return err
}

// nestsAnew reports whether somebody has nested a subvolume since the last looks.
func (s *Session) nestsAnew(ctx context.Context) bool {
	n := &s.pool.nested
	census, err := s.NestedSince(n.from + 1)
	if err != nil {
		klog.FromContext(ctx).V(2).Info("New subvolumes cannot be looked for", "pool", s.Name, "reason", err)
		return false
	}
	n.from, n.last = n.last, max(n.last, census.Last)
	return len(census.Nested) > 0
}

// boundNested limits each volume and its nested subvolumes together to the volume's size.
func (s *Session) boundNested(ctx context.Context) error {
	census, err := s.Census()
	if err != nil {
		return err
	}
	n := &s.pool.nested
	n.from, n.last = n.last, census.Last
	hosts, slots := census.Hosts(), map[uint64]pool.Slot{}
	for at, volume := range census.Slots {
		if at.Area != pool.Area(meta.Active) {
			continue
		}
		slots[volume] = at
		if _, did := n.in(volume); did || len(hosts[volume]) > 0 {
			err = errors.Join(err, s.boundIn(ctx, at, volume, hosts[volume]))
		}
	}
	n.keep(slots)
	return err
}

// boundIn limits one volume. A volume that is gone is no error.
func (s *Session) boundIn(ctx context.Context, at pool.Slot, volume uint64, subvolumes []uint64) error {
	found, err := s.LookUp(at)
	for _, l := range found {
		var inside pool.Usage
		if inside, err = s.Bound(volume, l.limit(), subvolumes); err == nil && s.pool.nested.set(volume, inside, len(subvolumes) > 0) {
			klog.FromContext(ctx).Info("Pods have begun to nest subvolumes in a volume, or ceased to", "pool", s.Name, "volumeID", at.Name, "subvolumes", len(subvolumes))
		}
	}
	if err != nil {
		return fmt.Errorf("%s: %w", at, err)
	}
	return nil
}
