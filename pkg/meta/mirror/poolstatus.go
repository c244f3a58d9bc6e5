package mirror

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/btrfs-csi/btrfs-csi/api/v1alpha1"
	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
)

const (
	// statePoolReady is the state of a pool with which nothing is wrong.
	statePoolReady = "Ready"
	// stateQuotaInconsistent is a state, and the reason of the Event of each rescan.
	stateQuotaInconsistent = "QuotaInconsistent"
)

// PoolsNode is what the PoolPublisher needs of its node.
type PoolsNode interface {
	Walk(ctx context.Context, class meta.Class, fn func(meta.Entry) bool) error
}

// PoolPublisher writes the state of pools to their Pools.
type PoolPublisher struct {
	cluster *Cluster
	node    PoolsNode
	rescans map[string]uint64 // of the quota, that have an Event; by pool ID
}

// NewPoolPublisher returns a publisher of the pools of node.
func NewPoolPublisher(cluster *Cluster, node PoolsNode) *PoolPublisher {
	return &PoolPublisher{cluster, node, map[string]uint64{}}
}

// Publish writes the state of the pools that this node owns, where it has changed.
func (p *PoolPublisher) Publish(ctx context.Context, owned []OwnedPool) (err error) {
	counts := p.countSubvolumes(ctx)
	for _, pool := range owned {
		err = keepFirst(err, p.publish(ctx, pool, counts[pool.ID]))
	}
	return err
}

func (p *PoolPublisher) publish(ctx context.Context, pool OwnedPool, subvolumes int64) error {
	have := pool.Object
	p.recordRescans(pool)
	status := v1alpha1.PoolStatus{
		State: pool.State, Message: pool.Message, Quota: pool.Quota,
		Size:       resource.NewQuantity(pool.Size, resource.BinarySI),
		Available:  resource.NewQuantity(coarse(pool.Available, pool.Size), resource.BinarySI),
		Subvolumes: subvolumes,
	}
	if equality.Semantic.DeepEqual(have.Status, status) {
		return nil
	}
	p.recordState(pool)
	have = have.DeepCopy()
	have.Status = status
	_, err := p.cluster.API.Pools().UpdateStatus(ctx, have, metav1.UpdateOptions{})
	return err
}

// recordState records an Event on a pool whose state is not the published one.
func (p *PoolPublisher) recordState(pool OwnedPool) {
	before := pool.Object.Status.State
	switch {
	case pool.State == before, pool.State == stateQuotaInconsistent: // recordRescans records that
	case pool.State != statePoolReady:
		p.cluster.Events.Eventf(pool.Object, corev1.EventTypeWarning, pool.State, "Pool %q of node %q is %s. %s", pool.Name, p.cluster.NodeName, pool.State, pool.Message)
	case before != "":
		p.cluster.Events.Eventf(pool.Object, corev1.EventTypeNormal, statePoolReady, "Pool %q of node %q is ready again, it was %s", pool.Name, p.cluster.NodeName, before)
	}
}

// recordRescans records an Event for a quota that was inconsistent, also where the state
// does not show it any more.
func (p *PoolPublisher) recordRescans(pool OwnedPool) {
	if pool.Rescans > p.rescans[pool.ID] {
		p.cluster.Events.Eventf(pool.Object, corev1.EventTypeWarning, stateQuotaInconsistent,
			"The quota of pool %q of node %q was inconsistent, so its limits were void; it is rescanned, and they hold when that is done", pool.Name, p.cluster.NodeName)
	}
	p.rescans[pool.ID] = pool.Rescans
}

// countSubvolumes returns the number of volumes and snapshots by pool ID.
func (p *PoolPublisher) countSubvolumes(ctx context.Context) map[string]int64 {
	counts := map[string]int64{}
	for _, class := range []meta.Class{meta.Volumes, meta.Snapshots} {
		_ = p.node.Walk(ctx, class, func(e meta.Entry) bool { // what cannot be listed is not counted
			counts[e.PoolID]++
			return true
		})
	}
	return counts
}
