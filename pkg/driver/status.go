package driver

import (
	"context"
	"errors"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/btrfs-csi/btrfs-csi/pkg/mount"
	"github.com/btrfs-csi/btrfs-csi/pkg/pool"
	"github.com/btrfs-csi/btrfs-csi/pkg/snapshot"
)

// meanings maps errors of the engine, of pools and of mounts to codes. The first match
// counts. ErrUnfinished comes first: work may be left behind, and only after ABORTED do
// sidecars retry instead of forgetting the volume.
var meanings = []struct {
	err  error
	code codes.Code
}{
	{snapshot.ErrUnfinished, codes.Aborted},
	{context.Canceled, codes.Canceled},
	{context.DeadlineExceeded, codes.DeadlineExceeded},
	{snapshot.ErrBusy, codes.Aborted},
	{snapshot.ErrNotFound, codes.NotFound},
	{snapshot.ErrExists, codes.AlreadyExists},
	{snapshot.ErrInvalid, codes.InvalidArgument},
	{snapshot.ErrOutOfRange, codes.OutOfRange},
	{snapshot.ErrApart, codes.Aborted},
	{snapshot.ErrPools, codes.FailedPrecondition},
	{snapshot.ErrIncomplete, codes.FailedPrecondition},
	{snapshot.ErrNested, codes.FailedPrecondition},
	{pool.ErrFrozen, codes.FailedPrecondition},
	{pool.ErrForeign, codes.FailedPrecondition},
	{snapshot.ErrUnreadable, codes.FailedPrecondition},
	{snapshot.ErrAmbiguous, codes.FailedPrecondition},
	{pool.ErrNoSpace, codes.ResourceExhausted},
	{snapshot.ErrNoPool, codes.ResourceExhausted},
	{snapshot.ErrNotAllowed, codes.ResourceExhausted},
	{pool.ErrUnsupported, codes.ResourceExhausted}, // another node may have a later kernel
	{pool.ErrSwapFile, codes.FailedPrecondition},
	{pool.ErrInUse, codes.FailedPrecondition},
	{snapshot.ErrMadeReadOnly, codes.FailedPrecondition},
	{pool.ErrReadOnly, codes.Unavailable},
	{pool.ErrAway, codes.Unavailable},
	{snapshot.ErrOutside, codes.FailedPrecondition},
	{snapshot.ErrLost, codes.DataLoss},
	{mount.ErrInvalid, codes.InvalidArgument},
	{mount.ErrNoFilesystem, codes.FailedPrecondition},
	{mount.ErrInTheWay, codes.FailedPrecondition},
	{mount.ErrSilent, codes.Unavailable},
}

// statusOf adds a code to an error without one. Unknown errors become ABORTED: the
// provisioner takes INTERNAL as final and would leak a volume.
func statusOf(err error) error {
	if err == nil {
		return nil
	}
	if _, ok := status.FromError(err); ok {
		return err
	}
	for _, m := range meanings {
		if errors.Is(err, m.err) {
			return status.Error(m.code, err.Error())
		}
	}
	return status.Error(codes.Aborted, err.Error())
}

// Code returns the gRPC code of an error of the engine.
func Code(err error) codes.Code { return status.Code(statusOf(err)) }

// statusOfCreate is statusOf for requests that another node could serve. A read-only pool
// is then RESOURCE_EXHAUSTED, like a full one, and the scheduler tries another node.
func statusOfCreate(err error) error {
	if errors.Is(err, pool.ErrReadOnly) && !errors.Is(err, snapshot.ErrUnfinished) {
		return status.Error(codes.ResourceExhausted, err.Error())
	}
	return statusOf(err)
}
