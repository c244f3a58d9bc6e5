package snapshot

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
	"github.com/btrfs-csi/btrfs-csi/pkg/pool"
)

// inPoolAway fails if a pool that is away contained ref when it was last seen.
func (e *Engine) inPoolAway(ref meta.Ref) error {
	known, err := e.lookup(ref)
	if err != nil {
		return nil // forgotten then assumes that every pool that is away may contain it
	}
	for _, k := range known {
		if !e.inUse(k.PoolID) {
			return e.wasIn(ref, k.PoolID, k.Pool)
		}
	}
	remembered, _ := e.remembered() // after an error, forgotten assumes the same
	for id, state := range remembered {
		if !e.inUse(id) && slices.Contains(state.Unlisted, ref) {
			return e.wasIn(ref, id, state.Name)
		}
	}
	return nil
}

// wasIn returns the pool.ErrAway for what was in a pool.
func (e *Engine) wasIn(ref meta.Ref, poolID, name string) error {
	e.mu.RLock()
	reason := e.broken[name]
	e.mu.RUnlock()
	if errors.Is(reason, pool.ErrSilent) {
		return fmt.Errorf("%s: was in it: %w", ref, reason)
	}
	if errors.Is(reason, pool.ErrFrozen) {
		return fmt.Errorf("%s: was in it: %w: %w", ref, pool.ErrAway, reason)
	}
	return fmt.Errorf("%s: was in pool %q (%s): %w: mount its filesystem at pools/%s", ref, name, poolID, pool.ErrAway, name)
}

// forgotten fails if ref may be in a pool that is away and that the index does not remember. The
// caller has found ref in no pool here. The index was rebuilt or cannot be read.
func (e *Engine) forgotten(ref meta.Ref) error {
	if !meta.ValidID(ref.ID) { // no pool contains it
		return nil
	}
	if err := e.rolledBack(); err != nil {
		return fmt.Errorf("%s: may be in it: %w: %w", ref, ErrForgotten, err)
	}
	known, err := e.Away()
	if err != nil {
		return fmt.Errorf("%s: %w: which pools there were cannot be read: %w", ref, pool.ErrAway, err)
	}
	if len(known) == 0 {
		return nil
	}
	remembered, err := e.remembered()
	if _, failed := e.lookup(ref); err != nil || failed != nil {
		remembered = nil
	}
	for id, name := range known {
		if _, ok := remembered[id]; !ok {
			return fmt.Errorf("%s: may be in pool %q (%s): %w: mount its filesystem at pools/%s, or, if its disk is gone for good, remove the file known/%s in the state directory",
				ref, name, id, ErrForgotten, name, id)
		}
	}
	return nil
}

// rolledBack returns why a pool that was rolled back cannot be used. The state directory may know
// nothing of its content.
func (e *Engine) rolledBack() error {
	e.mu.RLock()
	defer e.mu.RUnlock()
	for _, reason := range e.broken {
		if errors.Is(reason, pool.ErrRolledBack) {
			return reason
		}
	}
	return nil
}

// Away returns the names of the pools that were once in use and are not now, by ID, without those
// that are forgotten.
func (e *Engine) Away() (map[string]string, error) {
	known, err := e.host.Known()
	maps.DeleteFunc(known, func(id, _ string) bool { return e.inUse(id) })
	return known, err
}

// Forget removes a pool that will not come back to this node from Away.
func (e *Engine) Forget(poolID string) error { return e.host.Forget(poolID) }
