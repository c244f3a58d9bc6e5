package snapshot

import (
	"context"
	"fmt"

	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
)

// lock keeps concurrent operations on one volume or snapshot apart. An operation locks what it
// makes or changes, and shares the lock of its source, unless that is zero, so that many snapshots
// of one volume run concurrently. It waits for its turn, and gets ErrBusy if that takes too long.
func (e *Engine) lock(ctx context.Context, exclusive, shared meta.Ref) (release func(), err error) {
	if shared.IsZero() {
		return e.lockAll(ctx, []meta.Ref{exclusive}, nil)
	}
	return e.lockAll(ctx, []meta.Ref{exclusive}, []meta.Ref{shared})
}

// lockAll is lock for several. None may occur twice.
func (e *Engine) lockAll(ctx context.Context, exclusive, shared []meta.Ref) (release func(), err error) {
	release, busy, ok := e.locks.Acquire(ctx, exclusive, shared)
	if !ok {
		return nil, fmt.Errorf("%s: %w", busy, ErrBusy)
	}
	return release, nil
}
