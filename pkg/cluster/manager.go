package cluster

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"

	"github.com/btrfs-csi/btrfs-csi/pkg/cluster/client"
	"github.com/btrfs-csi/btrfs-csi/pkg/cluster/expansion"
	"github.com/btrfs-csi/btrfs-csi/pkg/cluster/mirror"
	"github.com/btrfs-csi/btrfs-csi/pkg/cluster/orphans"
	"github.com/btrfs-csi/btrfs-csi/pkg/cluster/ownership"
	"github.com/btrfs-csi/btrfs-csi/pkg/cluster/placement"
	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
)

const (
	// lookAtPools is the time between two looks at the pools.
	lookAtPools = 15 * time.Second
	// secondLook is the time to a look that should come soon.
	secondLook = 2 * time.Second
	// patience is how long a start waits for the cluster.
	patience = 2 * time.Second
	// resync is the time between two looks at everything.
	resync = 5 * time.Minute
)

// Node is the node of a Manager, as its controllers need it. All methods may be called at
// the same time.
type Node interface {
	ownership.Node
	mirror.Node
	expansion.Node
	orphans.Node
}

// Options are the settings of a Manager.
type Options struct {
	// Orphans says what is done with orphans, once they have been some for OrphanGrace.
	Orphans     orphans.Policy
	OrphanGrace time.Duration
}

// Manager runs the controllers of a node.
type Manager struct {
	cluster *client.Cluster

	owner         *ownership.Controller
	labels        *ownership.Labels
	pools         *mirror.Pools
	subvolumes    *mirror.Subvolumes
	claims        *placement.Claims
	snapshots     *placement.Snapshots
	unschedulable *placement.Unschedulable
	expansion     *expansion.Controller
	orphans       *orphans.Controller

	poke      chan struct{} // pools may have changed
	published atomic.Int64  // when, in ns since 1970; see Published
}

// New returns the manager of a node, to be run by Run. The identity is required, all of it.
func New(api *client.Clients, id client.Identity, node Node, options Options) *Manager {
	return newManager(client.New(api, id), node, options)
}

func newManager(cluster *client.Cluster, node Node, options Options) *Manager {
	owner := ownership.New(cluster, node)
	return &Manager{
		cluster:       cluster,
		owner:         owner,
		labels:        ownership.NewLabels(cluster, owner.Undisputed),
		pools:         mirror.NewPools(cluster, node),
		subvolumes:    mirror.NewSubvolumes(cluster, node, owner),
		claims:        placement.NewClaims(cluster, node),
		snapshots:     placement.NewSnapshots(cluster, node, owner),
		unschedulable: placement.NewUnschedulable(cluster, node, owner),
		expansion:     expansion.New(cluster, node, owner),
		orphans:       orphans.New(cluster, node, owner, options.Orphans, options.OrphanGrace),
		poke:          make(chan struct{}, 1),
	}
}

// Run runs the controllers until ctx ends. It waits for an API server that does not answer.
func (m *Manager) Run(ctx context.Context) {
	defer m.cluster.Close() // when no controller records Events any more
	var all sync.WaitGroup
	defer all.Wait()
	all.Go(func() { m.cluster.Run(ctx) })
	if cache.WaitForCacheSync(ctx.Done(), m.cluster.Subvolumes.HasSynced, m.cluster.PersistentVolumes.HasSynced) {
		klog.FromContext(ctx).Info("Mirroring into the cluster", "node", m.cluster.NodeName)
	} // else ctx has ended: each controller ends its queue
	for _, run := range []func(context.Context){
		m.followPools, m.subvolumes.Run, m.claims.Run, m.snapshots.Run, m.unschedulable.Run, m.expansion.Run, m.orphans.Run,
	} {
		all.Go(func() { run(ctx) })
	}
}

// followPools brings the cluster in line with the pools of this node until ctx ends: first
// who owns them, then their state, and where an owner has changed all that is in them.
func (m *Manager) followPools(ctx context.Context) {
	tick := time.NewTicker(lookAtPools)
	defer tick.Stop()
	var synced time.Time // when all was compared
	labelled := false
	for ctx.Err() == nil {
		var soon <-chan time.Time
		found, err := m.syncPools(ctx)
		if err != nil {
			klog.FromContext(ctx).V(2).Info("Pools not mirrored yet", "reason", err)
		} else {
			m.published.Store(time.Now().UnixNano())
		}
		if found.Changed || time.Since(synced) >= resync {
			synced, labelled = time.Now(), false
			m.syncAll(ctx)
		}
		if !labelled {
			labelled = m.labels.Reconcile(ctx) == nil
		}
		if found.Again || !labelled {
			soon = time.After(secondLook)
		}
		select {
		case <-ctx.Done():
		case <-tick.C:
		case <-m.poke:
		case <-soon:
		}
	}
}

func (m *Manager) syncPools(ctx context.Context) (ownership.Result, error) {
	found, err := m.owner.Reconcile(ctx)
	return found, errors.Join(err, m.pools.Publish(ctx, found.Owned))
}

// syncAll has everything compared, on this node and in the cluster.
func (m *Manager) syncAll(ctx context.Context) {
	m.subvolumes.Resync(ctx)
	m.claims.Resync()
	m.snapshots.Resync()
	m.expansion.Resync()
}

// Changed notes that a volume or snapshot was made, changed or removed; with a zero Ref,
// that pools have come or gone. It does not block.
func (m *Manager) Changed(ref meta.Ref) {
	if !ref.IsZero() {
		m.subvolumes.Changed(ref)
		return
	}
	select {
	case m.poke <- struct{}{}:
	default: // one is on its way
	}
}

// Owner returns the node that serves a volume or snapshot, and the pool that it is in;
// empty where the cluster knows of none.
func (m *Manager) Owner(ctx context.Context, ref meta.Ref) (node, poolID string, err error) {
	return m.cluster.Locate(ctx, ref)
}

// KeptBy returns the names of the objects of the cluster that stand for a volume or
// snapshot and are not deleted with it.
func (m *Manager) KeptBy(ctx context.Context, ref meta.Ref) ([]string, error) {
	return m.cluster.KeptBy(ctx, ref)
}

// Expand asks the node that owns a volume to expand it to size bytes, and returns the new
// size.
func (m *Manager) Expand(ctx context.Context, volume string, size int64) (int64, error) {
	return expansion.Request(ctx, m.cluster, volume, size)
}

// AwaitOwnership waits until the cluster has said whose the pools of this node are, but
// not for long: a copy of another node's disk should not be served for a moment.
func (m *Manager) AwaitOwnership(ctx context.Context) {
	select {
	case <-m.owner.Decided():
	case <-ctx.Done():
	case <-time.After(patience):
		klog.FromContext(ctx).Info("The cluster does not answer. The pools of this node are served without its consent")
	}
}

// Orphans returns what the last look for orphans found on this node; false before the
// first.
func (m *Manager) Orphans() ([]orphans.Orphan, bool) { return m.orphans.Found() }

// Published returns when all pools were last written to the cluster; the zero time for
// never.
func (m *Manager) Published() time.Time {
	if at := m.published.Load(); at != 0 {
		return time.Unix(0, at)
	}
	return time.Time{}
}
