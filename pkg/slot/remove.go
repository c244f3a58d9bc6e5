package slot

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
	"github.com/btrfs-csi/btrfs-csi/pkg/pool"
)

// Remove removes a volume or snapshot, durably.
func (l *Slot) Remove(ctx context.Context) error {
	ref := l.Record.Ref()
	if err := l.session.Begin(); err != nil {
		return fmt.Errorf("%s: %w", ref, err)
	}
	return unremoved(ref, l.remove(ctx))
}

// errUntouched marks a removal that a read-only filesystem stopped before it changed anything.
var errUntouched = errors.New("nothing was removed")

// unremoved returns the error of a removal. It is final if an obstacle was found before anything
// was destroyed.
func unremoved(ref meta.Ref, err error) error {
	if err == nil {
		return nil
	}
	err = fmt.Errorf("%s: %w", ref, err)
	if errors.Is(err, pool.ErrForeign) || errors.Is(err, pool.ErrInUse) || errors.Is(err, errUntouched) {
		return err
	}
	return unfinished(err)
}

// remove renames the slot to AreaRemoving, the point of no return, and erases it there.
func (l *Slot) remove(ctx context.Context) error {
	l.ticket = l.session.Commits.Begin()
	defer l.ticket.Done()
	if err := l.unobstructed(); err != nil {
		return err
	}
	at, to := l.At, l.At.Removing()
	err := l.session.Move(at, to)
	if errors.Is(err, unix.ENOSPC) {
		return l.removeInPlace()
	}
	if errors.Is(err, unix.EROFS) {
		return fmt.Errorf("%w: %w", errUntouched, err)
	}
	if err != nil {
		return err
	}
	l.At = to
	err = l.take(func() error {
		if o, found, _ := l.findOutside(); found {
			klog.FromContext(ctx).Info("What is deleted was lost. Its data is outside of the pool, and stays", "of", l.Record.Ref(), "path", o.Path)
		}
		return l.session.Commit()
	})
	if errors.Is(err, pool.ErrInUse) {
		return l.putBack(at, err)
	}
	return err
}

// putBack renames the slot back to its area when the kernel refuses to destroy the subvolume, so
// that the volume stays in use.
func (l *Slot) putBack(at pool.Slot, inUse error) error {
	err := l.session.Move(l.At, at)
	if err == nil {
		l.At = at
		err = l.session.Commit()
	}
	if err != nil {
		return unfinished(errors.Join(inUse, err))
	}
	return inUse
}

// removeInPlace erases a slot in its area. With metadata full, the kernel has a reserve for
// operations that free space, but none for a rename. After a crash the slot may look lost; the
// retry removes it.
func (l *Slot) removeInPlace() error {
	if err := l.erase(func() error { return nil }); err != nil {
		return err
	}
	return l.session.commitErased(true)
}

// FinishRemovals completes an earlier removal of a volume or snapshot that was interrupted, so
// that "it is gone" is a true answer. It reports whether there was one.
func (s *Session) FinishRemovals(ref meta.Ref) (finished bool, err error) {
	if err := s.commitErased(false); err != nil {
		return false, unfinished(fmt.Errorf("%s: %w: %w", ref, pool.ErrAway, err))
	}
	at := pool.SlotsOf(ref)
	for i := range at {
		at[i] = at[i].Removing()
	}
	found, err := s.Look(at...)
	if err != nil {
		return false, unfinished(fmt.Errorf("%s: %w", ref, err))
	}
	for _, l := range found {
		if l.err == nil && l.state == foreign {
			return finished, fmt.Errorf("%s: %s in pool %q: %w: move it away", ref, l.At, s.Name, pool.ErrForeign)
		}
		if err := l.session.Begin(); err != nil {
			return finished, unfinished(fmt.Errorf("%s: %w", ref, err))
		}
		if err := l.finishRemove(); err != nil {
			return finished, unremoved(ref, err)
		}
		finished = true
	}
	return finished, nil
}

// finishRemove erases a slot in AreaRemoving. If the slot has no subvolume, finishRemove makes
// its rename durable first.
func (l *Slot) finishRemove() error { return l.erase(l.sync) }
