package driver

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
	"github.com/btrfs-csi/btrfs-csi/pkg/pool"
	"github.com/btrfs-csi/btrfs-csi/pkg/snapshot"
)

// Cluster is what the driver asks about volumes and snapshots of other nodes.
// Its errors are answered to the CO as they are if they carry a grpc code, else
// with UNAVAILABLE. All may be called at the same time.
type Cluster interface {
	// Owner returns the node that a volume or snapshot is on, or was last, and the
	// ID of its pool; empty where the cluster knows of none.
	Owner(ctx context.Context, ref meta.Ref) (node, poolID string, err error)
	// KeptBy returns the names of the objects of the cluster that stand for a volume
	// or snapshot and do not go when it is deleted.
	KeptBy(ctx context.Context, ref meta.Ref) ([]string, error)
	// Expand has the node that owns a volume grow it, waits for that, and
	// returns the new size in bytes.
	Expand(ctx context.Context, volume string, want snapshot.Range) (int64, error)
}

// alone is the cluster of a driver that has none.
type alone struct{}

func (alone) Owner(context.Context, meta.Ref) (node, poolID string, err error) { return "", "", nil }
func (alone) KeptBy(context.Context, meta.Ref) ([]string, error)               { return nil, nil }
func (alone) Expand(_ context.Context, volume string, _ snapshot.Range) (int64, error) {
	return 0, fmt.Errorf("%s: %w on this node", meta.Volume(volume), snapshot.ErrNotFound)
}

// elsewhere returns the other node that owns ref, "" for none. It fails for what
// is in a pool of this node that is away.
func (d *Driver) elsewhere(ctx context.Context, ref meta.Ref) (string, error) {
	owner, poolID, err := d.cluster.Owner(ctx, ref)
	if err != nil {
		return "", unavailable(fmt.Errorf("%s is not on this node, and where it is cannot be looked up: %w", ref, err))
	}
	if owner != d.options.NodeID {
		return owner, nil
	}
	if poolID != "" && !slices.Contains(d.poolIDs(), poolID) {
		return "", fmt.Errorf("%s: was in pool %s of this node: %w: mount its filesystem", ref, poolID, pool.ErrAway)
	}
	return "", nil // the mirror lags behind
}

// notHere reports whether another node may have what the engine has not: its
// pool may have been moved there.
func notHere(err error) bool {
	return errors.Is(err, snapshot.ErrNotFound) || errors.Is(err, pool.ErrAway)
}

// orElsewhere turns the answer that a source is not here into one that has the
// scheduler choose again, where another node has the source.
func (d *Driver) orElsewhere(ctx context.Context, source meta.Ref, err error) error {
	if source.IsZero() || !notHere(err) {
		return err
	}
	owner, lookup := d.elsewhere(ctx, source)
	if lookup != nil {
		return lookup
	}
	if owner == "" {
		return err
	}
	return answer(codes.ResourceExhausted, "the source, %s, is on node %q: its copies are made there, not on node %q", source, owner, d.options.NodeID)
}

// checkHere fails for what is on another node, and reports whether it was found on this one.
func (d *Driver) checkHere(ctx context.Context, ref meta.Ref) (found bool, err error) {
	if _, err := d.engine.Stat(ctx, ref); !notHere(err) {
		return err == nil, nil
	}
	owner, err := d.elsewhere(ctx, ref)
	if err != nil || owner == "" {
		return false, err
	}
	return false, answer(codes.Unavailable, "%s is on node %q, not on node %q: it has to be deleted there", ref, owner, d.options.NodeID)
}

// checkUnkept fails for what something in the cluster still stands for.
func (d *Driver) checkUnkept(ctx context.Context, ref meta.Ref) error {
	names, err := d.cluster.KeptBy(ctx, ref)
	if err != nil {
		return unavailable(fmt.Errorf("%s: whether the cluster wants it still cannot be looked up: %w", ref, err))
	}
	if len(names) == 0 {
		return nil
	}
	kind := "PersistentVolume"
	if ref.Class == meta.Snapshots {
		kind = "VolumeSnapshotContent"
	}
	return precondition("%s: the %s %q stands for it too, and does not go with it: delete that one first", ref, kind, names)
}

// expand grows a volume here, or has its owner do it.
func (d *Driver) expand(ctx context.Context, volume string, want snapshot.Range) (bytes int64, err error) {
	entry, err := d.engine.Resize(ctx, volume, want)
	if !notHere(err) {
		return entry.Size, err
	}
	if errors.Is(err, pool.ErrAway) {
		if owner, lookup := d.elsewhere(ctx, meta.Volume(volume)); owner == "" || lookup != nil {
			return 0, err
		}
	}
	bytes, err = d.cluster.Expand(ctx, volume, want)
	return bytes, unavailable(err)
}

// unavailable gives the failure to reach the cluster its code, since it passes;
// what has one or is the engine's keeps it.
func unavailable(err error) error {
	var has interface{ GRPCStatus() *status.Status }
	if err == nil || errors.As(err, &has) || errors.Is(err, snapshot.ErrNotFound) ||
		errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return answer(codes.Unavailable, "%s", err)
}
