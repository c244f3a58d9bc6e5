package snapshot

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
	"github.com/btrfs-csi/btrfs-csi/pkg/pool"
)

// Remove removes a volume or snapshot; its sources and copies stay. The removal is durable when
// Remove returns. An absent one is no error. A foreign or unreadable one is not touched.
func (e *Engine) Remove(ctx context.Context, ref meta.Ref) error {
	release, err := e.locks.acquire(ref, meta.Ref{})
	if err != nil {
		return err
	}
	defer release()
	defer e.pin()()

	pools := e.allPools()
	earlier := e.finishRemovals(ctx, ref)
	if earlier != nil && !errors.Is(earlier, pool.ErrAway) {
		return earlier
	}
	there, err := e.locate(ref)
	switch {
	case err != nil:
		return err
	case there.unknown != nil:
		return there.unknown
	case there.found == nil:
		return cmp.Or(e.steady(pools, ref), earlier, e.forgotten(ref))
	}
	l := there.found
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := l.begin(); err != nil {
		return fmt.Errorf("%s: %w", ref, err)
	}
	if err := l.remove(ctx); err != nil {
		return unremoved(ref, err)
	}
	e.indexRemove(ctx, l.pool, ref)
	return nil
}

// unremoved returns the error of a removal. It is final if an obstacle was found before anything
// was destroyed.
func unremoved(ref meta.Ref, err error) error {
	err = fmt.Errorf("%s: %w", ref, err)
	if errors.Is(err, pool.ErrForeign) || errors.Is(err, pool.ErrInUse) || errors.Is(err, errUntouched) {
		return err
	}
	return unfinished(err)
}

// errUntouched marks a removal that a read-only filesystem stopped before it changed anything.
var errUntouched = errors.New("nothing was removed")

// remove renames the slot to AreaRemoving, the point of no return, and erases it there.
func (l *located) remove(ctx context.Context) error {
	l.ticket = l.pool.Commits.Begin()
	defer l.ticket.Done()
	if err := l.unobstructed(); err != nil {
		return err
	}
	at, to := l.slot, l.slot.Removing()
	err := l.fs.Move(at, to)
	if errors.Is(err, unix.ENOSPC) {
		return l.removeInPlace()
	}
	if errors.Is(err, unix.EROFS) {
		return fmt.Errorf("%w: %w", errUntouched, err)
	}
	if err != nil {
		return err
	}
	l.slot = to
	err = l.take(func() error {
		if o, found, _ := l.findOutside(); found {
			klog.FromContext(ctx).Info("What is deleted was lost. Its data is outside of the pool, and stays", "of", l.record.Ref(), "path", o.Path)
		}
		return l.sync()
	})
	if errors.Is(err, pool.ErrInUse) {
		return l.putBack(at, err)
	}
	return err
}

// putBack renames the slot back to its area when the kernel refuses to destroy the subvolume, so
// that the volume stays in use.
func (l *located) putBack(at pool.Slot, inUse error) error {
	err := l.fs.Move(l.slot, at)
	if err == nil {
		l.slot = at
		err = l.sync()
	}
	if err != nil {
		return unfinished(errors.Join(inUse, err))
	}
	return inUse
}

// unobstructed fails if the slot contains something foreign, so that it could not be removed
// after its subvolume was destroyed.
func (l *located) unobstructed() error {
	names, err := l.fs.Beside(l.slot)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil || len(names) == 0 {
		return err
	}
	return fmt.Errorf("%s in pool %q: %w: %s", l.slot, l.pool.Name, pool.ErrForeign, obstacle(names))
}

// obstacle describes what blocks a removal.
func obstacle(names []string) string {
	return fmt.Sprintf("its directory contains %s beside the data, which stops its deletion: move that away", quoted(names))
}

// quoted lists names for a message, at most ten.
func quoted(names []string) string {
	const most = 10
	if n := len(names); n > most {
		return fmt.Sprintf("%q and %d more", names[:most], n-most)
	}
	return fmt.Sprintf("%q", names)
}

// removeInPlace erases a slot in its area. With metadata full, the kernel has a reserve for
// operations that free space, but none for a rename. After a crash the slot may look lost; the
// retry removes it.
func (l *located) removeInPlace() error {
	if err := l.erase(func() error { return nil }); err != nil {
		return err
	}
	return l.pool.syncErased(true)
}

// erased records whether slots were erased in their areas, and may not be gone durably.
type erased struct {
	turn     chan struct{} // full during syncErased; other callers wait
	unsynced bool          // protected by turn
}

// syncErased makes the removal of slots durable that were erased in their areas since the last
// call. With now it always syncs.
func (p *servedPool) syncErased(now bool) error {
	silent, _ := p.Silence()
	select {
	case p.erased.turn <- struct{}{}:
		defer func() { <-p.erased.turn }()
	case <-silent:
		return p.SilentError("Sync")
	}
	if !now && !p.erased.unsynced {
		return nil
	}
	var err error
	for _, area := range pool.Areas {
		err = errors.Join(err, p.Sync(pool.Slot{Area: area}))
	}
	p.erased.unsynced = err != nil
	return err
}

// finishRemove erases a slot in AreaRemoving. If the slot has no subvolume, finishRemove makes
// its rename durable first.
func (l *located) finishRemove() error { return l.erase(l.sync) }

// finishRemovals completes an earlier removal of ref that was interrupted, so that "it is gone"
// is a true answer.
func (e *Engine) finishRemovals(ctx context.Context, ref meta.Ref) error {
	if !meta.ValidID(ref.ID) {
		return nil
	}
	var away error
	for _, p := range e.allPools() {
		if err := p.syncErased(false); err != nil { // concerns only what may have been erased there
			away = errors.Join(away, unfinished(fmt.Errorf("%s: %w: %w", ref, pool.ErrAway, err)))
			continue
		}
		for _, kind := range ref.Class.Kinds() {
			slot := pool.SlotOf(kind, ref.ID).Removing()
			s, err := p.look(slot)
			switch {
			case errors.Is(err, fs.ErrNotExist):
				continue
			case err != nil:
				away = errors.Join(away, unfinished(fmt.Errorf("%s: %w", ref, err)))
				continue
			case s.err == nil && s.state == slotForeign:
				return fmt.Errorf("%s: %s in pool %q: %w: move it away", ref, slot, p.Name, pool.ErrForeign)
			}
			if err := s.begin(); err != nil {
				away = errors.Join(away, unfinished(fmt.Errorf("%s: %w", ref, err)))
				continue
			}
			if err := s.finishRemove(); err != nil {
				return unremoved(ref, err)
			}
			e.indexRemove(ctx, p, ref)
		}
	}
	return away
}
