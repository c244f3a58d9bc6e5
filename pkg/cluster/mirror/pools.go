package mirror

import (
	"context"
	"errors"

	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/btrfs-csi/btrfs-csi/api/v1alpha1"
	"github.com/btrfs-csi/btrfs-csi/pkg/cluster/client"
	"github.com/btrfs-csi/btrfs-csi/pkg/cluster/node"
	"github.com/btrfs-csi/btrfs-csi/pkg/cluster/ownership"
	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
)

// Pools publishes the state of pools, with Events.
type Pools struct {
	cluster *client.Cluster
	node    node.Reader
	events  poolEvents
}

// NewPools returns a publisher of the pools of node.
func NewPools(cluster *client.Cluster, node node.Reader) *Pools {
	return &Pools{cluster, node, poolEvents{cluster, map[string]uint64{}}}
}

// Publish writes the state of the pools that this node owns, if it has changed.
func (p *Pools) Publish(ctx context.Context, owned []ownership.Pool) (err error) {
	counts := p.countSubvolumes(ctx)
	for _, pool := range owned {
		err = errors.Join(err, p.publish(ctx, pool, counts[pool.ID]))
	}
	return err
}

func (p *Pools) publish(ctx context.Context, pool ownership.Pool, subvolumes int64) error {
	have := pool.Object
	p.events.recordRescans(pool)
	status := v1alpha1.PoolStatus{
		State: pool.State, Message: pool.Message, Quota: pool.Quota,
		Size:       resource.NewQuantity(pool.Size, resource.BinarySI),
		Available:  resource.NewQuantity(coarse(pool.Available, pool.Size), resource.BinarySI),
		Subvolumes: subvolumes,
	}
	if equality.Semantic.DeepEqual(have.Status, status) {
		return nil
	}
	p.events.recordState(pool)
	have = have.DeepCopy()
	have.Status = status
	_, err := p.cluster.API.Pools().UpdateStatus(ctx, have, metav1.UpdateOptions{})
	return err
}

// countSubvolumes returns the number of volumes and snapshots by pool ID.
func (p *Pools) countSubvolumes(ctx context.Context) map[string]int64 {
	counts := map[string]int64{}
	for _, class := range []meta.Class{meta.Volumes, meta.Snapshots} {
		_ = p.node.Walk(ctx, class, func(e meta.Entry) bool { // a pool that cannot be listed counts as empty
			counts[e.PoolID]++
			return true
		})
	}
	return counts
}
