package snapshot

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"

	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
	"github.com/btrfs-csi/btrfs-csi/pkg/meta/index"
	"github.com/btrfs-csi/btrfs-csi/pkg/pool"
)

// presence says whether a volume or snapshot is in a pool of this node: found, absent, or
// unknown, since a pool that may contain it cannot be asked.
type presence struct {
	found   *located // nil: it is absent or unknown
	unknown error    // nil: it is found or absent
	// unasked are the IDs of the pools in use that did not answer. Where there are any, unknown
	// is about them: it may be in each, and nothing says that it is.
	unasked []string
}

// locate looks a volume or snapshot up in the ledgers of all pools, and in the index for the
// pools that are away. Of what the index has forgotten it knows nothing: see forgotten. It
// fails for what is there and is no volume or snapshot of ours.
func (e *Engine) locate(ref meta.Ref) (there presence, err error) {
	if !meta.ValidID(ref.ID) {
		return there, nil
	}
	var found []located
	pools := e.allPools()
	for i, looked := range each(pools, func(p *servedPool) lookedUp { return p.lookUp(ref) }) {
		if errors.Is(looked.err, pool.ErrAway) { // a sick disk stops only what may be on it
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

// find returns what locate finds. ErrNotFound says that it is gone, or never was here: no pool
// that is away may contain it.
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

// absence is the error for what was found to have no subvolume yet.
func (e *Engine) absence(ref meta.Ref) error {
	if err := e.inPoolAway(ref); err != nil {
		return err
	}
	return e.notFound(ref)
}

// notFound is ErrNotFound where the index has forgotten nothing.
func (e *Engine) notFound(ref meta.Ref) error {
	if err := e.forgotten(ref); err != nil {
		return err
	}
	return fmt.Errorf("%s: %w on this node", ref, ErrNotFound)
}

// mayBeIn reports whether what is to be made in p may be in a pool that did not answer.
func (e *Engine) mayBeIn(there presence, ref meta.Ref, p *servedPool) bool {
	known, err := e.lookup(ref)
	if err != nil || slices.Contains(there.unasked, p.PoolID()) {
		return true
	}
	return slices.ContainsFunc(known, func(k meta.Entry) bool {
		return slices.Contains(there.unasked, k.PoolID) || !e.inUse(k.PoolID)
	})
}

// lookedUp is what one pool holds of an ID.
type lookedUp struct {
	found []located
	err   error
}

func (p *servedPool) lookUp(ref meta.Ref) (looked lookedUp) {
	for _, kind := range ref.Class.Kinds() {
		l, err := p.read(pool.SlotOf(kind, ref.ID))
		switch {
		case err == nil:
			looked.found = append(looked.found, l)
		case !errors.Is(err, fs.ErrNotExist):
			looked.err = err
			return looked
		}
	}
	return looked
}

// inPoolAway fails for what a pool that is away contained when it was last seen.
func (e *Engine) inPoolAway(ref meta.Ref) error {
	known, err := e.lookup(ref)
	if err != nil {
		return nil // forgotten takes every pool that is away for one that may contain it
	}
	for _, k := range known {
		if !e.inUse(k.PoolID) {
			return e.wasIn(ref, k.PoolID, k.Pool)
		}
	}
	remembered, _ := e.remembered() // likewise
	for id, state := range remembered {
		if !e.inUse(id) && slices.Contains(state.Unlisted, ref) {
			return e.wasIn(ref, id, state.Name)
		}
	}
	return nil
}

// wasIn is the pool.ErrAway for what was in a pool.
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

// forgotten fails when what is in no pool here may be in one that is away, and that
// the index does not remember, since it was made anew or fails.
func (e *Engine) forgotten(ref meta.Ref) error {
	if !meta.ValidID(ref.ID) { // no pool has one
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

// Away returns the names of the pools that were in use once and are not now, by ID, but
// for those that are forgotten.
func (e *Engine) Away() (map[string]string, error) {
	known, err := e.host.Known()
	maps.DeleteFunc(known, func(id, _ string) bool { return e.inUse(id) })
	return known, err
}

func (e *Engine) inUse(poolID string) bool {
	return slices.ContainsFunc(e.allPools(), func(p *servedPool) bool { return p.PoolID() == poolID })
}

// lookup returns what the index knows of ref, and notices when that fails.
func (e *Engine) lookup(ref meta.Ref) ([]meta.Entry, error) {
	known, err := e.index.Lookup(ref)
	if err != nil {
		e.indexBehind.Store(true)
	}
	return known, err
}

// remembered returns the pools that the index knows, and notices when that fails.
func (e *Engine) remembered() (map[string]index.PoolState, error) {
	pools, err := e.index.Pools()
	if err != nil {
		e.indexBehind.Store(true)
	}
	return pools, err
}
