package snapshot

import (
	"errors"
	"fmt"
	"slices"

	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
	"github.com/btrfs-csi/btrfs-csi/pkg/pool"
	"github.com/btrfs-csi/btrfs-csi/pkg/slot"
)

// presence is the result of a look-up of a volume or snapshot: found, absent, or unknown, because
// a pool that may contain it cannot be asked.
type presence struct {
	found   *slot.Slot // nil: absent or unknown
	unknown error      // nil: found or absent
	// unasked are the IDs of the pools in use that did not answer. If there are any, unknown is
	// their error: each may contain it, but nothing says that one does.
	unasked []string
}

// lookedUp is the result of looking up an ID in one pool.
type lookedUp struct {
	found []*slot.Slot
	err   error
}

// locate looks a volume or snapshot up in the ledgers of all pools, and in the index for pools
// that are away. It ignores what the index has forgotten; see forgotten. It fails for a slot that
// is foreign or unreadable.
func (e *Engine) locate(visits visits, ref meta.Ref) (there presence, err error) {
	if !meta.ValidID(ref.ID) {
		return there, nil
	}
	var found []*slot.Slot
	for i, looked := range each(visits, func(in visit) (looked lookedUp) {
		if looked.err = in.err; looked.err == nil {
			looked.found, looked.err = in.session.LookUp(pool.SlotsOf(ref)...)
		}
		return looked
	}) {
		if errors.Is(looked.err, pool.ErrAway) { // a sick disk must stop only what may be on it
			there.unasked = append(there.unasked, visits[i].pool.ID)
			there.unknown = errors.Join(there.unknown, fmt.Errorf("%s: %w", ref, looked.err))
		} else if looked.err != nil {
			return there, fmt.Errorf("%s: %w", ref, looked.err)
		}
		found = append(found, looked.found...)
	}
	switch {
	case len(found) > 1:
		return there, fmt.Errorf("%s: in pools %q and %q: %w: remove one of them by hand", ref, found[0].Session().Name, found[1].Session().Name, ErrAmbiguous)
	case len(found) == 1:
		return presence{found: found[0]}, nil
	}
	if busy := e.steady(visits, ref); busy != nil {
		return presence{unknown: busy}, nil
	}
	if there.unknown == nil {
		there.unknown = e.inPoolAway(ref)
	}
	return there, nil
}

// find returns what locate finds. ErrNotFound means that no pool contains it, not even one that
// is away.
func (e *Engine) find(visits visits, ref meta.Ref) (*slot.Slot, error) {
	there, err := e.locate(visits, ref)
	switch {
	case err != nil:
		return nil, err
	case there.found != nil:
		return there.found, nil
	case there.unknown != nil:
		return nil, there.unknown
	}
	return nil, e.notFound(ref)
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

// mayBeIn reports whether a volume that is to be made in a pool may already be in one that did
// not answer, or is away.
func (e *Engine) mayBeIn(there presence, ref meta.Ref, poolID string) bool {
	known, err := e.lookup(ref)
	if err != nil || slices.Contains(there.unasked, poolID) {
		return true
	}
	return slices.ContainsFunc(known, func(k meta.Entry) bool {
		return slices.Contains(there.unasked, k.PoolID) || !e.inUse(k.PoolID)
	})
}
