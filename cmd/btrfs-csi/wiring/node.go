package wiring

import (
	"context"
	"errors"
	"maps"
	"slices"

	"google.golang.org/grpc/status"
	"k8s.io/klog/v2"

	"github.com/btrfs-csi/btrfs-csi/pkg/cluster"
	"github.com/btrfs-csi/btrfs-csi/pkg/cluster/node"
	"github.com/btrfs-csi/btrfs-csi/pkg/driver"
	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
	"github.com/btrfs-csi/btrfs-csi/pkg/pool"
	"github.com/btrfs-csi/btrfs-csi/pkg/snapshot"
)

// localNode implements cluster.Node for the controllers.
type localNode struct {
	engine engine
	driver *driver.Driver
}

// engine is the part of *snapshot.Engine that localNode uses. It has no Remove: the cluster
// deletes through the driver, which checks mounts first.
type engine interface {
	Stat(ctx context.Context, ref meta.Ref) (meta.Entry, error)
	Walk(ctx context.Context, class meta.Class, after string, fn func(meta.Entry) bool) error
	Usage(ctx context.Context, ref meta.Ref) (pool.Usage, error)
	Resize(ctx context.Context, volume string, want snapshot.Range) (meta.Entry, error)
	Pools(ctx context.Context) []pool.Status
	Away() (map[string]string, error)
	Forget(poolID string) error
	Exclude(reasons map[string]error)
}

var _ cluster.Node = (*localNode)(nil)

func (n *localNode) Look(ctx context.Context, ref meta.Ref) (meta.Entry, node.State) {
	entry, err := n.engine.Stat(ctx, ref)
	switch {
	case err == nil:
		return entry, node.Ready
	case errors.Is(err, snapshot.ErrNotFound), errors.Is(err, snapshot.ErrForgotten): // the cluster itself knows the pool of each object
		return entry, node.Gone
	case errors.Is(err, snapshot.ErrLost):
		return entry, node.Lost
	}
	return entry, node.Away
}

func (n *localNode) Walk(ctx context.Context, class meta.Class, fn func(meta.Entry) bool) error {
	return n.engine.Walk(ctx, class, "", fn)
}

func (n *localNode) Used(ctx context.Context, ref meta.Ref) (int64, bool) {
	usage, err := n.engine.Usage(ctx, ref)
	return usage.Used, err == nil
}

func (n *localNode) Pools(ctx context.Context) []node.Pool {
	var reports []node.Pool
	for _, p := range n.engine.Pools(ctx) {
		state, message := p.State()
		reports = append(reports, node.Pool{
			Name: p.Name, ID: p.ID, State: state, Message: message, Quota: string(p.Quota.Mode),
			Size: p.Space.Size, Available: p.Space.Available, Rescans: p.Rescans,
		})
	}
	return reports
}

func (n *localNode) Away(ctx context.Context) []string {
	away, err := n.engine.Away()
	if err != nil {
		klog.FromContext(ctx).Error(err, "Pools that are away cannot be read")
	}
	return slices.Sorted(maps.Keys(away))
}

func (n *localNode) Forget(ctx context.Context, poolID string) {
	if err := n.engine.Forget(poolID); err != nil {
		klog.FromContext(ctx).Error(err, "Pool cannot be forgotten", "poolID", poolID)
	}
}

func (n *localNode) Expand(ctx context.Context, volume string, size int64) (int64, error) {
	entry, err := n.engine.Resize(ctx, volume, snapshot.Range{Required: size})
	if err != nil {
		return 0, status.Error(driver.Code(err), err.Error())
	}
	return entry.Size, nil
}

func (n *localNode) CommitGroup(ctx context.Context, name string, volumes []string, parameters map[string]string) ([]meta.Entry, error) {
	entries, err := n.driver.CommitGroup(ctx, name, volumes, parameters)
	return entries, coded(err)
}

func (n *localNode) Group(ctx context.Context, id string, snapshots []string) ([]meta.Entry, error) {
	entries, err := n.driver.Group(ctx, id, snapshots)
	return entries, coded(err)
}

func (n *localNode) DeleteGroup(ctx context.Context, id string, snapshots []string) error {
	return coded(n.driver.DeleteGroup(ctx, id, snapshots))
}

// coded adds the code of the driver to an error.
func coded(err error) error {
	if err == nil {
		return nil
	}
	return status.Error(driver.Code(err), status.Convert(err).Message())
}

func (n *localNode) Exclude(reasons map[string]error) { n.engine.Exclude(reasons) }

// Remove deletes like a CSI request, and so refuses a mounted volume.
func (n *localNode) Remove(ctx context.Context, ref meta.Ref) error { return n.driver.Delete(ctx, ref) }

// otherNodes implements driver.Cluster.
type otherNodes struct{ *cluster.Manager }

var _ driver.Cluster = otherNodes{}

func (c otherNodes) Expand(ctx context.Context, volume string, want snapshot.Range) (int64, error) {
	return c.Manager.Expand(ctx, volume, want.Least())
}
