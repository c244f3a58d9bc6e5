package snapshot

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs"
	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
	"github.com/btrfs-csi/btrfs-csi/pkg/pool"
)

// Spec describes a new volume or snapshot.
type Spec struct {
	// Name identifies it. A second request with the same name is a repetition.
	Name string
	// Pool is the pool to make it in; empty for the source's, or the default one.
	Pool string
	// Allowed are the IDs of the pools in which it may be made; nil for any.
	Allowed []string
	// Size is the wanted size of a volume. Commit ignores it: a snapshot has its volume's size.
	Size       Range
	Parameters meta.Parameters
	Labels     map[string]string
}

func (s Spec) allows(poolID string) bool {
	return s.Allowed == nil || slices.Contains(s.Allowed, poolID)
}

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
	spec.Size = Range{} // a snapshot has its volume's size
	return e.create(ctx, meta.Committed, spec, meta.Volume(volume))
}

func (e *Engine) create(ctx context.Context, kind meta.Kind, spec Spec, source meta.Ref) (meta.Entry, error) {
	if spec.Name == "" || !utf8.ValidString(spec.Name) { // else the record could not be decoded
		return meta.Entry{}, fmt.Errorf("name %q: %w: it must be UTF-8 and not empty", spec.Name, ErrInvalid)
	}
	ref := meta.Ref{Class: kind.Class(), ID: meta.ID(spec.Name)}
	release, err := e.locks.acquire(ref, source)
	if err != nil {
		return meta.Entry{}, err
	}
	defer release()
	defer e.pin()()

	there, err := e.locate(ref)
	if err != nil {
		return meta.Entry{}, err
	}
	if l := there.found; l != nil {
		entry, err := l.recovered()
		if err == nil {
			return entry, e.answerAgain(ctx, l, entry, kind, spec, source)
		}
		if errors.Is(err, pool.ErrFrozen) { // after a final error the caller would forget the volume
			return meta.Entry{}, unfinished(err)
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return meta.Entry{}, err
		}
		there = presence{unknown: e.inPoolAway(ref)} // the earlier create was undone
	}
	p, from, err := e.destination(ref, there, spec, source)
	if err != nil {
		return meta.Entry{}, err
	}
	var ticket *pool.Ticket
	if from == nil {
		ticket = p.Commits.Begin()
		defer ticket.Done()
	}
	size, err := p.size(spec.Size, from)
	if err != nil {
		return meta.Entry{}, fmt.Errorf("%s: %w", ref, err)
	}
	if err := ctx.Err(); err != nil {
		return meta.Entry{}, err
	}
	l := &located{pool: p, ticket: ticket, slot: pool.SlotOf(kind, ref.ID), record: meta.Record{
		ID: ref.ID, Name: spec.Name, Kind: kind, State: meta.Creating, Size: size, Created: time.Now().UTC(),
		Source: source, Parameters: spec.Parameters, Labels: spec.Labels,
	}}
	if err := l.begin(); err != nil {
		return meta.Entry{}, fmt.Errorf("%s: %w", ref, err)
	}
	entry, err := l.make(from)
	if err != nil {
		return meta.Entry{}, fmt.Errorf("%s: %w", ref, err)
	}
	e.indexPut(ctx, entry)
	return entry, nil
}

// answerAgain checks whether entry, which an earlier request of the same name made, answers a
// repeated request.
func (e *Engine) answerAgain(ctx context.Context, l *located, entry meta.Entry, kind meta.Kind, spec Spec, source meta.Ref) error {
	e.indexPut(ctx, entry)
	if err := sameRequest(entry, kind, spec, source); err != nil {
		return err
	}
	return l.ensureDurable(entry)
}

// sameRequest returns ErrExists with every difference if a request differs from the earlier one
// of its name.
func sameRequest(entry meta.Entry, kind meta.Kind, spec Spec, source meta.Ref) error {
	have := entry.Record
	var differ []string
	add := func(format string, args ...any) { differ = append(differ, fmt.Sprintf(format, args...)) }
	if have.Name != spec.Name {
		add("name %q, not %q", have.Name, spec.Name)
	}
	if have.Kind != kind {
		add("kind %s, not %s", have.Kind, kind)
	}
	if have.Source != source {
		add("source %v, not %v", have.Source, source)
	}
	if spec.Pool != "" && spec.Pool != entry.Pool {
		add("pool %q, not %q", entry.Pool, spec.Pool)
	}
	if !spec.allows(entry.PoolID) {
		add("pool %q (%s), not one of %q", entry.Pool, entry.PoolID, spec.Allowed)
	}
	if have.Parameters != spec.Parameters {
		add("parameters %+v, not %+v", have.Parameters, spec.Parameters)
	}
	if kind != meta.Committed && !spec.Size.fits(have.Size) {
		add("size %d, not between %d and %d", have.Size, spec.Size.Required, spec.Size.Limit)
	}
	if len(differ) == 0 {
		return nil
	}
	return fmt.Errorf("%s: %w: it has %s", have.Ref(), ErrExists, strings.Join(differ, "; "))
}

