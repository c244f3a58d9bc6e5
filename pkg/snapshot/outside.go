package snapshot

import (
	"errors"
	"fmt"
	"slices"

	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
	"github.com/btrfs-csi/btrfs-csi/pkg/pool"
)

// When the filesystem around a pool is rolled back, a snapshot takes the place of the subvolume
// that contains the pool's directory. The snapshot contains the old slots and records, and stubs
// in place of the pool's subvolumes. The subvolumes are whole, below the subvolume that was moved
// aside. Only an administrator knows which of the two will be used. So the driver moves nothing,
// and reports where the data is.

// lost returns the error for a slot whose record says ready, but whose subvolume is absent.
func (l *located) lost() error {
	ref := l.record.Ref()
	o, found, err := l.findOutside()
	if found {
		return fmt.Errorf("%s: %w: %s", ref, ErrOutside, o.WayBack())
	}
	if err != nil { // the data may be outside
		return fmt.Errorf("%s: its record in pool %q is there, its data is not, and cannot be looked for outside of the pool: %w", ref, l.pool.Name, err)
	}
	return fmt.Errorf("%s: its record in pool %q is there, its data is not: %w: restore a snapshot, then delete it", ref, l.pool.Name, ErrLost)
}

// findOutside returns where the subvolume of a lost slot is, if it lies outside of the pool.
func (l *located) findOutside() (o pool.OutsideSubvolume, found bool, err error) {
	all, err := l.pool.RecentOutside()
	if at := slices.IndexFunc(all, l.madeAs); at >= 0 {
		return all[at], true, err
	}
	return o, false, err
}

// madeAs reports whether a subvolume outside was made for l, and not for another one of its name.
func (l *located) madeAs(o pool.OutsideSubvolume) bool {
	record, err := meta.DecodeRecord(o.Record)
	return err == nil && o.Slot == pool.SlotOf(l.record.Kind, l.record.ID) && record.Name == l.record.Name && record.Created.Equal(l.record.Created)
}

// planOutside reports subvolumes outside of the pool that have no slot in it. A lost slot counts,
// and one with a copy that was brought back. An error outside stops no repair in the pool.
func (p *servedPool) planOutside(slots []scanned) ([]action, error) {
	all, err := p.Outside()
	if errors.Is(err, pool.ErrSilent) {
		return nil, err
	}
	var actions []action
	if err != nil {
		actions = append(actions, action{Finding: Finding{Pool: p.Name, Problem: Damaged,
			Detail: fmt.Sprintf("subvolumes outside of the pool cannot be looked through for its own: %v; mend the filesystem", err)}})
	}
	for _, o := range all {
		if slices.ContainsFunc(slots, func(s scanned) bool { return s.madeAs(o) }) {
			continue
		}
		actions = append(actions, action{Finding: Finding{Pool: p.Name, Path: o.Slot.String(), Problem: OutsidePool,
			Detail: fmt.Sprintf("subvolume %s of the filesystem was made in this pool, which has no record of it now; copy out what is wanted, and delete that subvolume", o.Path)}})
	}
	return actions, nil
}
