package main

import (
	"context"
	"path/filepath"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/plugins/snapshots/btrfs"
	"github.com/containerd/errdefs"
)

// containerd is any implementation of containerd's interface. Commit consumes the active snapshot.
// Afterwards there is no volume, and only the committed snapshot can be cloned.
type containerd struct{ snapshots.Snapshotter }

// openContainerd opens containerd's own btrfs snapshotter. Its database is on the filesystem, as
// containerd has it.
func openContainerd(_ context.Context, r *rig) (side, error) {
	s, err := btrfs.NewSnapshotter(filepath.Join(r.Pool(), "containerd"))
	if err != nil {
		return nil, err
	}
	return containerd{s}, nil
}

func (s containerd) close() error { return s.Close() }

func (s containerd) operations() map[string]operation {
	prepare := func(key func(int) string, parent func(int) string) operation {
		return func(ctx context.Context, i int) error {
			_, err := s.Prepare(ctx, key(i), parent(i))
			return err
		}
	}
	remove := func(key func(int) string) operation {
		return func(ctx context.Context, i int) error { return s.Remove(ctx, key(i)) }
	}
	return map[string]operation{
		opCreate:   prepare(volumeName, func(int) string { return "" }),
		opSnapshot: func(ctx context.Context, i int) error { return s.Commit(ctx, snapshotName(i), volumeName(i)) },
		opClone:    prepare(cloneName, snapshotName),
		opRestore:  prepare(restoredName, snapshotName),
		opView: func(ctx context.Context, i int) error {
			_, err := s.View(ctx, viewName(i), snapshotName(i))
			return err
		},
		opDelete:         remove(cloneName),
		opDeleteSnapshot: remove(snapshotName),
		opStats: func(ctx context.Context, _ int) error {
			_, err := s.Usage(ctx, volumeName(0))
			return err
		},
		opMounts: func(ctx context.Context, i int) error {
			_, err := s.Mounts(ctx, volumeName(i))
			return err
		},
		opList: func(ctx context.Context, _ int) error {
			return s.Walk(ctx, func(context.Context, snapshots.Info) error { return nil })
		},
		opExisting: prepare(existingName, func(int) string { return "" }),
		opTidy:     func(ctx context.Context, i int) error { return s.removeAll(ctx, copyNames(i)) },
		opClear: func(ctx context.Context, i int) error {
			return s.removeAll(ctx, append(copyNames(i), volumeName(i), snapshotName(i)))
		},
	}
}

func (s containerd) removeAll(ctx context.Context, keys []string) error {
	for _, key := range keys {
		if err := s.Remove(ctx, key); err != nil && !errdefs.IsNotFound(err) {
			return err
		}
	}
	return nil
}