// destination picks the pool for a new volume or snapshot, and finds its source. It fails with
// there.unknown if it may already be in a pool that cannot be asked. It also prefers
// there.unknown to other errors, after which the caller would try another pool or node.
func (e *Engine) destination(ref meta.Ref, there presence, spec Spec, source meta.Ref) (*servedPool, *located, error) {
	if there.unknown != nil && there.unasked == nil {
		return nil, nil, there.unknown
	}
	p, from, err := e.origin(spec, source)
	if there.unknown != nil && (err != nil || !spec.allows(p.PoolID()) || e.mayBeIn(there, ref, p)) {
		return nil, nil, there.unknown
	}
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", ref, err)
	}
	if !spec.allows(p.PoolID()) {
		return nil, nil, fmt.Errorf("%s: it would be in pool %q (%s): %w, %q: choose another node, or name another pool in the StorageClass",
			ref, p.Name, p.PoolID(), ErrNotAllowed, spec.Allowed)
	}
	return p, from, nil
}

// origin returns the pool to make a volume or snapshot in, and its source there, if any.
func (e *Engine) origin(spec Spec, source meta.Ref) (*servedPool, *located, error) {
	if source.IsZero() {
		p, err := e.pool(spec.Pool)
		return p, nil, err
	}
	from, err := e.find(source)
	if err != nil {
		return nil, nil, fmt.Errorf("source %w", err)
	}
	if err := from.copyable(spec.Parameters); err != nil {
		return nil, nil, fmt.Errorf("source %w", err)
	}
	if spec.Pool != "" && spec.Pool != from.pool.Name {
		return nil, nil, fmt.Errorf("source %s is in pool %q, pool %q is asked for: %w: a copy-on-write child lives beside its source; leave the pool out or name the source's",
			source, from.pool.Name, spec.Pool, ErrInvalid)
	}
	return from.pool, &from, nil
}

// size picks the size, and checks that the pool has room for what it adds to the source's size.
// All volumes together may be promised more than the pool has, but no single one.
func (p *servedPool) size(want Range, from *located) (int64, error) {
	var least int64
	if from != nil {
		least = from.record.Size
	}
	size, err := want.choose(least)
	if err != nil {
		return 0, err
	}
	return size, p.CheckRoom(size - least)
}

// make declares, acts and commits once; see the table in doc.go. After an error it undoes its
// steps.
func (l *located) make(from *located) (meta.Entry, error) {
	if err := l.makeSlot(); err != nil {
		return meta.Entry{}, err
	}
	if err := l.write(); err != nil {
		return meta.Entry{}, l.undo(err)
	}
	if err := l.populate(from); err != nil {
		return meta.Entry{}, l.undo(err)
	}
	entry, err := l.complete(from == nil)
	if err != nil {
		return meta.Entry{}, l.undo(err)
	}
	return entry, nil
}

// makeSlot makes an empty slot without a record. It replaces one that a crash left.
func (l *located) makeSlot() error {
	err := l.fs.Mkdir(l.slot)
	if !errors.Is(err, fs.ErrExist) {
		return err
	}
	if err := l.fs.Rmdir(l.slot); errors.Is(err, pool.ErrNotEmpty) {
		return fmt.Errorf("%s in pool %q: %w: move it away: %w", l.slot, l.pool.Name, pool.ErrForeign, err)
	} else if err != nil {
		return err
	}
	return l.fs.Mkdir(l.slot)
}

// populate makes the subvolume.
func (l *located) populate(from *located) error {
	if from == nil {
		return l.fs.Create(l.slot)
	}
	if err := l.fs.Snapshot(from.slot, l.slot, l.record.Kind.ReadOnly()); err != nil {
		return err
	}
	from.fs = l.fs
	// Check again: a pod may have nested a subvolume since the first check, and the snapshot
	// would lack it silently.
	return from.refuseNested(l.record.Parameters)
}

