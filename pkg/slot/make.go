package slot

import (
	"errors"
	"fmt"
	"io/fs"

	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
	"github.com/btrfs-csi/btrfs-csi/pkg/pool"
)

// Make makes the volume or snapshot of a record, empty or as a copy of from. It declares, acts and
// commits once; see the table in doc.go. After an error it undoes its steps.
func (s *Session) Make(record meta.Record, from *Slot) (meta.Entry, error) {
	l := &Slot{At: pool.SlotOf(record.Kind, record.ID), Record: record, session: s}
	l.Record.State = meta.Creating
	if from == nil {
		l.ticket = s.Commits.Begin()
		defer l.ticket.Done()
	}
	if err := s.Begin(); err != nil {
		return meta.Entry{}, err
	}
	if err := l.makeSlot(); err != nil {
		return meta.Entry{}, err
	}
	if err := l.fill(from); err != nil {
		return meta.Entry{}, l.undo(err)
	}
	return l.entry(), nil
}

// makeSlot makes an empty slot without a record. It replaces one that a crash left.
func (l *Slot) makeSlot() error {
	err := l.session.Mkdir(l.At)
	if !errors.Is(err, fs.ErrExist) {
		return err
	}
	if err := l.session.Rmdir(l.At); errors.Is(err, pool.ErrNotEmpty) {
		return fmt.Errorf("%s in pool %q: %w: move it away: %w", l.At, l.session.Name, pool.ErrForeign, err)
	} else if err != nil {
		return err
	}
	return l.session.Mkdir(l.At)
}

// fill runs the steps of Make after the slot was made.
func (l *Slot) fill(from *Slot) (err error) {
	if err := l.write(); err != nil {
		return err
	}
	if from == nil {
		l.info, err = l.session.Create(l.At)
	} else {
		err = l.copy(from)
	}
	if err != nil {
		return err
	}
	return l.complete(from == nil)
}
