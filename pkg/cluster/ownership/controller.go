package ownership

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/klog/v2"

	"github.com/btrfs-csi/btrfs-csi/api/v1alpha1"
	"github.com/btrfs-csi/btrfs-csi/pkg/cluster/client"
	"github.com/btrfs-csi/btrfs-csi/pkg/cluster/node"
)

// doubt is how long the disk of a pool that another node owns may have been moved from there, and not
// be a copy.
const doubt = 2 * time.Minute

// Node is what a Controller needs of its node.
type Node interface {
	node.Pools
	// Exclude keeps the pools with these IDs out of use, each for a reason. Pools that a later call
	// omits may be used again.
	Exclude(reasons map[string]error)
	// Away returns the IDs of the pools that were on this node before.
	Away(ctx context.Context) []string
	// Forget removes a pool from those that Away returns.
	Forget(ctx context.Context, poolID string)
}

// Controller decides, with the controllers of the other nodes, which pools this node owns.
type Controller struct {
	cluster   *client.Cluster
	node      Node
	acquirer  acquirer
	conflicts conflicts
	missing   map[string]bool // owned, but not on this node at the last round; by pool ID

	decide  func() // closes decided
	decided chan struct{}

	mu    sync.RWMutex    // protects owned
	owned map[string]bool // by pool ID
}

// Pool is a pool that this node owns, with its object in the cluster.
type Pool struct {
	node.Pool
	Object *v1alpha1.Pool
}

// Result is the result of one round.
type Result struct {
	Owned []Pool
	// Changed: a pool has another owner than at the last round.
	Changed bool
	// Again: a pool is missing. The next round releases it, and should come soon.
	Again bool
}

// New returns the controller of the pools of a node.
func New(cluster *client.Cluster, node Node) *Controller {
	c := &Controller{
		cluster: cluster, node: node, decided: make(chan struct{}),
		acquirer:  acquirer{cluster: cluster, takenFrom: map[string]string{}},
		conflicts: conflicts{cluster: cluster, exclude: node.Exclude, found: map[string]conflict{}},
	}
	c.decide = sync.OnceFunc(func() { close(c.decided) })
	return c
}

// Owns reports whether this node owns a pool.
func (c *Controller) Owns(poolID string) bool {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.owned[poolID]
}

// own replaces the set of owned pools. It reports whether one of them is new.
func (c *Controller) own(owned map[string]bool) (changed bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for id := range owned {
		changed = changed || !c.owned[id]
	}
	c.owned = owned
	return changed
}

// Decided is closed once the owner of each pool of this node was decided.
func (c *Controller) Decided() <-chan struct{} { return c.decided }

// Undisputed returns the IDs of the pools in use that no other node owns.
func (c *Controller) Undisputed(ctx context.Context) (ids []string) {
	for _, report := range c.node.Pools(ctx) {
		if report.ID != "" && !c.conflicts.has(report.ID) {
			ids = append(ids, report.ID)
		}
	}
	return ids
}

// Reconcile acquires the pools of this node, and releases those that are gone. It must not be called
// concurrently.
func (c *Controller) Reconcile(ctx context.Context) (result Result, err error) {
	reports := c.node.Pools(ctx)
	known, err := c.knownPools(ctx, reports)
	if err != nil {
		return result, err
	}
	c.retryConflicts(ctx, known, reports)
	owned := map[string]bool{}
	for _, report := range reports {
		if report.ID == "" {
			continue
		}
		pool, failed := c.acquire(ctx, known[report.ID], report.ID, report.Name, c.cluster.API.NodeReady)
		switch {
		case failed != nil:
			err = errors.Join(err, failed)
			if c.Owns(report.ID) { // stays so until the cluster answers
				owned[report.ID] = true
			}
		case pool.Spec.NodeName != c.cluster.NodeName:
			result.Changed = c.conflicts.add(ctx, pool, report.Name) || result.Changed
		default:
			owned[report.ID] = true
			result.Owned = append(result.Owned, Pool{report, pool})
		}
	}
	result.Changed = c.own(owned) || result.Changed
	released, failed := c.releaseMissing(ctx, known, owned, reports)
	result.Changed, result.Again = result.Changed || released, len(c.missing) > 0
	err = errors.Join(err, failed, c.forgetMoved(ctx))
	if err == nil {
		c.decide()
	}
	return result, err
}

