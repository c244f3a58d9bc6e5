package driver

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	"github.com/btrfs-csi/btrfs-csi/pkg/mount"
	"github.com/btrfs-csi/btrfs-csi/pkg/pool"
	"github.com/btrfs-csi/btrfs-csi/pkg/snapshot"
)

func TestCodes(t *testing.T) {
	unforeseen := errors.New("unforeseen")
	for name, test := range map[string]struct {
		err         error
		code, creat codes.Code
	}{
		"not found":     {snapshot.ErrNotFound, codes.NotFound, codes.NotFound},
		"exists":        {snapshot.ErrExists, codes.AlreadyExists, codes.AlreadyExists},
		"invalid":       {snapshot.ErrInvalid, codes.InvalidArgument, codes.InvalidArgument},
		"out of range":  {snapshot.ErrOutOfRange, codes.OutOfRange, codes.OutOfRange},
		"nested":        {snapshot.ErrNested, codes.FailedPrecondition, codes.FailedPrecondition},
		"foreign":       {pool.ErrForeign, codes.FailedPrecondition, codes.FailedPrecondition},
		"unreadable":    {snapshot.ErrUnreadable, codes.FailedPrecondition, codes.FailedPrecondition},
		"ambiguous":     {snapshot.ErrAmbiguous, codes.FailedPrecondition, codes.FailedPrecondition},
		"busy":          {snapshot.ErrBusy, codes.Aborted, codes.Aborted},
		"no space":      {pool.ErrNoSpace, codes.ResourceExhausted, codes.ResourceExhausted},
		"no pool":       {snapshot.ErrNoPool, codes.ResourceExhausted, codes.ResourceExhausted},
		"read-only":     {pool.ErrReadOnly, codes.Unavailable, codes.ResourceExhausted},
		"pool away":     {pool.ErrAway, codes.Unavailable, codes.Unavailable},
		"pool silent":   {pool.ErrSilent, codes.Unavailable, codes.Unavailable},
		"frozen":        {pool.ErrFrozen, codes.FailedPrecondition, codes.FailedPrecondition},
		"mount flags":   {mount.ErrInvalid, codes.InvalidArgument, codes.InvalidArgument},
		"no target":     {mount.ErrOutside, codes.InvalidArgument, codes.InvalidArgument},
		"in the way":    {mount.ErrInTheWay, codes.FailedPrecondition, codes.FailedPrecondition},
		"silent table":  {mount.ErrSilent, codes.Unavailable, codes.Unavailable},
		"lost":          {snapshot.ErrLost, codes.DataLoss, codes.DataLoss},
		"cancelled":     {context.Canceled, codes.Canceled, codes.Canceled},
		"deadline":      {context.DeadlineExceeded, codes.DeadlineExceeded, codes.DeadlineExceeded},
		"unforeseen":    {unforeseen, codes.Aborted, codes.Aborted},
		"of its own":    {precondition("no"), codes.FailedPrecondition, codes.FailedPrecondition},
		"undone badly":  {undone(precondition("no"), unforeseen), codes.Aborted, codes.Aborted},
		"undone":        {undone(precondition("no"), nil), codes.FailedPrecondition, codes.FailedPrecondition},
		"undone by own": {undone(unforeseen, precondition("no")), codes.Aborted, codes.Aborted},
		"unfinished beats all": {
			fmt.Errorf("%w: %w: %w", snapshot.ErrUnfinished, pool.ErrReadOnly, pool.ErrNoSpace), codes.Aborted, codes.Aborted,
		},
	} {
		t.Run(name, func(t *testing.T) {
			err := test.err
			if name != "of its own" && name != "undone" {
				err = fmt.Errorf("volume %q: %w", "pvc-1", err)
			}
			for method, code := range map[string]codes.Code{
				"/csi.v1.Node/NodeStageVolume": test.code, "/csi.v1.Controller/CreateVolume": test.creat, "/csi.v1.Controller/CreateSnapshot": test.creat,
			} {
				_, got := translate(t.Context(), nil, &grpc.UnaryServerInfo{FullMethod: method}, func(context.Context, any) (any, error) { return nil, err })
				wantCode(t, got, code)
			}
		})
	}
}
