package slot

import (
	"errors"
	"fmt"
	"slices"

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs"
	"github.com/btrfs-csi/btrfs-csi/pkg/pool"
)

// Plan compares the pool with its ledger. It returns the slots and the first fault of each. Before
// an action about a slot is applied, the slot has to be looked at again under its lock.
func (s *Session) Plan() ([]*Slot, []Action, error) {
	slots, err := s.Scan()
	if err != nil {
		return nil, nil, err
	}
	known := s.pool.stale.all()
	groups, err := s.Groups()
	if err != nil {
		return nil, nil, err
	}
	s.pool.stale.add(groups.Pinned...) // Sweep removes them when the kernel no longer needs them
	limit := func(subvolume uint64) (int64, bool) { return groups.Limits[subvolume], groups.Limits != nil }
	var actions []Action
	for _, l := range slots {
		if wrong := l.faults(limit); len(wrong) > 0 {
			actions = append(actions, wrong[0])
		}
	}
	outside, err := s.planOutside(slots)
	if err != nil {
		return nil, nil, err
	}
	stale := slices.DeleteFunc(groups.Stale, func(id uint64) bool { // Sweep knows it, or knew it a moment ago
		_, was := known[id]
		return was || s.pool.stale.has(id)
	})
	return slots, slices.Concat(actions, outside, s.planQuota(stale, groups.Status)), nil
}

// planOutside reports subvolumes outside of the pool that have no slot in it. A lost slot counts,
// and one with a copy that was brought back. An error outside stops no repair in the pool.
func (s *Session) planOutside(slots []*Slot) ([]Action, error) {
	all, err := s.Outside()
	if errors.Is(err, pool.ErrSilent) {
		return nil, err
	}
	var actions []Action
	if err != nil {
		actions = append(actions, Action{Finding: Finding{Pool: s.Name, Problem: Damaged,
			Detail: fmt.Sprintf("subvolumes outside of the pool cannot be looked through for its own: %v; mend the filesystem", err)}})
	}
	for _, o := range all {
		if slices.ContainsFunc(slots, func(l *Slot) bool { return l.madeAs(o) }) {
			continue
		}
		actions = append(actions, Action{Finding: Finding{Pool: s.Name, Path: o.Slot.String(), Problem: OutsidePool,
			Detail: fmt.Sprintf("subvolume %s of the filesystem was made in this pool, which has no record of it now; copy out what is wanted, and delete that subvolume", o.Path)}})
	}
	return actions, nil
}

// planQuota returns the actions that concern no single slot.
func (s *Session) planQuota(stale []uint64, status btrfs.QuotaStatus) (actions []Action) {
	if len(stale) > 0 {
		actions = append(actions, Action{
			Finding: Finding{Pool: s.Name, Problem: StaleQuota, Routine: true, Repair: "remove",
				Detail: fmt.Sprintf("accounting of %d subvolumes that are gone; a driver removes it by itself", len(stale))},
			run: func() error { return s.forgetAll(stale) },
		})
	}
	if NeedsRescan(status) {
		actions = append(actions, Action{
			Finding: Finding{Pool: s.Name, Problem: pool.QuotaInconsistent, Detail: "sizes are not enforced until it has been rescanned", Repair: "rescan"},
			run:     s.RescanQuota,
		})
	}
	return actions
}
