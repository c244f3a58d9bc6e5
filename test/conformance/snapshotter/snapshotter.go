package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/filters"
	"github.com/containerd/errdefs"

	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
	"github.com/btrfs-csi/btrfs-csi/pkg/snapshot"
)

// revisionsFile is the file for revisions, in the state directory of the engine.
const revisionsFile = "containerd.db"

// snapshotter is safe for concurrent use. Operations on different keys do not wait for each other.
type snapshotter struct {
	engine    *snapshot.Engine
	state     string
	tree      tree
	revisions *revisions
}

// New returns a Snapshotter that uses the engine with the state directory state. Close leaves the engine
// open.
func New(ctx context.Context, engine *snapshot.Engine, state string) (snapshots.Snapshotter, error) {
	revisions, err := openRevisions(filepath.Join(state, revisionsFile))
	if err != nil {
		return nil, err
	}
	s := &snapshotter{engine: engine, state: state, revisions: revisions}
	if err := s.load(ctx); err != nil {
		_ = s.Close()
		return nil, err
	}
	return s, nil
}

// load builds the tree from the records.
func (s *snapshotter) load(ctx context.Context) error {
	nodes, uuids := map[string]*node{}, map[string]string{}
	err := s.entries(ctx, func(entry meta.Entry, info snapshots.Info) {
		nodes[info.Name] = &node{ref: entry.Ref(), kind: info.Kind, parent: info.Parent}
		uuids[info.Name] = entry.UUID
	})
	if err != nil {
		return err
	}
	s.tree.load(nodes)
	s.revisions.retain(func(key, uuid string) bool { return uuids[key] == uuid })
	return nil
}

// entries calls fn for all snapshots of this package. fn must not call the engine.
func (s *snapshotter) entries(ctx context.Context, fn func(meta.Entry, snapshots.Info)) error {
	for _, class := range []meta.Class{meta.Volumes, meta.Snapshots} {
		err := s.engine.Walk(ctx, class, "", func(entry meta.Entry) bool {
			if info, ours := infoOf(entry); ours {
				fn(entry, info)
			}
			return ctx.Err() == nil
		})
		if err := errors.Join(classify(err), ctx.Err()); err != nil {
			return err
		}
	}
	return nil
}

// Close closes the file of the labels.
func (s *snapshotter) Close() error { return s.revisions.db.Close() }

func (s *snapshotter) Prepare(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	return s.create(ctx, snapshots.KindActive, key, parent, opts)
}

func (s *snapshotter) View(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	return s.create(ctx, snapshots.KindView, key, parent, opts)
}

func (s *snapshotter) create(ctx context.Context, kind snapshots.Kind, key, parent string, opts []snapshots.Opt) ([]mount.Mount, error) {
	wanted, err := options(opts)
	if err != nil {
		return nil, err
	}
	n := node{ref: meta.Volume(meta.ID(key)), kind: kind, parent: parent}
	source, err := s.tree.declare(key, n)
	if err != nil {
		return nil, err
	}
	create := s.engine.Prepare
	if kind == snapshots.KindView && parent != "" {
		create = s.engine.View
	}
	spec := snapshot.Spec{Name: key, Labels: labelsOf(n, wanted.Labels)}
	entry, err := made(func() (meta.Entry, error) { return create(ctx, spec, source) })
	s.concluded(key, err)
	if err != nil {
		return nil, fmt.Errorf("prepare: %w", err)
	}
	return bind(s.path(entry), kind), nil
}

// made calls create of the engine. The engine answers a repeated request with the existing volume. For a
// snapshotter that is an error, because somebody else has created it.
func made(create func() (meta.Entry, error)) (meta.Entry, error) {
	start := time.Now()
	entry, err := create()
	if err == nil && entry.Created.Before(start) {
		err = fmt.Errorf("%s is there, and was not made here: %w", entry.Ref(), errdefs.ErrAlreadyExists)
	}
	return entry, classify(err)
}

// concluded ends the creation of key. If the creation may have left something behind, the key stays in
// use until it is removed.
func (s *snapshotter) concluded(key string, err error) {
	if err == nil || errors.Is(err, snapshot.ErrUnfinished) {
		s.tree.settle(key)
		return
	}
	s.tree.drop(key)
}

func (s *snapshotter) Commit(ctx context.Context, name, key string, opts ...snapshots.Opt) error {
	wanted, err := options(opts)
	if err != nil {
		return err
	}
	active, err := s.tree.declareCommit(name, key)
	if err != nil {
		return fmt.Errorf("commit: %w", err)
	}
	err = s.commit(ctx, name, active, wanted)
	s.concluded(name, err)
	if err != nil {
		s.tree.settle(key)
		return fmt.Errorf("commit %q: %w", key, err)
	}
	// The snapshot is made, so remove the active even if the caller has gone.
	return s.remove(context.WithoutCancel(ctx), key, active)
}

