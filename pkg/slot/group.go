package slot

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
	"github.com/btrfs-csi/btrfs-csi/pkg/pool"
)

// maxTries bounds the tries to take the members of a group in one transaction.
const maxTries = 24

// ErrApart means that the snapshots of a group did not share a transaction. None is left.
var ErrApart = errors.New("the snapshots would not be of one instant")

// errPartial means that members of a group are missing, or not of one instant.
var errPartial = errors.New("its group is not whole")

// group are the slots of the members, in order.
type group []*Slot

// MakeGroup makes the snapshots of a group, whose records are those of its members, in order. It
// retries until they show one instant; see the table in doc.go. After an error it undoes its
// steps. tries is how often it took all snapshots.
func (s *Session) MakeGroup(ctx context.Context, records []meta.Record, from []*Slot) (entries []meta.Entry, tries int, err error) {
	if err := s.Begin(); err != nil {
		return nil, 0, err
	}
	g, err := s.declareGroup(records)
	if err == nil {
		tries, err = g.take(ctx, from)
	}
	for i := 0; err == nil && i < len(g); i++ { // see copy
		err = from[i].refuseNested(g[i].Record.Parameters)
	}
	for i := 0; err == nil && i < len(g); i++ {
		err = g[i].markReady()
	}
	if err != nil {
		return nil, tries, g.undo(err)
	}
	for _, l := range g {
		entries = append(entries, l.entry())
	}
	return entries, tries, nil
}

// declareGroup makes the slots with their records.
func (s *Session) declareGroup(records []meta.Record) (g group, err error) {
	for _, record := range records {
		l := &Slot{At: pool.SlotOf(record.Kind, record.ID), Record: record, session: s}
		l.Record.State = meta.Creating
		if err := l.makeSlot(); err != nil {
			return g, err
		}
		g = append(g, l)
		if err := l.write(); err != nil {
			return g, err
		}
	}
	return g, nil
}

// take takes all snapshots until they share a transaction.
func (g group) take(ctx context.Context, from []*Slot) (tries int, err error) {
	copies := make([]pool.Copy, len(g))
	for i, l := range g {
		copies[i] = pool.Copy{From: from[i].At, To: l.At}
	}
	for tries = 1; ; tries++ {
		infos, err := g[0].session.SnapshotTogether(copies...)
		if err != nil {
			return tries, err
		}
		for i, info := range infos {
			g[i].info = info
		}
		if g.together() {
			return tries, nil
		}
		if tries == maxTries {
			return tries, fmt.Errorf("%w after %d tries: ask again, when less is written", ErrApart, tries)
		}
		if err := ctx.Err(); err != nil {
			return tries, err
		}
		for _, l := range g {
			if err := l.destroy(); err != nil {
				return tries, err
			}
		}
	}
}

// together reports whether all members show one instant.
func (g group) together() bool {
	return !slices.ContainsFunc(g, func(l *Slot) bool { return l.info.CreatedTransid != g[0].info.CreatedTransid })
}

// undo is Slot.undo for a group. One commit covers the removal of all snapshots.
func (g group) undo(cause error) error {
	if err := g.erase(); err != nil {
		return unfinished(fmt.Errorf("%w; and it could not be undone: %w", cause, err))
	}
	return cause
}

func (g group) erase() error {
	for _, l := range g {
		if err := l.markCreating(); err != nil {
			return err
		}
	}
	for _, l := range g {
		info, err := l.session.Info(l.At)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		l.info = info
		if err := l.destroy(); err != nil {
			return err
		}
	}
	if len(g) == 0 {
		return nil
	}
	if err := g[0].session.Commit(); err != nil {
		return err
	}
	for _, l := range slices.Backward(g) {
		if err := l.erase(func() error { return nil }); err != nil {
			return err
		}
	}
	return nil
}

// members returns all members of the slot's group, or the slot itself if it is in none. It returns
// errPartial unless all are there and show one instant.
func (l *Slot) members() ([]*Slot, error) {
	if l.Record.Group == (meta.Group{}) {
		return []*Slot{l}, nil
	}
	found, err := l.session.lookAtMembers(l.Record.Group)
	if err != nil {
		return nil, err
	}
	for _, m := range found {
		if m.err != nil { // nobody can know
			return nil, fmt.Errorf("%s: %w", l.Record.Ref(), m.err)
		}
		if m.infoErr != nil || m.Record.Group.ID != l.Record.Group.ID {
			return nil, errPartial
		}
	}
	if len(found) != l.Record.Group.Members || !group(found).together() {
		return nil, errPartial
	}
	return found, nil
}

// lookAtMembers returns the members of a group that exist.
func (s *Session) lookAtMembers(g meta.Group) (found []*Slot, err error) {
	for some := range slices.Chunk(g.Refs(), atOnce) {
		at := make([]pool.Slot, 0, len(some))
		for _, ref := range some {
			at = append(at, pool.SlotsOf(ref)...)
		}
		members, err := s.Look(at...)
		if err != nil {
			return nil, err
		}
		found = append(found, members...)
	}
	return found, nil
}