// copyable fails for a source whose subvolume is gone, or that refuseNested refuses.
func (from *located) copyable(parameters meta.Parameters) error {
	err := from.refuseNested(parameters)
	if err != nil || from.skipsNested(parameters) { // refuseNested did not access the subvolume, or failed
		if _, lost := from.entry(); lost != nil {
			return lost
		}
	}
	return err
}

// skipsNested reports whether the class of the source or of the copy allows nested subvolumes to
// be left out.
func (from *located) skipsNested(parameters meta.Parameters) bool {
	return parameters.SkipNested || from.record.Parameters.SkipNested
}

// refuseNested returns ErrNested with the paths of the subvolumes nested in from, unless they may
// be left out.
func (from *located) refuseNested(parameters meta.Parameters) error {
	if from.skipsNested(parameters) {
		return nil
	}
	return from.refuseNestedUpTo(math.MaxUint64)
}

// refuseNestedUpTo checks only subvolumes that were made up to a transaction.
func (from *located) refuseNestedUpTo(transid uint64) error {
	nested, err := from.fs.NestedUpTo(from.slot, transid)
	if err != nil || len(nested) == 0 {
		return err
	}
	return fmt.Errorf("%s contains %w, which would be empty in a copy: %s: delete them, or set nestedSubvolumes to skip in the class",
		from.record.Ref(), ErrNested, quoted(nested))
}

// complete runs the steps that follow the making of the subvolume, and marks the record ready.
// Every step may be repeated. commit says that the subvolume may not be durable yet; the ioctl
// has already committed a snapshot.
//
// The properties lie in the tree of the subvolume, the record in that of the pool. An fsync
// writes only one of them to its log, and anyone may commit between two steps. So the properties
// are durable before the record says ready, and ready is durable before a request with properties
// is answered. After a power cut, a record that says ready has its properties. A volume in
// creating was never returned to a caller, so no pod has changed the properties set again.
func (l *located) complete(commit bool) (meta.Entry, error) {
	info, err := l.fs.Info(l.slot)
	if err != nil {
		return meta.Entry{}, err
	}
	configure := l.record.State != meta.Ready && l.hasProperties()
	if configure {
		if err := l.applyUnlimited(info.ID); err != nil {
			return meta.Entry{}, err
		}
	}
	if l.record.Kind == meta.Active {
		if err := l.setLimit(info.ID); err != nil {
			return meta.Entry{}, err
		}
	}
	if configure {
		if err := l.syncProperties(commit); err != nil {
			return meta.Entry{}, err
		}
	}
	if err := l.markReady(); err != nil {
		return meta.Entry{}, err
	}
	switch {
	case configure:
		err = l.fs.Sync(l.slot) // writes the log of the record only; there is no commit to share
	case commit:
		err = l.sync()
	}
	if err != nil {
		return meta.Entry{}, err
	}
	return entryOf(l.pool, l.record, info), nil
}

// hasProperties reports whether Apply has something to set.
func (l *located) hasProperties() bool {
	p := l.record.Parameters
	return l.record.Kind == meta.Active && (p.NoDataCow || p.Compression != "")
}

// syncProperties makes the properties durable: by a shared commit if the subvolume was made in
// this transaction, else by the log of its tree.
func (l *located) syncProperties(commit bool) error {
	sync := func() error { return l.fs.SyncRoot(l.slot) }
	if commit {
		return l.pool.Commits.Share(l.ticket, sync)
	}
	return sync()
}

// markReady sets the state of the record to ready.
func (l *located) markReady() error {
	before := l.record.State
	l.record.State = meta.Ready
	err := l.write()
	if err != nil {
		l.record.State = before // undo need not write creating, for which there may be no room either
	}
	return err
}

// applyUnlimited sets the properties. Under full quota a copy has its source's limit until it
// gets its own, and at that limit no property can be set. It may be lifted, because nobody uses
// the copy yet.
func (l *located) applyUnlimited(subvolume uint64) error {
	err := l.fs.Apply(l.slot, l.record.Parameters)
	if !errors.Is(err, unix.EDQUOT) {
		return err
	}
	if err := l.fs.LiftLimit(subvolume); err != nil {
		return err
	}
	return l.fs.Apply(l.slot, l.record.Parameters)
}

