package snapshot

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"
	"unicode/utf8"

	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
	"github.com/btrfs-csi/btrfs-csi/pkg/pool"
	"github.com/btrfs-csi/btrfs-csi/pkg/slot"
)

// Prepare makes a read-write volume: empty, or a snapshot of the volume or snapshot source. The
// volume is durable when Prepare returns. A repeated request returns the existing volume;
// ErrExists if that differs from the request.
func (e *Engine) Prepare(ctx context.Context, spec Spec, source meta.Ref) (meta.Entry, error) {
	return e.create(ctx, meta.Active, spec, source)
}

// View makes a read-only volume of a snapshot, or of a volume as it is now. Otherwise it is like
// Prepare.
func (e *Engine) View(ctx context.Context, spec Spec, source meta.Ref) (meta.Entry, error) {
	if source.IsZero() {
		return meta.Entry{}, fmt.Errorf("read-only volume %q: %w: a snapshot or a volume has to be its source", spec.Name, ErrInvalid)
	}
	return e.create(ctx, meta.View, spec, source)
}

// Commit makes a read-only snapshot of a volume, which lives on. Otherwise it is like Prepare.
func (e *Engine) Commit(ctx context.Context, spec Spec, volume string) (meta.Entry, error) {
	spec.Size, spec.Content = Range{}, meta.Files // a snapshot has its volume's size and content
	return e.create(ctx, meta.Committed, spec, meta.Volume(volume))
}

func (e *Engine) create(ctx context.Context, kind meta.Kind, spec Spec, source meta.Ref) (meta.Entry, error) {
	if spec.Name == "" || !utf8.ValidString(spec.Name) { // else the record could not be decoded
		return meta.Entry{}, fmt.Errorf("name %q: %w: it must be UTF-8 and not empty", spec.Name, ErrInvalid)
	}
	ref := meta.Ref{Class: kind.Class(), ID: meta.ID(spec.Name)}
	if ref == source {
		return meta.Entry{}, fmt.Errorf("%s: %w: it cannot be its own source", ref, ErrInvalid)
	}
	release, err := e.lock(ctx, ref, source)
	if err != nil {
		return meta.Entry{}, err
	}
	defer release()
	visits := e.visit()
	defer visits.end()

	there, err := e.locate(visits, ref)
	if err != nil {
		return meta.Entry{}, err
	}
	if l := there.found; l != nil {
		entry, err := l.Recover()
		if err == nil {
			return entry, e.answerAgain(ctx, l, entry, kind, spec, source)
		}
		if errors.Is(err, pool.ErrFrozen) { // after a final error the caller would forget the volume
			return meta.Entry{}, fmt.Errorf("%w: %w", ErrUnfinished, err)
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return meta.Entry{}, err
		}
		there = presence{unknown: e.inPoolAway(ref)} // the earlier create was undone
	}
	to, from, err := e.destination(visits, ref, kind, there, spec, source)
	if err != nil {
		return meta.Entry{}, err
	}
	entry, err := e.make(ctx, to, from, meta.Record{
		ID: ref.ID, Name: spec.Name, Kind: kind, Content: spec.Content, Created: time.Now().UTC(),
		Source: source, Parameters: spec.Parameters, Labels: spec.Labels,
	}, spec.Size)
	if err != nil {
		return meta.Entry{}, fmt.Errorf("%s: %w", ref, err)
	}
	return entry, nil
}

// make makes a volume or snapshot. All volumes together may be promised more than the pool has,
// but no single one.
func (e *Engine) make(ctx context.Context, to *slot.Session, from *slot.Slot, record meta.Record, want Range) (meta.Entry, error) {
	var least int64
	if from != nil {
		least = from.Record.Size
		if record.Kind == meta.Committed {
			record.Content = from.Record.Content
		}
	}
	size, err := want.choose(least)
	if err != nil {
		return meta.Entry{}, err
	}
	if err := checkDisk(record.Content, size, least); err != nil {
		return meta.Entry{}, err
	}
	if err := to.CheckRoom(size - least); err != nil {
		return meta.Entry{}, err
	}
	if err := ctx.Err(); err != nil {
		return meta.Entry{}, err
	}
	record.Size = size
	entry, err := to.Make(record, from)
	if err == nil {
		e.indexPut(ctx, entry)
	}
	return entry, err
}

// answerAgain checks whether entry, which an earlier request of the same name made, answers a
// repeated request.
func (e *Engine) answerAgain(ctx context.Context, l *slot.Slot, entry meta.Entry, kind meta.Kind, spec Spec, source meta.Ref) error {
	e.indexPut(ctx, entry)
	if err := sameRequest(entry, kind, spec, source); err != nil {
		return err
	}
	return l.EnsureDurable()
}
