package ownership

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/klog/v2"

	"github.com/btrfs-csi/btrfs-csi/api/v1alpha1"
	"github.com/btrfs-csi/btrfs-csi/pkg/cluster/client"
)

// warnAgain is the time between two Events of one conflict. A cluster keeps Events for an hour.
const warnAgain = 30 * time.Minute

// conflicts are the pools of this node that another node owns, by pool ID. Both nodes have a copy of
// one disk. This node excludes its copy, so that no volume is served twice.
type conflicts struct {
	cluster *client.Cluster
	exclude func(reasons map[string]error)
	found   map[string]conflict
}

type conflict struct {
	pool   string // its name
	owner  string // the node that owns it
	since  time.Time
	warned time.Time // by an Event
	reason error
}

func (c *conflicts) has(id string) bool { return c.owner(id) != "" }

// owner returns the other node that owns a pool, "" for none.
func (c *conflicts) owner(id string) string { return c.found[id].owner }

// add excludes a pool. It reports whether that is new.
func (c *conflicts) add(ctx context.Context, owners *v1alpha1.Pool, name string) bool {
	if c.has(owners.Name) {
		return false // the engine is about to drop it
	}
	owner := owners.Spec.NodeName
	reason := fmt.Errorf("node %q serves a pool with the same ID %s: a copy of its disk? On one of the two nodes unmount it, "+
		"or remove its pool.json and all volumes and snapshots in it, to make it a pool of its own; if that node no longer has the disk and its driver does not run, "+
		"kubectl delete pools.btrfs-csi.github.io %s", owner, owners.Name, owners.Name)
	c.found[owners.Name] = c.warn(owners, conflict{pool: name, owner: owner, since: time.Now(), reason: reason})
	c.excludeAll()
	klog.FromContext(ctx).Error(reason, "Pool excluded", "pool", name)
	return true
}

// update records the present owner of a pool.
func (c *conflicts) update(owners *v1alpha1.Pool) {
	conflict := c.found[owners.Name]
	conflict.owner = owners.Spec.NodeName
	c.found[owners.Name] = c.warn(owners, conflict)
}

func (c *conflicts) remove(id string) {
	delete(c.found, id)
	c.excludeAll()
}

func (c *conflicts) excludeAll() {
	reasons := map[string]error{}
	for id, conflict := range c.found {
		reasons[id] = conflict.reason
	}
	c.exclude(reasons)
}

// warn records an Event on the Pool, and repeats it before the cluster drops the last one.
func (c *conflicts) warn(owners *v1alpha1.Pool, conflict conflict) conflict {
	if time.Since(conflict.warned) < warnAgain {
		return conflict
	}
	conflict.warned = time.Now()
	c.cluster.Events.Eventf(owners, corev1.EventTypeWarning, "OwnershipConflict",
		"Node %q has a pool %q with the ID of this one and does not serve it: %v", c.cluster.NodeName, conflict.pool, conflict.reason)
	return conflict
}
