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

// doubt is how long a pool that another node owns may be a disk that was moved from
// there, and not a copy of it.
const doubt = 2 * time.Minute

// Node is what a Controller needs of its node.
type Node interface {
	node.Pools
	// Exclude keeps the pools with these IDs out of use, each for a reason. Those of the
	// last call may be used again.
	Exclude(reasons map[string]error)
	// Away returns the IDs of the pools that were on this node and are not now.
	Away(ctx context.Context) []string
	// Forget drops a pool that is away: it is not expected back.
	Forget(ctx context.Context, poolID string)
}

// Controller decides, with the controllers of the other nodes, which pools this node owns.
type Controller struct {
	cluster   *client.Cluster
	node      Node
	acquirer  acquirer
	conflicts conflicts
	missing   map[string]bool // owned, and not here at the last look; by pool ID

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

// Result is what one look at the pools found.
type Result struct {
	Owned []Pool
	// Changed is set if a pool has another owner than at the last look.
	Changed bool
	// Again is set if a pool is missing: it is released at the next look, which should come
	// soon.
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

// own replaces the set of owned pools, and reports whether one is new.
func (c *Controller) own(owned map[string]bool) (changed bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for id := range owned {
		changed = changed || !c.owned[id]
	}
	c.owned = owned
	return changed
}

// Decided is closed when the cluster has said of each pool of this node whose it is.
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

// Reconcile acquires the pools of this node, and releases those that are gone. It must not
// run twice at the same time.
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
			if c.Owns(report.ID) { // until the cluster says otherwise
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

// acquire returns the Pool of an ID with its owner, which is this node if it may be.
func (c *Controller) acquire(ctx context.Context, have *v1alpha1.Pool, id, name string, alive aliveFunc) (*v1alpha1.Pool, error) {
	return c.acquirer.acquire(ctx, have, candidate{id: id, name: name, owned: c.Owns(id), rival: c.conflicts.owner(id), alive: alive})
}

// knownPools returns the Pools that this node owns, and those of the pools that are here,
// by ID. It asks for no others: there may be a thousand.
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

// retryConflicts ends the conflicts where the other node has released the pool, or it is
// not here any more.
func (c *Controller) retryConflicts(ctx context.Context, known map[string]*v1alpha1.Pool, reports []node.Pool) {
	for id, conflict := range c.conflicts.found {
		here := slices.ContainsFunc(reports, func(r node.Pool) bool { return r.Name == conflict.pool && (r.ID == "" || r.ID == id) })
		if here {
			alive := c.cluster.API.NodeReady
			if time.Since(conflict.since) > doubt {
				alive = c.cluster.API.NodeExists // the pool is a copy, and its owner may only be rebooting
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
		delete(known, id) // it was read before
		c.conflicts.remove(id)
	}
}

// releaseMissing releases the pools that are not here at the second look in a row: a
// filesystem may be mounted anew.
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

// whyRefused returns why the pool of a name is refused; "" where there is none.
func whyRefused(reports []node.Pool, name string) string {
	for _, report := range reports {
		if report.Name == name && report.ID == "" {
			return report.Message
		}
	}
	return ""
}

// forgetMoved has the node forget pools that are not here and that another node owns now:
// their disk was moved there.
func (c *Controller) forgetMoved(ctx context.Context) error {
	for _, id := range c.node.Away(ctx) {
		if c.conflicts.has(id) {
			continue // it is here still
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