// ensureDurable corrects the limit and syncs before a repeated request is answered. The process
// of the first request may have died just before its commit, or its undo failed after it lifted
// the limit.
func (l *located) ensureDurable(entry meta.Entry) error {
	have, limited := l.pool.limitOf(entry.SubvolumeID)
	if limited && l.record.Kind == meta.Active && l.limitWrong(entry.SubvolumeID, have) {
		if err := l.setLimit(entry.SubvolumeID); err != nil {
			return unfinished(fmt.Errorf("%s: %w", l.record.Ref(), err))
		}
	}
	if err := l.sync(); err != nil {
		return unfinished(fmt.Errorf("%s: %w", l.record.Ref(), err))
	}
	return nil
}

// write stores the record in the ledger.
func (l *located) write() error {
	data, err := l.record.Encode()
	if err != nil {
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	return l.fs.SetRecord(l.slot, data)
}

// resume completes a create that a crash interrupted, or undoes it and returns fs.ErrNotExist.
func (l *located) resume() (meta.Entry, error) {
	info, err := l.fs.Info(l.slot)
	if err == nil {
		err = l.verifyComplete(info)
	}
	var entry meta.Entry
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if err = l.fs.Rmdir(l.slot); err == nil {
			return entry, fs.ErrNotExist
		}
	case errors.Is(err, ErrNested):
		if err = l.erase(func() error { return nil }); err == nil {
			return entry, fs.ErrNotExist
		}
	case err == nil:
		entry, err = l.complete(true)
	}
	return entry, unfinished(err)
}

// verifyComplete does the check of populate after a snapshot again, which a crash may have
// prevented. It returns ErrNested for a copy that lacks subvolumes that were nested in its source
// up to its own transaction. An acknowledged copy passed this check before, so it never fails
// now, not even if a power cut undid its state ready.
//
// If the source is gone, nobody can know. Such a copy is kept, neither erased nor acknowledged. A
// copy of a snapshot needs no check, because nothing can be nested in a snapshot.
func (l *located) verifyComplete(copied btrfs.SubvolumeInfo) error {
	source := l.record.Source
	if source.Class != meta.Volumes || l.record.Parameters.SkipNested {
		return nil
	}
	for _, kind := range source.Class.Kinds() {
		from, err := l.pool.read(pool.SlotOf(kind, source.ID))
		if err == nil {
			var info btrfs.SubvolumeInfo
			info, err = l.fs.Info(from.slot)
			if err == nil && info.UUID == copied.ParentUUID {
				return from.nestedIn(copied)
			}
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("source %s: %w", source, err)
		}
	}
	return fmt.Errorf("%s: its source %s is gone, and with it what could show whether this copy, which was cut short, lacks subvolumes that were in it: "+
		"it is kept; copy what is wanted out of %s, and delete it", l.record.Ref(), source, l.fs.SlotPath(l.slot))
}

// nestedIn is refuseNested for a copy that exists.
func (from *located) nestedIn(copied btrfs.SubvolumeInfo) error {
	if from.record.Parameters.SkipNested {
		return nil
	}
	return from.refuseNestedUpTo(copied.CreatedTransid)
}

// undo removes what make did, durably, so that cause is final. If that fails it returns
// ErrUnfinished.
func (l *located) undo(cause error) error {
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
func (l *located) markCreating() error {
	if l.record.State == meta.Creating {
		return nil
	}
	l.record.State = meta.Creating
	return l.write()
}

// erase removes the slot with its subvolume, durably. If there is no subvolume it calls absent
// instead. An absent slot is no error.
func (l *located) erase(absent func() error) error {
	if err := l.unobstructed(); err != nil {
		return err
	}
	return l.take(absent)
}

// take is erase for a slot that contains nothing foreign.
func (l *located) take(absent func() error) error {
	info, err := l.fs.Info(l.slot)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		err = absent()
	case err == nil:
		err = l.eraseSubvolume(info.ID)
	}
	if err != nil {
		return err
	}
	if err := l.fs.Rmdir(l.slot); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func (l *located) eraseSubvolume(id uint64) error {
	// With metadata full the limit cannot be lifted. A subvolume without nested ones can still be
	// destroyed.
	if err := l.fs.LiftLimit(id); err != nil && !errors.Is(err, unix.ENOSPC) {
		return err
	}
	err := l.fs.Destroy(l.slot)
	if errors.Is(err, pool.ErrInUse) && l.record.Kind == meta.Active {
		err = errors.Join(err, l.setLimit(id))
	}
	if err != nil {
		return err
	}
	l.pool.stale.add(id)
	return l.sync()
}

// sync makes the slot durable.
func (l *located) sync() error {
	return l.pool.Commits.Share(l.ticket, func() error { return l.fs.Sync(l.slot) })
}
