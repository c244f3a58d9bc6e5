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

// Cluster answers questions about volumes and snapshots of other nodes. The CO gets its
// errors with their gRPC code, or else with UNAVAILABLE. All methods may be called
// concurrently.
type Cluster interface {
	// Owner returns the current or last node of a volume or snapshot, and the ID of its
	// pool. Both are empty if the cluster does not know it.
	Owner(ctx context.Context, ref meta.Ref) (node, poolID string, err error)
	// KeptBy returns the names of PersistentVolumes or VolumeSnapshotContents that use a
	// volume or snapshot and would outlive its deletion.
	KeptBy(ctx context.Context, ref meta.Ref) ([]string, error)
	// Expand makes the node that owns a volume expand it, waits for the result, and returns
	// the new size in bytes.
	Expand(ctx context.Context, volume string, want snapshot.Range) (int64, error)
}

// noCluster is the Cluster of a driver without one.
type noCluster struct{}

func (noCluster) Owner(context.Context, meta.Ref) (node, poolID string, err error) {
	return "", "", nil
}
func (noCluster) KeptBy(context.Context, meta.Ref) ([]string, error) { return nil, nil }
func (noCluster) Expand(_ context.Context, volume string, _ snapshot.Range) (int64, error) {
	return 0, fmt.Errorf("%s: %w on this node", meta.Volume(volume), snapshot.ErrNotFound)
}

// elsewhere returns the other node that owns ref, or "". It returns pool.ErrAway if ref is
// in an absent pool of this node.
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
	return "", nil // the object in the cluster is outdated
}

// notHere reports whether err allows that another node has the object, because its pool may
// have moved there.
func notHere(err error) bool {
	return errors.Is(err, snapshot.ErrNotFound) || errors.Is(err, pool.ErrAway)
}

// orElsewhere replaces err, the error of a create, by RESOURCE_EXHAUSTED if another node
// has the source. The scheduler then selects another node.
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

// checkHere returns an error if ref is on another node. found is true if it is on this
// node.
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

// checkUnkept returns FAILED_PRECONDITION if another object of the cluster still uses ref.
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

// expand expands a volume on this node, or makes its owner do it.
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

// unavailable adds UNAVAILABLE to an error of the cluster, so that the CO retries. Errors
// with a code, snapshot.ErrNotFound and context errors stay unchanged.
func unavailable(err error) error {
	var has interface{ GRPCStatus() *status.Status }
	if err == nil || errors.As(err, &has) || errors.Is(err, snapshot.ErrNotFound) ||
		errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return answer(codes.Unavailable, "%s", err)
}
