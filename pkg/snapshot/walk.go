package snapshot

import (
	"context"
	"slices"
	"strings"

	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
	"github.com/btrfs-csi/btrfs-csi/pkg/meta/index"
	"github.com/btrfs-csi/btrfs-csi/pkg/slot"
)

// Walk calls fn for the volumes or snapshots with an ID greater than after, ordered by ID, until
// fn returns false. fn must not call the engine. Walk omits pools that are away.
func (e *Engine) Walk(ctx context.Context, class meta.Class, after string, fn func(meta.Entry) bool) error {
	return e.walk(ctx, func(fn func(meta.Entry) bool) error { return e.index.Walk(class, after, fn) }, fn,
		func(entry meta.Entry) bool { return entry.Kind.Class() == class && entry.ID > after })
}

// WalkSnapshots is Walk over the snapshots of one volume, which may be gone.
func (e *Engine) WalkSnapshots(ctx context.Context, volume, after string, fn func(meta.Entry) bool) error {
	source := meta.Volume(volume)
	return e.walk(ctx, func(fn func(meta.Entry) bool) error {
		return e.index.WalkChildren(source, meta.Snapshots, after, fn)
	}, fn, func(entry meta.Entry) bool {
		return entry.Kind == meta.Committed && entry.Source == source && entry.ID > after
	})
}

// walk lists from the index or, if that is behind and cannot be rebuilt, from the ledgers.
func (e *Engine) walk(ctx context.Context, indexed func(func(meta.Entry) bool) error, fn, match func(meta.Entry) bool) error {
	e.indexed(ctx, e.index.Flush())
	if e.indexBehind.Load() {
		e.indexed(ctx, e.syncIndex())
	}
	if !e.indexBehind.Load() {
		inUse := map[string]bool{}
		for _, p := range e.allPools() {
			inUse[p.ID] = true
		}
		called := false
		err := indexed(func(entry meta.Entry) bool { called = true; return !inUse[entry.PoolID] || fn(entry) })
		e.indexed(ctx, err)
		if err == nil || called {
			return err
		}
	}
	var entries []meta.Entry
	for _, p := range e.allPools() {
		slots, err := p.scan()
		if err != nil {
			return err
		}
		found, _ := slot.Entries(slots)
		entries = append(entries, slices.DeleteFunc(found, func(entry meta.Entry) bool { return !match(entry) })...)
	}
	slices.SortFunc(entries, func(a, b meta.Entry) int { return strings.Compare(a.ID, b.ID) })
	for _, entry := range entries {
		if !fn(entry) {
			break
		}
	}
	return nil
}

// Counts returns the numbers of volumes and snapshots in each pool, by its ID, as the index has
// them. Inspect has no index, and counts none.
func (e *Engine) Counts(ctx context.Context) (map[string]map[meta.Class]int, error) {
	if e.index == nil {
		return nil, nil
	}
	counts, err := e.index.Counts()
	e.indexed(ctx, err)
	return counts, err
}

// History returns the last removals, the newest first. Only the index has them: they are lost
// with it, and subvolumes that somebody else removed are not among them.
func (e *Engine) History() ([]index.Removed, error) { return e.index.History() }
