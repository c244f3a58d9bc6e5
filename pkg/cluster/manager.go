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
	"github.com/btrfs-csi/btrfs-csi/pkg/cluster/groups"
	"github.com/btrfs-csi/btrfs-csi/pkg/cluster/mirror"
	"github.com/btrfs-csi/btrfs-csi/pkg/cluster/orphans"
	"github.com/btrfs-csi/btrfs-csi/pkg/cluster/ownership"
	"github.com/btrfs-csi/btrfs-csi/pkg/cluster/placement"
	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
)

const (
	// lookAtPools is the time between two rounds over the pools.
	lookAtPools = 15 * time.Second
	// secondLook is the time to the next round if that should come soon.
	secondLook = 2 * time.Second
	// patience is how long AwaitOwnership waits for the cluster.
	patience = 2 * time.Second
	// resync is the time between two comparisons of all objects.
	resync = 5 * time.Minute
)

// Node is what the controllers need of their node. All methods must be safe for concurrent use.
type Node interface {
	ownership.Node
	mirror.Node
	expansion.Node
	groups.Node
	orphans.Node
}

// Options are the settings of a Manager.
type Options struct {
	// Orphans is the policy for volumes and snapshots that have been orphans for OrphanGrace.
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
	groups        *groups.Controller
	orphans       *orphans.Controller

	poke      chan struct{} // pools may have changed
	published atomic.Int64  // when, in ns since 1970; see Published
}

// New returns the manager of a node. All fields of the identity are required.
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
		groups:        groups.New(cluster, node, owner),
		orphans:       orphans.New(cluster, node, owner, options.Orphans, options.OrphanGrace),
		poke:          make(chan struct{}, 1),
	}
}

// Run runs the controllers until ctx ends. If the API server does not answer, Run waits.
func (m *Manager) Run(ctx context.Context) {
	defer m.cluster.Close() // after the last Event of a controller
	var all sync.WaitGroup
	defer all.Wait()
	all.Go(func() { m.cluster.Run(ctx) })
	if cache.WaitForCacheSync(ctx.Done(), m.cluster.Subvolumes.HasSynced, m.cluster.PersistentVolumes.HasSynced) {
		klog.FromContext(ctx).Info("Publishing into the cluster", "node", m.cluster.NodeName)
	} // else ctx has ended, and each controller shuts its queue down
	for _, run := range []func(context.Context){
		m.followPools, m.subvolumes.Run, m.claims.Run, m.snapshots.Run, m.unschedulable.Run, m.expansion.Run, m.groups.Run, m.orphans.Run,
	} {
		all.Go(func() { run(ctx) })
	}
}

// followPools publishes the pools of this node until ctx ends: first their owner, then their state.
// When an owner has changed, it has all objects compared.
func (m *Manager) followPools(ctx context.Context) {
	tick := time.NewTicker(lookAtPools)
	defer tick.Stop()
	var synced time.Time // the last comparison of all objects
	labelled := false
	for ctx.Err() == nil {
		var soon <-chan time.Time
		found, err := m.syncPools(ctx)
		if err != nil {
			klog.FromContext(ctx).V(2).Info("Pools not published yet", "reason", err)
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

// syncAll makes all controllers compare all their objects.
func (m *Manager) syncAll(ctx context.Context) {
	m.subvolumes.Resync(ctx)
	m.claims.Resync()
	m.snapshots.Resync()
	m.expansion.Resync()
	m.groups.Resync()
}

// Changed must be called after a volume or snapshot was created, changed or removed, and with a zero
// Ref after the pools have changed. It does not block.
func (m *Manager) Changed(ref meta.Ref) {
	if !ref.IsZero() {
		m.subvolumes.Changed(ref)
		return
	}
	select {
	case m.poke <- struct{}{}:
	default: // a round is already requested
	}
}

// Owner returns the node that serves a volume or snapshot, and its pool. Both are empty if the
// cluster does not know it.
func (m *Manager) Owner(ctx context.Context, ref meta.Ref) (node, poolID string, err error) {
	return m.cluster.Locate(ctx, ref)
}

// KeptBy returns the names of the objects of the cluster that still need a volume or snapshot.
func (m *Manager) KeptBy(ctx context.Context, ref meta.Ref) ([]string, error) {
	return m.cluster.KeptBy(ctx, ref)
}

// Expand asks the owner of a volume to expand it to at least size bytes, and returns the new size.
func (m *Manager) Expand(ctx context.Context, volume string, size int64) (int64, error) {
	return expansion.Request(ctx, m.cluster, volume, size)
}

// AwaitOwnership waits, at most for patience, until the owner of each pool of this node is decided.
// So a start does not serve a copy of another node's disk.
func (m *Manager) AwaitOwnership(ctx context.Context) {
	select {
	case <-m.owner.Decided():
	case <-ctx.Done():
	case <-time.After(patience):
		klog.FromContext(ctx).Info("The cluster does not answer. The pools of this node are served without its consent")
	}
}

// Orphans returns the orphans that the last search found on this node; false before the first
// search.
func (m *Manager) Orphans() ([]orphans.Orphan, bool) { return m.orphans.Found() }

// Published returns when all pools were last published; the zero time for never.
func (m *Manager) Published() time.Time {
	if at := m.published.Load(); at != 0 {
		return time.Unix(0, at)
	}
	return time.Time{}
}
