package slot

import (
	"errors"
	"fmt"
	"io/fs"

	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
)

// Recover is Entry for an operation, which it begins. It completes a create that a crash left
// half done, or undoes it and returns fs.ErrNotExist. The caller has the lock of the ID.
func (l *Slot) Recover() (meta.Entry, error) {
	if err := l.session.Begin(); err != nil {
		return meta.Entry{}, fmt.Errorf("%s: %w", l.Record.Ref(), err)
	}
	if l.Record.State == meta.Creating {
		if err := l.resume(); err != nil {
			return meta.Entry{}, err
		}
	}
	return l.Entry()
}

// resume completes a create that a crash interrupted, or undoes it and returns fs.ErrNotExist.
func (l *Slot) resume() error {
	if err := l.thawSource(); err != nil {
		return unfinished(err)
	}
	err := l.infoErr
	if err == nil {
		err = l.verifyComplete()
	} else if !errors.Is(err, fs.ErrNotExist) {
		err = l.session.Explain(err)
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if err = l.session.Rmdir(l.At); err == nil {
			return fs.ErrNotExist
		}
	case errors.Is(err, ErrNested), errors.Is(err, errPartial):
		if err = l.erase(func() error { return nil }); err == nil {
			return fs.ErrNotExist
		}
	case err == nil:
		err = l.complete(true)
	}
	return unfinished(err)
}

// EnsureDurable corrects the limit and the size of the disk file, and commits before a repeated
// request is answered. The process of the first request may have died just before its commit, or
// its undo failed after it lifted the limit.
func (l *Slot) EnsureDurable() error {
	if have, limited := l.session.limitOf(l.info.ID); limited && l.Record.Kind == meta.Active && l.limitWrong(have) {
		if err := l.setLimit(); err != nil {
			return unfinished(fmt.Errorf("%s: %w", l.Record.Ref(), err))
		}
	}
	err := l.growDisk()
	if err == nil {
		err = l.session.Commit()
	}
	if err != nil {
		return unfinished(fmt.Errorf("%s: %w", l.Record.Ref(), err))
	}
	return nil
}

// growDisk makes the disk file of a volume as large as its record says. A power cut may take that
// away again, and each look at the slot finds it.
func (l *Slot) growDisk() error {
	if !l.hasDisk() {
		return nil
	}
	return l.session.GrowDisk(l.At, l.Record.Size)
}

// Resize sets the size of a volume, durably, after Recover.
func (l *Slot) Resize(size int64) (meta.Entry, error) {
	l.Record.Size = size
	err := l.complete(false)
	if err == nil {
		err = l.session.Commit()
	}
	if err == nil {
		err = l.growDisk() // its size follows from the record
	}
	if err != nil {
		return meta.Entry{}, unfinished(fmt.Errorf("%s: %w", l.Record.Ref(), err))
	}
	return l.entry(), nil
}
