package snapshotter

import (
	"errors"
	"fmt"

	"github.com/containerd/errdefs"

	"github.com/btrfs-csi/btrfs-csi/pkg/pool"
	"github.com/btrfs-csi/btrfs-csi/pkg/snapshot"
)

// classes maps errors of the engine to classes of containerd. The first match counts, so the errors of
// unfinished work come first.
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

// classify adds the class of containerd to an error of the engine.
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
