package snapshot

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
	"github.com/btrfs-csi/btrfs-csi/pkg/pool"
)

// presence is the result of a look-up of a volume or snapshot: found, absent, or unknown, because
// a pool that may contain it cannot be asked.
type presence struct {
	found   *located // nil: absent or unknown
	unknown error    // nil: found or absent
	// unasked are the IDs of the pools in use that did not answer. If there are any, unknown is
	// their error: each may contain it, but nothing says that one does.
	unasked []string
}

// locate looks a volume or snapshot up in the ledgers of all pools, and in the index for pools
// that are away. It ignores what the index has forgotten; see forgotten. It fails for a slot that
// is foreign or unreadable.
func (e *Engine) locate(ref meta.Ref) (there presence, err error) {
	if !meta.ValidID(ref.ID) {
		return there, nil
	}
	var found []located
	pools := e.allPools()
	for i, looked := range each(pools, func(p *servedPool) lookedUp { return p.lookUp(ref) }) {
		if errors.Is(looked.err, pool.ErrAway) { // a sick disk must stop only what may be on it
			there.unasked = append(there.unasked, pools[i].PoolID())
			there.unknown = errors.Join(there.unknown, fmt.Errorf("%s: %w", ref, looked.err))
		} else if looked.err != nil {
			return there, fmt.Errorf("%s: %w", ref, looked.err)
		}
		found = append(found, looked.found...)
	}
	switch {
	case len(found) > 1:
		return there, fmt.Errorf("%s: in pools %q and %q: %w: remove one of them by hand", ref, found[0].pool.Name, found[1].pool.Name, ErrAmbiguous)
	case len(found) == 1:
		return presence{found: &found[0]}, nil
	}
	if busy := e.steady(pools, ref); busy != nil {
		return presence{unknown: busy}, nil
	}
	if there.unknown == nil {
		there.unknown = e.inPoolAway(ref)
	}
	return there, nil
}

// find returns what locate finds. ErrNotFound means that no pool contains it, not even one that
// is away.
func (e *Engine) find(ref meta.Ref) (located, error) {
	there, err := e.locate(ref)
	switch {
	case err != nil:
		return located{}, err
	case there.found != nil:
		return *there.found, nil
	case there.unknown != nil:
		return located{}, there.unknown
	}
	return located{}, e.notFound(ref)
}

// absence returns the error for a volume or snapshot that has no subvolume yet.
func (e *Engine) absence(ref meta.Ref) error {
	if err := e.inPoolAway(ref); err != nil {
		return err
	}
	return e.notFound(ref)
}

// notFound returns ErrNotFound, or ErrForgotten if the index may have forgotten it.
func (e *Engine) notFound(ref meta.Ref) error {
	if err := e.forgotten(ref); err != nil {
		return err
	}
	return fmt.Errorf("%s: %w on this node", ref, ErrNotFound)
}

// mayBeIn reports whether a volume that is to be made in p may already be in a pool that did not
// answer, or is away.
func (e *Engine) mayBeIn(there presence, ref meta.Ref, p *servedPool) bool {
	known, err := e.lookup(ref)
	if err != nil || slices.Contains(there.unasked, p.PoolID()) {
		return true
	}
	return slices.ContainsFunc(known, func(k meta.Entry) bool {
		return slices.Contains(there.unasked, k.PoolID) || !e.inUse(k.PoolID)
	})
}

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

// steady returns ErrBusy if pools have come or gone since pools was read: a new one may contain
// ref.
func (e *Engine) steady(pools []*servedPool, ref meta.Ref) error {
	if slices.Equal(pools, e.allPools()) {
		return nil
	}
	return fmt.Errorf("%s: %w: the pools have just changed", ref, ErrBusy)
}

// Away returns the names of the pools that were once in use and are not now, by ID, without those
// that are forgotten.
func (e *Engine) Away() (map[string]string, error) {
	known, err := e.host.Known()
	maps.DeleteFunc(known, func(id, _ string) bool { return e.inUse(id) })
	return known, err
}