func (s *snapshotter) commit(ctx context.Context, name string, active node, wanted snapshots.Info) error {
	if wanted.Parent != "" && wanted.Parent != active.parent {
		return fmt.Errorf("parent %q wanted, it was made from %q, and its contents cannot be moved onto another: %w",
			wanted.Parent, active.parent, errdefs.ErrInvalidArgument)
	}
	committed := node{kind: snapshots.KindCommitted, parent: active.parent}
	spec := snapshot.Spec{Name: name, Labels: labelsOf(committed, wanted.Labels)}
	_, err := made(func() (meta.Entry, error) { return s.engine.Commit(ctx, spec, active.ref.ID) })
	return err
}

func (s *snapshotter) Remove(ctx context.Context, key string) error {
	n, err := s.tree.declareRemove(key)
	if err != nil {
		return err
	}
	return s.remove(ctx, key, n)
}

// remove removes a node that is already busy.
func (s *snapshotter) remove(ctx context.Context, key string, n node) error {
	if err := s.engine.Remove(ctx, n.ref); err != nil {
		s.tree.settle(key)
		return fmt.Errorf("remove %q: %w", key, classify(err))
	}
	s.revisions.forget(key)
	s.tree.drop(key)
	return nil
}

func (s *snapshotter) Mounts(ctx context.Context, key string) ([]mount.Mount, error) {
	n, err := s.tree.find(key)
	if err != nil {
		return nil, err
	}
	if n.kind == snapshots.KindCommitted {
		return nil, fmt.Errorf("snapshot %q is committed, only an active or a view is mounted: %w", key, errdefs.ErrFailedPrecondition)
	}
	m, err := s.engine.Mounts(ctx, n.ref.ID)
	if err != nil {
		return nil, fmt.Errorf("mounts of %q: %w", key, classify(err))
	}
	return bind(m.Source, n.kind), nil
}

// bind returns the mount of an active or a view. A view is mounted read-only even if its subvolume is
// read-write.
func bind(source string, kind snapshots.Kind) []mount.Mount {
	access := "rw"
	if kind == snapshots.KindView {
		access = "ro"
	}
	return []mount.Mount{{Type: "bind", Source: source, Options: []string{"bind", access}}}
}

// path returns the path of a subvolume: see the layout in package pool. The engine returns it only for
// volumes.
func (s *snapshotter) path(entry meta.Entry) string {
	return filepath.Join(s.state, "pools", entry.Pool, string(entry.Kind), entry.ID, "fs")
}

func (s *snapshotter) Stat(ctx context.Context, key string) (snapshots.Info, error) {
	info, entry, err := s.recorded(ctx, key)
	if err != nil {
		return snapshots.Info{}, err
	}
	return s.revisions.apply(info, entry), nil
}

// recorded returns the info of key from its record, without updates.
func (s *snapshotter) recorded(ctx context.Context, key string) (snapshots.Info, meta.Entry, error) {
	n, err := s.tree.find(key)
	if err != nil {
		return snapshots.Info{}, meta.Entry{}, err
	}
	entry, err := s.engine.Stat(ctx, n.ref)
	if err != nil {
		return snapshots.Info{}, entry, classify(err)
	}
	info, _ := infoOf(entry)
	return info, entry, nil
}

func (s *snapshotter) Update(ctx context.Context, info snapshots.Info, fieldpaths ...string) (snapshots.Info, error) {
	recorded, entry, err := s.recorded(ctx, info.Name)
	if err != nil {
		return snapshots.Info{}, err
	}
	return s.revisions.update(recorded, entry, setFields(info, fieldpaths))
}

// Walk reads everything before it calls fn, so fn may call any method.
func (s *snapshotter) Walk(ctx context.Context, fn snapshots.WalkFunc, filter ...string) error {
	matching, err := filters.ParseAll(filter...)
	if err != nil {
		return err
	}
	var found []snapshots.Info
	err = s.entries(ctx, func(entry meta.Entry, info snapshots.Info) {
		if info = s.revisions.apply(info, entry); matching.Match(fields(info)) {
			found = append(found, info)
		}
	})
	if err != nil {
		return err
	}
	for _, info := range found {
		if err := fn(ctx, info); err != nil {
			return err
		}
	}
	return nil
}
