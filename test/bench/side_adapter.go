package main

import (
	"context"
	"errors"

	"github.com/btrfs-csi/btrfs-csi/test/conformance/snapshotter"
)

// adapter is the engine behind containerd's interface, as a runtime would use it. Its Commit also
// removes the active snapshot durably, and so needs two commits of the filesystem.
type adapter struct {
	containerd
	engine *engine
}

func openAdapter(ctx context.Context, r *rig) (side, error) {
	e, err := newEngine(ctx, r, nil)
	if err != nil {
		return nil, err
	}
	s, err := snapshotter.New(ctx, e.Engine, r.State)
	if err != nil {
		return nil, errors.Join(err, e.close())
	}
	return adapter{containerd{s}, e}, nil
}

func (a adapter) close() error { return errors.Join(a.containerd.close(), a.engine.close()) }
