package snapshot

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"k8s.io/klog/v2"

	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
	"github.com/btrfs-csi/btrfs-csi/pkg/pool"
	"github.com/btrfs-csi/btrfs-csi/pkg/slot"
)

// CommitGroup makes read-only snapshots of several volumes that show one instant: they were taken
// in one transaction. What was synced in any of the volumes before that instant is in the snapshots, and
// what was written after it is in none. It returns the members in the order of their volumes' IDs.
//
// All members are durable when CommitGroup returns. After an error or a crash none is left. A
// repeated request returns the existing group; ErrExists if that differs from the request.
func (e *Engine) CommitGroup(ctx context.Context, spec Spec, volumes []string) ([]meta.Entry, error) {
	r, err := newGroupRequest(spec, volumes)
	if err != nil {
		return nil, err
	}
	release, err := e.lockAll(ctx, r.group.Refs(), r.sources)
	if err != nil {
		return nil, err
	}
	defer release()
	visits := e.visit()
	defer visits.end()

	there, found, err := e.locateGroup(visits, r.group)
	if err != nil {
		return nil, err
	}
	if len(found) > 0 {
		return e.answerGroupAgain(ctx, r, found)
	}
	to, from, err := e.destinationOfGroup(visits, r, there)
	if err != nil {
		return nil, err
	}
	return e.makeGroup(ctx, r, to, from)
}

// groupRequest is a checked request for a group.
type groupRequest struct {
	spec    Spec
	group   meta.Group
	sources []meta.Ref // one for each member, ordered by ID
}

func newGroupRequest(spec Spec, volumes []string) (r groupRequest, err error) {
	if spec.Name == "" || !utf8.ValidString(spec.Name) {
		return r, fmt.Errorf("name %q: %w: it must be UTF-8 and not empty", spec.Name, ErrInvalid)
	}
	r.spec = spec
	r.group = meta.Group{ID: meta.ID(spec.Name), Members: len(volumes)}
	if len(volumes) == 0 || len(volumes) > meta.MaxMembers {
		return r, fmt.Errorf("group %q: %w: it has %d volumes, and must have 1 to %d", r.group.ID, ErrInvalid, len(volumes), meta.MaxMembers)
	}
	for _, id := range slices.Sorted(slices.Values(volumes)) {
		source := meta.Volume(id)
		if n := len(r.sources); n > 0 && r.sources[n-1] == source {
			return r, fmt.Errorf("group %q: %w: it has %s twice", r.group.ID, ErrInvalid, source)
		}
		r.sources = append(r.sources, source)
	}
	return r, nil
}

// member returns the record of a member.
func (r groupRequest) member(i int, size int64, created time.Time) meta.Record {
	g := r.group
	g.Member = i
	name := meta.MemberName(g.ID, i)
	return meta.Record{
		ID: meta.ID(name), Name: name, Kind: meta.Committed, Size: size, Created: created,
		Source: r.sources[i], Parameters: r.spec.Parameters, Labels: r.spec.Labels, Group: g,
	}
}

// locateGroup looks up the members of a group. found are those that exist, whole. It completes or
// undoes what a crash has left of them.
func (e *Engine) locateGroup(visits visits, g meta.Group) (there []presence, found []*slot.Slot, err error) {
	for _, ref := range g.Refs() {
		is, err := e.locate(visits, ref)
		if err != nil {
			return nil, nil, err
		}
		if l := is.found; l != nil {
			_, err := l.Recover()
			switch {
			case err == nil:
				found = append(found, l)
			case errors.Is(err, pool.ErrFrozen): // after a final error the caller would forget the group
				return nil, nil, fmt.Errorf("%w: %w", ErrUnfinished, err)
			case !errors.Is(err, fs.ErrNotExist):
				return nil, nil, err
			}
			is = presence{unknown: e.inPoolAway(ref)}
		}
		there = append(there, is)
	}
	return there, found, nil
}

