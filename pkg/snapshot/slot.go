package snapshot

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs"
	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
	"github.com/btrfs-csi/btrfs-csi/pkg/pool"
)

// located is a slot and its record, in a pool.
type located struct {
	pool   *servedPool
	fs     pool.Filesystem // of the pool; patient after begin
	slot   pool.Slot
	record meta.Record
	ticket *pool.Ticket // for Commits; nil for none
}

// begin starts an operation in the pool. It fails if the filesystem is frozen, because the
// operation could not end. From then on look-ups are never given up: they may wait for a commit,
// and must not stop the operation between two steps.
func (l *located) begin() error {
	if err := l.pool.Thawed(); err != nil {
		return fmt.Errorf("%s: %w", l.slot, err)
	}
	l.fs = l.pool.Patiently()
	return nil
}

// read returns the record of a slot; fs.ErrNotExist for no slot, or for an empty one that a crash
// left before the record was written.
func (p *servedPool) read(slot pool.Slot) (located, error) {
	l := located{pool: p, fs: p.Filesystem, slot: slot}
	data, err := p.Record(slot)
	switch {
	case err != nil:
		return l, err
	case data == nil:
		_, err := p.Info(slot)
		if errors.Is(err, fs.ErrNotExist) {
			return l, fs.ErrNotExist
		}
		if errors.Is(err, pool.ErrSilent) { // the content of the slot is unknown
			return l, err
		}
		return l, fmt.Errorf("%s in pool %q: %w: move it away", slot, p.Name, pool.ErrForeign)
	}
	err = l.decode(data)
	return l, err
}

// decode reads the record.
func (l *located) decode(data []byte) (err error) {
	if l.record, err = meta.DecodeRecord(data); err != nil {
		return fmt.Errorf("%s in pool %q: %w: %w", l.slot, l.pool.Name, ErrUnreadable, err)
	}
	if of := pool.SlotOf(l.record.Kind, l.record.ID); of != l.slot {
		return fmt.Errorf("%s in pool %q: %w: it is that of %s", l.slot, l.pool.Name, ErrUnreadable, of)
	}
	return nil
}

// recovered is entry for an operation, which it begins. It completes a create that a crash left
// half done, or undoes it and returns fs.ErrNotExist. The caller has the lock of the ID.
func (l *located) recovered() (meta.Entry, error) {
	if err := l.begin(); err != nil {
		return meta.Entry{}, err
	}
	if l.record.State == meta.Creating {
		return l.resume()
	}
	return l.entry()
}

// entry returns the record with the lineage of its subvolume. With ErrLost it returns the record
// alone.
func (l *located) entry() (meta.Entry, error) {
	info, err := l.subvolume()
	if err != nil && !errors.Is(err, ErrLost) {
		return meta.Entry{}, err
	}
	return entryOf(l.pool, l.record, info), err
}

// subvolume is Info, but returns lost where the subvolume is absent.
func (l *located) subvolume() (btrfs.SubvolumeInfo, error) {
	info, err := l.fs.Info(l.slot)
	if errors.Is(err, fs.ErrNotExist) {
		return info, l.lost()
	}
	return info, err
}

func entryOf(p *servedPool, record meta.Record, info btrfs.SubvolumeInfo) meta.Entry {
	return meta.Entry{
		Record: record, Pool: p.Name, PoolID: p.PoolID(),
		Lineage: meta.Lineage{
			SubvolumeID: info.ID, UUID: info.UUID.String(), ParentUUID: info.ParentUUID.String(),
			ReceivedUUID: info.ReceivedUUID.String(), CreatedTransid: info.CreatedTransid,
		},
	}
}

// lookedUp is the result of looking up an ID in one pool.
type lookedUp struct {
	found []located
	err   error
}

func (p *servedPool) lookUp(ref meta.Ref) (looked lookedUp) {
	for _, kind := range ref.Class.Kinds() {
		l, err := p.read(pool.SlotOf(kind, ref.ID))
		switch {
		case err == nil:
			looked.found = append(looked.found, l)
		case !errors.Is(err, fs.ErrNotExist):
			looked.err = err
			return looked
		}
	}
	return looked
}

// slotState is the state of a slot.
type slotState int

const (
	slotReady      slotState = iota // record ready, subvolume
	slotDeclared                    // record creating or none, no subvolume
	slotHalf                        // record creating, subvolume
	slotLost                        // record ready, no subvolume
	slotDamaged                     // record, subvolume that cannot be read
	slotForeign                     // no record, but content
	slotUnreadable                  // record that cannot be read, or is in the wrong slot
	slotRemoving                    // in AreaRemoving
)

// scanned is a slot with its content and its state.
type scanned struct {
	located
	info  btrfs.SubvolumeInfo
	state slotState
	err   error
}

// scan reads every slot of the pool, ordered by path. It omits slots that vanish meanwhile.
func (p *servedPool) scan() ([]scanned, error) {
	var all []scanned
	for _, area := range pool.Areas {
		names, err := p.List(area)
		if err != nil {
			return nil, err
		}
		slices.Sort(names)
		for _, name := range names {
			s, err := p.look(pool.Slot{Area: area, Name: name})
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err != nil {
				return nil, err
			}
			all = append(all, s)
		}
	}
	return all, nil
}

// look reads one slot and determines its state.
func (p *servedPool) look(slot pool.Slot) (scanned, error) {
	s := scanned{located: located{pool: p, fs: p.Filesystem, slot: slot}}
	data, err := p.Record(slot)
	if err != nil {
		return s, err
	}
	info, err := p.Info(slot)
	there := err == nil
	if errors.Is(err, pool.ErrSilent) { // the content of the slot is unknown
		return s, err
	}
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	s.info, s.err = info, pool.Cause(err)
	_, named := slot.Ref()
	switch {
	case !named, data == nil && err != nil:
		s.state = slotForeign
	case slot.Area == pool.AreaRemoving && data != nil:
		s.state = slotRemoving
	case data == nil && there:
		s.state = slotForeign
	case data == nil:
		err = s.classifyBare()
		return s, err
	default:
		s.classify(data, there)
	}
	return s, nil
}

// classifyBare distinguishes a slot without record and subvolume, as a crash leaves it, from one
// with other content.
func (s *scanned) classifyBare() error {
	names, err := s.fs.Beside(s.slot)
	s.state = slotDeclared
	if s.slot.Area == pool.AreaRemoving {
		s.state = slotRemoving
	}
	if len(names) > 0 || errors.Is(err, pool.ErrForeign) {
		s.state, err = slotForeign, nil
	}
	return err
}

// classify determines the state of a slot with a record.
func (s *scanned) classify(record []byte, there bool) {
	err := s.decode(record)
	switch {
	case err != nil:
		s.state, s.err = slotUnreadable, err
	case s.err != nil:
		s.state = slotDamaged
	case s.record.State == meta.Ready && there:
		s.state = slotReady
	case s.record.State == meta.Ready:
		s.state = slotLost
	case there:
		s.state = slotHalf
	default:
		s.state = slotDeclared
	}
}