// acquire makes this node the owner of a pool if the rules allow it, and returns the Pool.
func (c *Controller) acquire(ctx context.Context, have *v1alpha1.Pool, id, name string, alive aliveFunc) (*v1alpha1.Pool, error) {
	return c.acquirer.acquire(ctx, have, candidate{id: id, name: name, owned: c.Owns(id), rival: c.conflicts.owner(id), alive: alive})
}

// knownPools returns the Pools that this node owns and the Pools of the pools on this node, by ID. It
// reads no others, since a cluster may have a thousand.
func (c *Controller) knownPools(ctx context.Context, reports []node.Pool) (map[string]*v1alpha1.Pool, error) {
	owned, err := c.cluster.API.Pools().List(ctx, metav1.ListOptions{
		FieldSelector: fields.OneTermEqualSelector("spec.nodeName", c.cluster.NodeName).String(), ResourceVersion: "0",
	})
	if err != nil {
		return nil, err
	}
	known := map[string]*v1alpha1.Pool{}
	for i := range owned.Items {
		known[owned.Items[i].Name] = &owned.Items[i]
	}
	ids := slices.Collect(maps.Keys(c.conflicts.found))
	for _, report := range reports {
		ids = append(ids, report.ID)
	}
	for _, id := range ids {
		if known[id] != nil || id == "" {
			continue
		}
		pool, err := c.cluster.API.Pools().Get(ctx, id, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		known[id] = pool
	}
	return known, nil
}

// retryConflicts ends a conflict if the pool has left this node, or this node may acquire it now.
func (c *Controller) retryConflicts(ctx context.Context, known map[string]*v1alpha1.Pool, reports []node.Pool) {
	for id, conflict := range c.conflicts.found {
		here := slices.ContainsFunc(reports, func(r node.Pool) bool { return r.Name == conflict.pool && (r.ID == "" || r.ID == id) })
		if here {
			alive := c.cluster.API.NodeReady
			if time.Since(conflict.since) > doubt {
				alive = c.cluster.API.NodeExists // this disk is a copy, and the owner may only be rebooting
			}
			pool, err := c.acquire(ctx, known[id], id, conflict.pool, alive)
			if err != nil {
				continue
			}
			if pool.Spec.NodeName != c.cluster.NodeName {
				c.conflicts.update(pool)
				continue
			}
		}
		delete(known, id) // it is outdated
		c.conflicts.remove(id)
	}
}

// releaseMissing releases the pools that are missing for the second round. Until then their
// filesystem may just be being remounted.
func (c *Controller) releaseMissing(ctx context.Context, known map[string]*v1alpha1.Pool, owned map[string]bool, reports []node.Pool) (released bool, err error) {
	before := c.missing
	c.missing = map[string]bool{}
	for id, pool := range known {
		switch {
		case pool.Spec.NodeName != c.cluster.NodeName || owned[id]:
		case !before[id]:
			c.missing[id] = true
		default:
			failed := c.acquirer.release(ctx, pool, whyRefused(reports, pool.Spec.Pool))
			released = released || failed == nil
			err = errors.Join(err, failed)
		}
	}
	return released, err
}

// whyRefused returns why this node refuses a pool; "" if it does not.
func whyRefused(reports []node.Pool, name string) string {
	for _, report := range reports {
		if report.Name == name && report.ID == "" {
			return report.Message
		}
	}
	return ""
}

// forgetMoved makes the node forget the pools that have moved to another node with their disk.
func (c *Controller) forgetMoved(ctx context.Context) error {
	for _, id := range c.node.Away(ctx) {
		if c.conflicts.has(id) {
			continue // it is still on this node, excluded
		}
		pool, err := c.cluster.API.Pools().Get(ctx, id, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			continue
		}
		if err != nil {
			return err
		}
		if owner := pool.Spec.NodeName; owner != "" && owner != c.cluster.NodeName {
			klog.FromContext(ctx).Info("Forgetting a pool that another node has", "pool", pool.Spec.Pool, "poolID", id, "node", owner)
			c.node.Forget(ctx, id)
		}
	}
	return nil
}
