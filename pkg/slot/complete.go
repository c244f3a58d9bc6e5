package slot

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
)

// ErrInvalid means that the request contradicts itself, or cannot be recorded.
var ErrInvalid = errors.New("invalid request")

// complete runs the steps that follow the making of the subvolume, and marks the record ready.
// Every step may be repeated. commit says that the subvolume may not be durable yet; the ioctl
// has already committed a snapshot.
//
// The properties and the disk file lie in the tree of the subvolume, the record in that of the
// pool. An fsync writes only one of them to its log, and anyone may commit between two steps. So
// the former are durable before the record says ready, and ready is durable before a request with
// them is answered. After a power cut, a record that says ready has its properties and its disk
// file. A volume in creating was never returned to a caller, so no pod has changed what is set
// and made again.
func (l *Slot) complete(commit bool) error {
	configure := l.Record.State != meta.Ready && (l.hasProperties() || l.hasDisk())
	if configure {
		if err := l.configure(); err != nil {
			return err
		}
	}
	if l.Record.Kind == meta.Active {
		if err := l.setLimit(); err != nil {
			return err
		}
	}
	if configure {
		if err := l.syncProperties(commit); err != nil {
			return err
		}
	}
	if err := l.markReady(); err != nil {
		return err
	}
	switch {
	case configure && l.hasDisk():
		// The next start makes the disk file of a volume in creating anew. So ready must not be lost
		// with a log after a pod has written.
		return l.session.Commit()
	case configure:
		// This writes the log of the record only; there is no commit to share. If the log is lost,
		// the next start completes the volume.
		return l.session.Sync(l.At)
	case commit:
		return l.sync()
	}
	return nil
}

// hasProperties reports whether Apply has something to set.
func (l *Slot) hasProperties() bool {
	p := l.Record.Parameters
	return l.Record.Kind == meta.Active && (p.NoDataCow || p.Compression != "")
}

// hasDisk reports whether it is a volume with a disk file. The disk file of a snapshot or view is
// part of the copy.
func (l *Slot) hasDisk() bool { return l.Record.Kind == meta.Active && l.Record.Content.IsDisk() }

// configure sets the properties, and makes the disk file, which inherits them. The disk file of a
// copy comes with it, and may have to grow.
func (l *Slot) configure() error {
	if l.hasProperties() {
		if err := l.applyUnlimited(); err != nil {
			return err
		}
	}
	switch {
	case !l.hasDisk():
		return nil
	case l.Record.Source.IsZero():
		return l.session.MakeDisk(l.At, l.Record.Content, l.Record.Size)
	}
	return l.session.GrowDisk(l.At, l.Record.Size)
}

// applyUnlimited sets the properties. Under full quota a copy has its source's limit until it
// gets its own, and at that limit no property can be set. It may be lifted, because nobody uses
// the copy yet.
func (l *Slot) applyUnlimited() error {
	err := l.session.Apply(l.At, l.Record.Parameters)
	if !errors.Is(err, unix.EDQUOT) {
		return err
	}
	if err := l.session.LiftLimit(l.info.ID); err != nil {
		return err
	}
	return l.session.Apply(l.At, l.Record.Parameters)
}

// syncProperties makes the properties and the disk file durable: by a shared commit if the subvolume was made in
// this transaction, else by the log of its tree.
func (l *Slot) syncProperties(commit bool) error {
	sync := func() error { return l.session.SyncRoot(l.At) }
	if commit {
		return l.session.Commits.Share(l.ticket, sync)
	}
	return sync()
}

// markReady sets the state of the record to ready.
func (l *Slot) markReady() error {
	before := l.Record.State
	l.Record.State = meta.Ready
	err := l.write()
	if err != nil {
		l.Record.State = before // undo need not write creating, for which there may be no room either
	}
	return err
}

// write stores the record in the ledger.
func (l *Slot) write() error {
	data, err := l.Record.Encode()
	if err != nil {
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	return l.session.SetRecord(l.At, data)
}

// sync makes the slot durable.
func (l *Slot) sync() error {
	return l.session.Commits.Share(l.ticket, func() error { return l.session.Sync(l.At) })
}
