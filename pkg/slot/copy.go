package slot

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"sync"

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs"
	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
	"github.com/btrfs-csi/btrfs-csi/pkg/pool"
)

// ErrNested means that the volume contains nested subvolumes, which a snapshot would show as empty
// directories.
var ErrNested = errors.New("nested subvolumes")

// Copyable fails for a source that is gone, or that contains nested subvolumes which a copy with
// these parameters would lack.
func (l *Slot) Copyable(parameters meta.Parameters) error {
	if _, err := l.Entry(); err != nil {
		return err
	}
	return l.refuseNested(parameters)
}

// copy makes the subvolume as a snapshot of from.
func (l *Slot) copy(from *Slot) error {
	err := from.frozen(func() (err error) {
		l.info, err = l.session.Snapshot(from.At, l.At, l.Record.Kind.ReadOnly())
		return err
	})
	if err != nil {
		return err
	}
	// Check again: a pod may have nested a subvolume since the first check, and the snapshot
	// would lack it silently.
	return from.refuseNested(l.Record.Parameters)
}

// frozen runs a step while the filesystem in the disk file of a volume is frozen, if it is mounted.
// Copies of one volume take turns. It fails if the filesystem was thawed meanwhile. The record of
// the copy says creating until the thaw: by it a start finds what a killed driver has left frozen.
func (l *Slot) frozen(do func() error) error {
	if content := l.Record.Content; l.Record.Kind != meta.Active || content != meta.Ext4 && content != meta.XFS {
		return do()
	}
	turn, _ := l.session.pool.freezes.LoadOrStore(l.info.ID, &sync.Mutex{})
	turn.(*sync.Mutex).Lock()
	defer turn.(*sync.Mutex).Unlock()
	frozen, err := l.session.Freeze(l.At)
	if err != nil {
		return err
	}
	if !frozen {
		return do()
	}
	err = do()
	if thawed := l.session.Thaw(l.At); thawed != nil {
		err = errors.Join(err, unfinished(fmt.Errorf("%s: the snapshot took too long, and may not be consistent: %w", l.Record.Ref(), thawed)))
	}
	return err
}

// thawSource thaws what a driver has left frozen that was killed while it made this copy.
func (l *Slot) thawSource() error {
	if source := l.Record.Source; source.Class == meta.Volumes && l.Record.Content.IsDisk() {
		err := l.session.Thaw(pool.SlotOf(meta.Active, source.ID))
		if !errors.Is(err, pool.ErrThawed) && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// refuseNested returns ErrNested with the paths of the nested subvolumes, unless the class of the
// source or of the copy allows that they are left out.
func (l *Slot) refuseNested(parameters meta.Parameters) error {
	if parameters.SkipNested || l.Record.Parameters.SkipNested {
		return nil
	}
	return l.refuseNestedUpTo(math.MaxUint64)
}

// refuseNestedUpTo checks only subvolumes that were made up to a transaction.
func (l *Slot) refuseNestedUpTo(transid uint64) error {
	nested, err := l.session.NestedUpTo(l.At, transid)
	if err != nil || len(nested) == 0 {
		return err
	}
	return fmt.Errorf("%s contains %w, which would be empty in a copy: %s: delete them, or set nestedSubvolumes to skip in the class",
		l.Record.Ref(), ErrNested, quoted(nested))
}

// verifyComplete does the checks after a snapshot again, which a crash may have prevented. A member
// of a group is complete only together with all others. So no order in which members are repaired
// leaves some of them.
func (l *Slot) verifyComplete() error {
	members, err := l.members()
	if err != nil {
		return err
	}
	for _, m := range members {
		if m.Record.State == meta.Ready {
			continue
		}
		if err := m.verifyCopy(); err != nil {
			return err
		}
	}
	return nil
}

// verifyCopy does the check of copy after a snapshot again.
// It returns ErrNested for a copy that lacks subvolumes that were nested in its source up to its
// own transaction. An acknowledged copy passed this check before, so it never fails now, not even
// if a power cut undid its state ready.
//
// If the source is gone, nobody can know. Such a copy is kept, neither erased nor acknowledged. A
// copy of a snapshot needs no check, because nothing can be nested in a snapshot.
func (l *Slot) verifyCopy() error {
	source := l.Record.Source
	if source.Class != meta.Volumes || l.Record.Parameters.SkipNested {
		return nil
	}
	for _, at := range pool.SlotsOf(source) {
		found, err := l.session.LookUp(at)
		for _, from := range found {
			if from.infoErr != nil && !errors.Is(from.infoErr, fs.ErrNotExist) {
				err = l.session.Explain(from.infoErr)
			} else if from.infoErr == nil && from.info.UUID == l.info.ParentUUID {
				return from.refuseNestedIn(l.info)
			}
		}
		if err != nil {
			return fmt.Errorf("source %s: %w", source, err)
		}
	}
	return fmt.Errorf("%s: its source %s is gone, and with it what could show whether this copy, which was cut short, lacks subvolumes that were in it: "+
		"it is kept; copy what is wanted out of %s, and delete it", l.Record.Ref(), source, l.Path())
}

// refuseNestedIn is refuseNested for a copy that exists.
func (l *Slot) refuseNestedIn(copied btrfs.SubvolumeInfo) error {
	if l.Record.Parameters.SkipNested {
		return nil
	}
	return l.refuseNestedUpTo(copied.CreatedTransid)
}

// Nested returns the paths of the subvolumes nested in a volume, one level deep.
func (l *Slot) Nested() ([]string, error) {
	paths, err := l.session.Nested(l.At)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", l.Record.Ref(), err)
	}
	return paths, nil
}
