package snapshot

import (
	"cmp"
	"context"
	"errors"
	"fmt"

	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
	"github.com/btrfs-csi/btrfs-csi/pkg/pool"
)

// Remove removes a volume or snapshot; its sources and copies stay. The removal is durable when
// Remove returns. An absent one is no error. A foreign or unreadable one is not touched.
func (e *Engine) Remove(ctx context.Context, ref meta.Ref) error {
	release, err := e.lock(ctx, ref, meta.Ref{})
	if err != nil {
		return err
	}
	defer release()
	visits := e.visit()
	defer visits.end()

	earlier := e.finishRemovals(ctx, visits, ref)
	if earlier != nil && !errors.Is(earlier, pool.ErrAway) {
		return earlier
	}
	there, err := e.locate(visits, ref)
	switch {
	case err != nil:
		return err
	case there.unknown != nil:
		return there.unknown
	case there.found == nil:
		return cmp.Or(e.steady(visits, ref), earlier, e.forgotten(ref))
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := there.found.Remove(ctx); err != nil {
		return err
	}
	e.indexRemove(ctx, there.found.Session().ID, ref)
	return nil
}

// finishRemovals completes an earlier removal of ref that was interrupted, so that "it is gone"
// is a true answer.
func (e *Engine) finishRemovals(ctx context.Context, visits visits, ref meta.Ref) error {
	if !meta.ValidID(ref.ID) {
		return nil
	}
	var away error
	for _, in := range visits {
		if in.err != nil {
			away = errors.Join(away, fmt.Errorf("%s: %w: %w", ref, ErrUnfinished, in.err))
			continue
		}
		finished, err := in.session.FinishRemovals(ref)
		if finished {
			e.indexRemove(ctx, in.pool.ID, ref)
		}
		if err != nil && !errors.Is(err, pool.ErrAway) {
			return err
		}
		away = errors.Join(away, err)
	}
	return away
}