// answerGroupAgain checks whether the members that an earlier request has made answer a repeated
// request.
func (e *Engine) answerGroupAgain(ctx context.Context, r groupRequest, found []*slot.Slot) (entries []meta.Entry, err error) {
	for _, l := range found {
		entry, err := l.Entry()
		if err != nil {
			return nil, err
		}
		want := r.member(entry.Group.Member, entry.Size, entry.Created)
		if entry.Group.ID != r.group.ID || entry.Group.Members != r.group.Members || entry.Source != want.Source || entry.Parameters != want.Parameters {
			return nil, fmt.Errorf("group %q: %w: %s is %s, of %d members, with parameters %+v", r.group.ID, ErrExists, entry.Ref(), originOf(entry), entry.Group.Members, entry.Parameters)
		}
		e.indexPut(ctx, entry)
		entries = append(entries, entry)
	}
	if len(entries) < r.group.Members {
		return nil, fmt.Errorf("group %q: %w: %d of %d: delete it, or take another name", r.group.ID, ErrIncomplete, len(entries), r.group.Members)
	}
	return entries, found[0].EnsureDurable() // a commit covers all members
}

func originOf(entry meta.Entry) string {
	if entry.Group.ID == "" {
		return fmt.Sprintf("a snapshot of %s, in no group", entry.Source)
	}
	return fmt.Sprintf("a snapshot of %s in group %q", entry.Source, entry.Group.ID)
}

// destinationOfGroup returns the pool of the volumes, and the volumes there.
func (e *Engine) destinationOfGroup(visits visits, r groupRequest, there []presence) (to *slot.Session, from []*slot.Slot, err error) {
	apart := false
	where := make([]string, len(r.sources))
	for i, ref := range r.group.Refs() {
		in, source, err := e.destination(visits, ref, meta.Committed, there[i], r.spec, r.sources[i])
		if err != nil {
			return nil, nil, err
		}
		if content := source.Record.Content; content.IsDisk() {
			return nil, nil, fmt.Errorf("group %q: %w: %s contains a disk file (%s), and group snapshots of such volumes are not there yet", r.group.ID, ErrInvalid, r.sources[i], content)
		}
		if to == nil {
			to = in
		}
		apart = apart || in != to
		where[i] = fmt.Sprintf("%s in pool %q", r.sources[i], in.Name)
		from = append(from, source)
	}
	if apart {
		return nil, nil, fmt.Errorf("group %q: %w: %s", r.group.ID, ErrPools, strings.Join(where, ", "))
	}
	return to, from, nil
}

func (e *Engine) makeGroup(ctx context.Context, r groupRequest, to *slot.Session, from []*slot.Slot) ([]meta.Entry, error) {
	if err := to.CheckRoom(0); err != nil {
		return nil, fmt.Errorf("group %q: %w", r.group.ID, err)
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	now := time.Now().UTC()
	records := make([]meta.Record, len(from))
	for i, source := range from {
		records[i] = r.member(i, source.Record.Size, now)
	}
	entries, tries, err := to.MakeGroup(ctx, records, from)
	if err != nil {
		return nil, fmt.Errorf("group %q: %w", r.group.ID, err)
	}
	for _, entry := range entries {
		e.indexPut(ctx, entry)
	}
	klog.FromContext(ctx).Info("Group taken in one transaction", "groupID", r.group.ID, "members", len(entries), "tries", tries, "transaction", entries[0].CreatedTransid)
	return entries, nil
}

// Group returns the members of a group, in order. ErrIncomplete if not all are there.
func (e *Engine) Group(ctx context.Context, id string) ([]meta.Entry, error) {
	refs, err := e.GroupMembers(ctx, id)
	if err != nil {
		return nil, err
	}
	if len(refs) == 0 {
		return nil, fmt.Errorf("group %q: %w on this node", id, ErrNotFound)
	}
	entries := make([]meta.Entry, len(refs))
	for i, ref := range refs {
		entries[i], err = e.Stat(ctx, ref)
		if errors.Is(err, ErrNotFound) || err == nil && entries[i].Group.ID != id {
			return nil, fmt.Errorf("group %q: %w: %s is missing: delete the group", id, ErrIncomplete, ref)
		}
		if err != nil {
			return nil, fmt.Errorf("group %q: %w", id, err)
		}
	}
	return entries, nil
}

// GroupMembers returns the members that a group was made of, which may be removed since. They have
// to be removed from the last to the first: member 0 shows that there is a group. Without it
// GroupMembers returns none.
func (e *Engine) GroupMembers(ctx context.Context, id string) ([]meta.Ref, error) {
	first := meta.Group{ID: id, Members: 1}.Refs()[0]
	entry, err := e.Stat(ctx, first)
	switch {
	case errors.Is(err, ErrNotFound):
		return nil, nil
	case err != nil && !errors.Is(err, ErrLost):
		return nil, fmt.Errorf("group %q: %w", id, err)
	case entry.Group.ID != id:
		return nil, nil
	}
	return entry.Group.Refs(), nil
}
