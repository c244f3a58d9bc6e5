package snapshotter

import (
	"errors"
	"fmt"

	"github.com/containerd/errdefs"

	"github.com/btrfs-csi/btrfs-csi/pkg/pool"
	"github.com/btrfs-csi/btrfs-csi/pkg/snapshot"
)

// classes are containerd's classes of the engine's errors. The first that
// matches counts: where work may be left behind, that is what matters.
var classes = []struct{ engine, class error }{
	{snapshot.ErrUnfinished, errdefs.ErrUnavailable},
	{snapshot.ErrBusy, errdefs.ErrUnavailable},
	{pool.ErrAway, errdefs.ErrUnavailable},
	{snapshot.ErrNoPool, errdefs.ErrUnavailable},
	{snapshot.ErrNotFound, errdefs.ErrNotFound},
	{snapshot.ErrExists, errdefs.ErrAlreadyExists},
	{snapshot.ErrInvalid, errdefs.ErrInvalidArgument},
	{snapshot.ErrOutOfRange, errdefs.ErrOutOfRange},
	{pool.ErrNoSpace, errdefs.ErrResourceExhausted},
	{snapshot.ErrNested, errdefs.ErrFailedPrecondition},
	{pool.ErrReadOnly, errdefs.ErrFailedPrecondition},
	{pool.ErrForeign, errdefs.ErrFailedPrecondition},
	{snapshot.ErrAmbiguous, errdefs.ErrFailedPrecondition},
	{snapshot.ErrOutside, errdefs.ErrFailedPrecondition},
	{snapshot.ErrLost, errdefs.ErrDataLoss},
	{snapshot.ErrUnreadable, errdefs.ErrDataLoss},
}

// classify gives an error of the engine its class, beside what it is.
func classify(err error) error {
	if err == nil {
		return nil
	}
	for _, c := range classes {
		if errors.Is(err, c.engine) {
			return fmt.Errorf("%w: %w", err, c.class)
		}
	}
	return err
}
