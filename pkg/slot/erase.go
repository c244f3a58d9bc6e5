package slot

import (
	"errors"
	"fmt"
	"io/fs"

	"golang.org/x/sys/unix"

	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
	"github.com/btrfs-csi/btrfs-csi/pkg/pool"
)

// undo removes what Make did, durably, so that cause is final. If that fails it returns
// ErrUnfinished.
func (l *Slot) undo(cause error) error {
	err := l.markCreating()
	if err == nil {
		err = l.erase(func() error { return nil })
	}
	if err != nil {
		return unfinished(fmt.Errorf("%w; and it could not be undone: %w", cause, err))
	}
	return cause
}

// markCreating sets the state back to creating, so that a slot without its subvolume does not
// look lost during an undo.
func (l *Slot) markCreating() error {
	if l.Record.State == meta.Creating {
		return nil
	}
	l.Record.State = meta.Creating
	return l.write()
}

// erase removes the slot with its subvolume, durably. If there is no subvolume it calls absent
// instead. An absent slot is no error.
func (l *Slot) erase(absent func() error) error {
	if err := l.unobstructed(); err != nil {
		return err
	}
	return l.take(absent)
}

// unobstructed fails if the slot contains something foreign, so that it could not be removed
// after its subvolume was destroyed.
func (l *Slot) unobstructed() error {
	if len(l.beside) == 0 {
		return nil
	}
	return fmt.Errorf("%s in pool %q: %w: %s", l.At, l.session.Name, pool.ErrForeign, l.obstacle())
}

// obstacle describes what blocks a removal.
func (l *Slot) obstacle() string {
	return fmt.Sprintf("its directory contains %s beside the data, which stops its deletion: move that away", quoted(l.beside))
}

// take is erase for a slot that contains nothing foreign.
func (l *Slot) take(absent func() error) error {
	info, err := l.session.Info(l.At)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		err = absent()
	case err == nil:
		l.info = info
		err = l.eraseSubvolume()
	}
	if err != nil {
		return err
	}
	return l.removeSlot()
}

func (l *Slot) eraseSubvolume() error {
	if err := l.destroy(); err != nil {
		return err
	}
	return l.sync()
}

// destroy destroys the subvolume. The next commit makes that durable.
func (l *Slot) destroy() error {
	// With metadata full the limit cannot be lifted. A subvolume without nested ones can still be
	// destroyed.
	if err := l.session.LiftLimit(l.info.ID); err != nil && !errors.Is(err, unix.ENOSPC) {
		return err
	}
	err := l.session.Destroy(l.At)
	if errors.Is(err, pool.ErrInUse) && l.Record.Kind == meta.Active {
		err = errors.Join(err, l.setLimit())
	}
	if err != nil {
		return err
	}
	l.session.pool.stale.add(l.info.ID)
	l.session.pool.freezes.Delete(l.info.ID)
	return nil
}

// removeSlot removes an empty slot. It fails for one that contains foreign files.
func (l *Slot) removeSlot() error {
	err := l.session.Rmdir(l.At)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
