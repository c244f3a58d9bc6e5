package mirror

import (
	corev1 "k8s.io/api/core/v1"

	"github.com/btrfs-csi/btrfs-csi/pkg/cluster/client"
	"github.com/btrfs-csi/btrfs-csi/pkg/cluster/ownership"
)

const (
	// statePoolReady is the state of a pool with which nothing is wrong.
	statePoolReady = "Ready"
	// stateQuotaInconsistent is a state, and the reason of the Event of each rescan.
	stateQuotaInconsistent = "QuotaInconsistent"
)

// poolEvents records Events on pools.
type poolEvents struct {
	cluster *client.Cluster
	rescans map[string]uint64 // of the quota, that have an Event; by pool ID
}

// recordState records an Event on a pool whose state is not the published one.
func (e poolEvents) recordState(pool ownership.Pool) {
	before := pool.Object.Status.State
	switch {
	case pool.State == before, pool.State == stateQuotaInconsistent: // recordRescans records that
	case pool.State != statePoolReady:
		e.cluster.Events.Eventf(pool.Object, corev1.EventTypeWarning, pool.State, "Pool %q of node %q is %s. %s", pool.Name, e.cluster.NodeName, pool.State, pool.Message)
	case before != "":
		e.cluster.Events.Eventf(pool.Object, corev1.EventTypeNormal, statePoolReady, "Pool %q of node %q is ready again, it was %s", pool.Name, e.cluster.NodeName, before)
	}
}

// recordRescans records an Event for a quota that was inconsistent, also where the state
// does not show it any more.
func (e poolEvents) recordRescans(pool ownership.Pool) {
	if pool.Rescans > e.rescans[pool.ID] {
		e.cluster.Events.Eventf(pool.Object, corev1.EventTypeWarning, stateQuotaInconsistent,
			"The quota of pool %q of node %q was inconsistent, so sizes were not enforced; it is being rescanned, and sizes are enforced again after that", pool.Name, e.cluster.NodeName)
	}
	e.rescans[pool.ID] = pool.Rescans
}
