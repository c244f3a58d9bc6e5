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

// Remove removes a volume or snapshot, whatever was made from it or it was made
// from. When it returns, the removal is durable. What is not there is no error;
// what is there but is not ours, or cannot be read, is not touched.
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

// unremoved is the error of a removal. It is final where the removal found an obstacle,
// before it destroyed anything.
func unremoved(ref meta.Ref, err error) error {
	err = fmt.Errorf("%s: %w", ref, err)
	if errors.Is(err, pool.ErrForeign) || errors.Is(err, pool.ErrInUse) || errors.Is(err, errUntouched) {
		return err
	}
	return unfinished(err)
}

// errUntouched is in the error of a removal that a read-only filesystem stopped before it
// changed anything.
var errUntouched = errors.New("nothing was removed")

// remove renames the slot out of its area, the point of no return, and erases
// it there.
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

// putBack returns the slot to its area when the kernel does not let go of the subvolume:
// what cannot be removed now stays in use.
func (l *located) putBack(at pool.Slot, held error) error {
	err := l.fs.Move(l.slot, at)
	if err == nil {
		l.slot = at
		err = l.sync()
	}
	if err != nil {
		return unfinished(errors.Join(held, err))
	}
	return held
}

// unobstructed fails for a slot that could not be taken away when its subvolume is
// destroyed, because of something in it that is not ours.
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

// obstacle names what stands in the way of a removal.
func obstacle(names []string) string {
	return fmt.Sprintf("it holds %s beside the data, which stops its deletion: move that away", quoted(names))
}

// quoted lists names for a message, of many the first ten.
func quoted(names []string) string {
	const most = 10
	if n := len(names); n > most {
		return fmt.Sprintf("%q and %d more", names[:most], n-most)
	}
	return fmt.Sprintf("%q", names)
}

// removeInPlace erases a slot where it is. With metadata full the kernel has a
// reserve for what frees some, and none for a rename. A crash before the end leaves
// the slot as lost, which the retry removes.
func (l *located) removeInPlace() error {
	if err := l.erase(func() error { return nil }); err != nil {
		return err
	}
	return l.pool.syncErased(true)
}

// erased remembers whether slots were erased in their areas that may not be gone durably.
type erased struct {
	turn     chan struct{} // full while they are made so: whoever finds none waits for that
	unsynced bool          // protected by turn
}

// syncErased makes durable that slots are gone from their areas, if some were erased there
// since it last did, or now.
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

// finishRemove erases a slot in AreaRemoving. Where it is without a subvolume its rename
// is made durable before it is gone.
func (l *located) finishRemove() error { return l.erase(l.sync) }

// finishRemovals completes an earlier removal of ref that was cut short, so
// that the answer "it is gone" is true.
func (e *Engine) finishRemovals(ctx context.Context, ref meta.Ref) error {
	if !meta.ValidID(ref.ID) {
		return nil
	}
	var away error
	for _, p := range e.allPools() {
		if err := p.syncErased(false); err != nil { // which stops only what may have been erased there
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

// Resize grows a volume to at least want.Required bytes, online, and returns it
// with its new size. A volume that is large enough already is returned as it
// is; none is ever shrunk. When it returns, the size is durable.
func (e *Engine) Resize(ctx context.Context, volume string, want Range) (meta.Entry, error) {
	ref := meta.Volume(volume)
	release, err := e.locks.acquire(ref, meta.Ref{})
	if err != nil {
		return meta.Entry{}, err
	}
	defer release()
	defer e.pin()()

	l, err := e.find(ref)
	if err != nil {
		return meta.Entry{}, err
	}
	entry, err := l.recovered()
	if errors.Is(err, fs.ErrNotExist) {
		err = e.absence(ref)
	}
	if err != nil {
		return meta.Entry{}, err
	}
	old := l.record.Size
	size, err := want.grow(old)
	if err != nil {
		return meta.Entry{}, fmt.Errorf("%s: %w", ref, err)
	}
	if size == old {
		return entry, l.ensureDurable(entry)
	}
	if err := l.pool.CheckRoom(size - old); err != nil {
		return meta.Entry{}, fmt.Errorf("%s: %w", ref, err)
	}
	if err := ctx.Err(); err != nil {
		return meta.Entry{}, err
	}
	l.record.Size = size
	entry, err = l.complete(false)
	if err == nil {
		err = l.fs.Sync(l.slot) // of the record alone, which the log takes: there is no commit to share
	}
	if err != nil {
		return meta.Entry{}, unfinished(fmt.Errorf("%s: %w", ref, err))
	}
	e.indexPut(ctx, entry)
	return entry, nil
}
