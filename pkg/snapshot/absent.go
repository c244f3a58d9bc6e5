package snapshot

import (
	"errors"
	"fmt"
	"slices"

	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
	"github.com/btrfs-csi/btrfs-csi/pkg/pool"
)

// absent is the error for a volume or snapshot that no pool here contains. It is ErrNotFound
// only where no pool that is away may hold it: nobody else may conclude that it is gone.
func (e *Engine) absent(ref meta.Ref) error {
	err := e.notHere(ref)
	if !errors.Is(err, ErrNotFound) {
		return err
	}
	if forgotten := e.forgotten(ref); forgotten != nil {
		return forgotten
	}
	return err
}

// notHere distinguishes an ID that is unknown from one whose pool is away: what a pool that is
// away held when it was last seen is pool.ErrAway, else it is ErrNotFound. A create asks no
// more: it makes what nobody knows, although a pool may be away.
func (e *Engine) notHere(ref meta.Ref) error {
	known, err := e.lookup(ref)
	if err != nil {
		return fmt.Errorf("%s: %w (index: %w)", ref, ErrNotFound, err)
	}
	away := func(id, name string) error {
		e.mu.RLock()
		reason := e.broken[name]
		e.mu.RUnlock()
		if errors.Is(reason, pool.ErrSilent) {
			return fmt.Errorf("%s: was in it: %w", ref, reason)
		}
		if errors.Is(reason, pool.ErrFrozen) {
			return fmt.Errorf("%s: was in it: %w: %w", ref, pool.ErrAway, reason)
		}
		return fmt.Errorf("%s: was in pool %q (%s): %w: mount its filesystem at pools/%s", ref, name, id, pool.ErrAway, name)
	}
	for _, k := range known {
		if !e.inUse(k.PoolID) {
			return away(k.PoolID, k.Pool)
		}
	}
	remembered, _ := e.remembered() // forgotten looks at what it lacks
	for id, state := range remembered {
		if !e.inUse(id) && slices.Contains(state.Unlisted, ref) {
			return away(id, state.Name)
		}
	}
	return fmt.Errorf("%s: %w on this node", ref, ErrNotFound)
}

// forgotten fails when what is in no pool here may be in one that is away, and that
// the index does not remember, since it was made anew or fails.
func (e *Engine) forgotten(ref meta.Ref) error {
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

// rolledBack returns why a pool that was rolled back cannot be used: of what it contains what
// the state directory remembers of pools may know nothing.
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

// steady is ErrBusy when pools have come or gone since those were looked at: what was not
// found may be in one of them.
func (e *Engine) steady(pools []*servedPool, ref meta.Ref) error {
	if slices.Equal(pools, e.allPools()) {
		return nil
	}
	return fmt.Errorf("%s: %w: the pools have just changed", ref, ErrBusy)
}
