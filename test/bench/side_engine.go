package main

import (
	"context"
	"errors"
	"path/filepath"
	"sync/atomic"

	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
	"github.com/btrfs-csi/btrfs-csi/pkg/meta/index"
	"github.com/btrfs-csi/btrfs-csi/pkg/pool"
	"github.com/btrfs-csi/btrfs-csi/pkg/pool/pooltest"
	"github.com/btrfs-csi/btrfs-csi/pkg/snapshot"
)

// engine is the engine of btrfs-csi in this process, without gRPC and the driver.
type engine struct {
	*snapshot.Engine
	size atomic.Int64 // the last size that a volume was expanded to
}

func openEngine(ctx context.Context, r *rig) (side, error) {
	e, err := newEngine(ctx, r, nil)
	if err != nil {
		return nil, err // a nil *engine would be a non-nil side
	}
	return e, nil
}

// newEngine opens an engine that calls around, unless that is nil, instead of each step.
func newEngine(ctx context.Context, r *rig, around func(pooltest.Step, func() error) error) (*engine, error) {
	host, err := pool.NewHost(r.State, r.quota)
	if err != nil {
		return nil, err
	}
	if around != nil {
		host = pooltest.Around(host, around)
	}
	index, _, err := index.Open(filepath.Join(r.State, "index.db"))
	if err != nil {
		return nil, err
	}
	opened, err := snapshot.Open(ctx, host, index)
	if err != nil {
		return nil, err
	}
	e := &engine{Engine: opened}
	e.size.Store(volumeSize)
	return e, nil
}

func (e *engine) close() error { return e.Close() }

func (e *engine) operations() map[string]operation {
	return map[string]operation{
		opCreate: func(ctx context.Context, i int) error { return e.prepare(ctx, volumeName(i), meta.Ref{}) },
		opSnapshot: func(ctx context.Context, i int) error {
			_, err := e.Commit(ctx, snapshot.Spec{Name: snapshotName(i)}, volumeName(i))
			return err
		},
		opClone: func(ctx context.Context, i int) error {
			return e.prepare(ctx, cloneName(i), meta.Volume(volumeName(i)))
		},
		opRestore: func(ctx context.Context, i int) error {
			return e.prepare(ctx, restoredName(i), meta.Snapshot(snapshotName(i)))
		},
		opView: func(ctx context.Context, i int) error {
			_, err := e.View(ctx, snapshot.Spec{Name: viewName(i)}, meta.Snapshot(snapshotName(i)))
			return err
		},
		opDelete:         func(ctx context.Context, i int) error { return e.Remove(ctx, meta.Volume(cloneName(i))) },
		opDeleteSnapshot: func(ctx context.Context, i int) error { return e.Remove(ctx, meta.Snapshot(snapshotName(i))) },
		opExpand: func(ctx context.Context, i int) error {
			_, err := e.Resize(ctx, volumeName(i), snapshot.Range{Required: e.size.Add(1 << 20)})
			return err
		},
		opMounts: func(ctx context.Context, i int) error {
			_, err := e.Mounts(ctx, volumeName(i))
			return err
		},
		opStats: e.stats,
		opList: func(ctx context.Context, _ int) error {
			return e.Walk(ctx, meta.Volumes, "", func(meta.Entry) bool { return true })
		},
		opExisting: func(ctx context.Context, i int) error { return e.prepare(ctx, existingName(i), meta.Ref{}) },
		opTidy:     e.tidy,
		opClear:    e.clear,
	}
}

// stats reads the usage of the volume if a quota counts it.
func (e *engine) stats(ctx context.Context, _ int) error {
	_, err := e.Usage(ctx, meta.Volume(volumeName(0)))
	if errors.Is(err, pool.ErrNoQuota) {
		return nil
	}
	return err
}

func (e *engine) tidy(ctx context.Context, i int) error {
	for _, name := range copyNames(i) {
		if err := e.Remove(ctx, meta.Volume(name)); err != nil {
			return err
		}
	}
	return nil
}

func (e *engine) clear(ctx context.Context, i int) error {
	if err := e.tidy(ctx, i); err != nil {
		return err
	}
	if err := e.Remove(ctx, meta.Volume(volumeName(i))); err != nil {
		return err
	}
	return e.Remove(ctx, meta.Snapshot(snapshotName(i)))
}

// prepare creates a volume. A copy has the size of its source.
func (e *engine) prepare(ctx context.Context, name string, source meta.Ref) error {
	spec := snapshot.Spec{Name: name}
	if source.IsZero() {
		spec.Size.Required = volumeSize
	}
	_, err := e.Prepare(ctx, spec, source)
	return err
}
