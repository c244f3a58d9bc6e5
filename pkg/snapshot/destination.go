package snapshot

import (
	"fmt"

	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
	"github.com/btrfs-csi/btrfs-csi/pkg/slot"
)

// destination picks the pool for a new volume or snapshot, and finds its source. It fails with
// there.unknown if it may already be in a pool that cannot be asked. It also prefers
// there.unknown to other errors, after which the caller would try another pool or node.
func (e *Engine) destination(visits visits, ref meta.Ref, kind meta.Kind, there presence, spec Spec, source meta.Ref) (*slot.Session, *slot.Slot, error) {
	if there.unknown != nil && there.unasked == nil {
		return nil, nil, there.unknown
	}
	to, from, err := e.origin(visits, kind, spec, source)
	if there.unknown != nil && (err != nil || !spec.allows(to.ID) || e.mayBeIn(there, ref, to.ID)) {
		return nil, nil, there.unknown
	}
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", ref, err)
	}
	if !spec.allows(to.ID) {
		return nil, nil, fmt.Errorf("%s: it would be in pool %q (%s): %w, %q: choose another node, or name another pool in the StorageClass",
			ref, to.Name, to.ID, ErrNotAllowed, spec.Allowed)
	}
	return to, from, nil
}

// origin returns the pool to make a volume or snapshot in, and its source there, if any.
func (e *Engine) origin(visits visits, kind meta.Kind, spec Spec, source meta.Ref) (*slot.Session, *slot.Slot, error) {
	if source.IsZero() {
		p, err := e.pool(spec.Pool)
		if err != nil {
			return nil, nil, err
		}
		to, err := visits.of(p)
		return to, nil, err
	}
	from, err := e.find(visits, source)
	if err != nil {
		return nil, nil, fmt.Errorf("source %w", err)
	}
	if err := from.Copyable(spec.Parameters); err != nil {
		return nil, nil, fmt.Errorf("source %w", err)
	}
	if err := checkContent(kind, spec.Content, from); err != nil {
		return nil, nil, fmt.Errorf("source %w", err)
	}
	to := from.Session()
	if spec.Pool != "" && spec.Pool != to.Name {
		return nil, nil, fmt.Errorf("source %s is in pool %q, pool %q is asked for: %w: a copy-on-write child lives beside its source; leave the pool out or name the source's",
			source, to.Name, spec.Pool, ErrInvalid)
	}
	return to, from, nil
}
