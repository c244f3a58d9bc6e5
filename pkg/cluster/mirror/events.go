package mirror

import (
	corev1 "k8s.io/api/core/v1"

	"github.com/btrfs-csi/btrfs-csi/pkg/cluster/client"
	"github.com/btrfs-csi/btrfs-csi/pkg/cluster/ownership"
)

const (
	// statePoolReady is the state of a pool without conditions.
	statePoolReady = "Ready"
	// stateQuotaInconsistent is a state, and the reason of an Event for each rescan.
	stateQuotaInconsistent = "QuotaInconsistent"
)

// poolEvents records Events on pools.
type poolEvents struct {
	cluster *client.Cluster
	rescans map[string]uint64 // quota rescans that have an Event, by pool ID
}

// recordState records an Event if the state of a pool differs from the published one.
func (e poolEvents) recordState(pool ownership.Pool) {
	before := pool.Object.Status.State
	switch {
	case pool.State == before, pool.State == stateQuotaInconsistent: // see recordRescans
	case pool.State != statePoolReady:
		e.cluster.Events.Eventf(pool.Object, corev1.EventTypeWarning, pool.State, "Pool %q of node %q is %s. %s", pool.Name, e.cluster.NodeName, pool.State, pool.Message)
	case before != "":
		e.cluster.Events.Eventf(pool.Object, corev1.EventTypeNormal, statePoolReady, "Pool %q of node %q is ready again, it was %s", pool.Name, e.cluster.NodeName, before)
	}
}

// recordRescans records an Event for a quota that was inconsistent, even if it is consistent again.
func (e poolEvents) recordRescans(pool ownership.Pool) {
	if pool.Rescans > e.rescans[pool.ID] {
		e.cluster.Events.Eventf(pool.Object, corev1.EventTypeWarning, stateQuotaInconsistent,
			"The quota of pool %q of node %q was inconsistent, so sizes were not enforced; it is being rescanned, and sizes are enforced again after that", pool.Name, e.cluster.NodeName)
	}
	e.rescans[pool.ID] = pool.Rescans
}
