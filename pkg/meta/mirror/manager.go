package mirror

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"

	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
)

const (
	// lookAtPools is the time between two looks at the pools.
	lookAtPools = 15 * time.Second
	// secondLook is the time to a look that should come soon.
	secondLook = 2 * time.Second
	// resync is the time between two looks at everything.
	resync = 5 * time.Minute
)

// Node is the node of a Manager, as its controllers need it. All methods may be called at
// the same time.
type Node interface {
	OwnershipNode
	SubvolumesNode
	ExpansionNode
	OrphansNode
}

// Options are the settings of a Manager.
type Options struct {
	// Identity is required, all of it.
	Identity
	// Orphans says what is done with orphans: ReportOrphans without it.
	Orphans OrphanPolicy
	// OrphanGrace is how long an orphan has been one before it is deleted.
	OrphanGrace time.Duration
}

// Manager runs the controllers of a node. Make it with New and run it with Run.
type Manager struct {
	cluster *Cluster

	owner         *OwnershipController
	labels        *Labels
	pools         *PoolPublisher
	subvolumes    *SubvolumeController
	placement     *PlacementController
	unschedulable *UnschedulableController
	expansion     *ExpansionController
	orphans       *OrphansController

	poke      chan struct{} // pools may have changed
	published atomic.Int64  // when, in ns since 1970; see Published
}

// New returns the manager of a node, to be run by Run.
func New(clients *Clients, node Node, options Options) *Manager {
	cluster := NewCluster(clients, options.Identity)
	owner := NewOwnership(cluster, node)
	return &Manager{
		cluster:       cluster,
		owner:         owner,
		labels:        NewLabels(cluster, owner.Undisputed),
		pools:         NewPoolPublisher(cluster, node),
		subvolumes:    NewSubvolumes(cluster, node, owner),
		placement:     NewPlacement(cluster, node),
		unschedulable: NewUnschedulable(cluster, node, owner),
		expansion:     NewExpansion(cluster, node, owner),
		orphans:       NewOrphans(cluster, node, owner, options.Orphans, options.OrphanGrace),
		poke:          make(chan struct{}, 1),
	}
}

// Run runs the controllers until ctx ends. It waits for an API server that does not answer.
func (m *Manager) Run(ctx context.Context) {
	var all sync.WaitGroup
	defer all.Wait()
	all.Go(func() { m.cluster.Run(ctx) })
	if !cache.WaitForCacheSync(ctx.Done(), m.cluster.Subvolumes.HasSynced, m.cluster.PersistentVolumes.HasSynced) {
		return
	}
	klog.FromContext(ctx).Info("Mirroring into the cluster", "node", m.cluster.NodeName)
	for _, run := range []func(context.Context){
		m.followPools, m.subvolumes.Run, m.placement.Run, m.unschedulable.Run, m.expansion.Run, m.orphans.Run,
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
			time.AfterFunc(secondLook, m.poolsChanged)
		}
		select {
		case <-ctx.Done():
		case <-tick.C:
		case <-m.poke:
		}
	}
}

func (m *Manager) syncPools(ctx context.Context) (Ownerships, error) {
	found, err := m.owner.Reconcile(ctx)
	return found, keepFirst(err, m.pools.Publish(ctx, found.Owned))
}

// syncAll has everything compared, on this node and in the cluster.
func (m *Manager) syncAll(ctx context.Context) {
	m.subvolumes.Resync(ctx)
	m.placement.Resync()
	m.expansion.Resync()
}

// Changed notes that a volume or snapshot was made, changed or removed; with a zero Ref,
// that pools have come or gone. It does not block.
func (m *Manager) Changed(ref meta.Ref) {
	if ref.IsZero() {
		m.poolsChanged()
		return
	}
	m.subvolumes.Changed(ref)
}

func (m *Manager) poolsChanged() {
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
	return Request(ctx, m.cluster, volume, size)
}

// Claimed waits until the cluster has said whose the pools of this node are, for as long
// as ctx allows.
func (m *Manager) Claimed(ctx context.Context) bool {
	select {
	case <-m.owner.Decided():
		return true
	case <-ctx.Done():
		return false
	}
}

// Orphans returns what the last look for orphans found on this node; false before the
// first.
func (m *Manager) Orphans() ([]Orphan, bool) { return m.orphans.Found() }

// Published returns when all pools were last written to the cluster; the zero time for
// never.
func (m *Manager) Published() time.Time {
	if at := m.published.Load(); at != 0 {
		return time.Unix(0, at)
	}
	return time.Time{}
}
