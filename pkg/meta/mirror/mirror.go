package mirror

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/klog/v2"

	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
)

// Node is what the mirror needs of the node that it mirrors. All may be called
// at the same time.
type Node interface {
	NodeReader
	// Used returns what one holds, in bytes; false where nobody counts.
	Used(ctx context.Context, ref meta.Ref) (int64, bool)
	// Pools returns all pools, also those that cannot be used.
	Pools(ctx context.Context) []PoolReport
	// Expand grows a volume to size bytes and returns its size. Its error has a code.
	Expand(ctx context.Context, volume string, size int64) (int64, error)
	// Remove deletes one that nobody uses.
	Remove(ctx context.Context, ref meta.Ref) error
	// Away returns the IDs of the pools that were here and are not now, and Forget has
	// nothing wait for one any more.
	Away(ctx context.Context) []string
	Forget(ctx context.Context, poolID string)
	// Deny keeps pools out of use, by ID, and replaces what was denied before.
	Deny(reasons map[string]error)
}

// Options are the settings of a Mirror.
type Options struct {
	// Identity is required, all of it.
	Identity
	// Orphans says what is done with volumes and snapshots that the cluster
	// knows nothing of: ReportOrphans without it.
	Orphans OrphanPolicy
	// OrphanGrace is how long an orphan has been one before it is deleted.
	OrphanGrace time.Duration
}

const (
	// settle is how long a change waits for others of the same volume: what is
	// made, bound and snapshotted at once is written once.
	settle = 500 * time.Millisecond
	// mostRest is how long an object is put off by changes that follow each other: the
	// API server has what made them to do, which somebody waits for. But what is not
	// written yet cannot be expanded from another node either.
	mostRest = 5 * time.Second
	// lookAtPools is the time between two looks at the pools, their room and who owns
	// those of others.
	lookAtPools = 15 * time.Second
	// secondLook is the time to a look that should come soon.
	secondLook = 2 * time.Second
	// resync is the time between two looks at everything.
	resync = 5 * time.Minute
)

// Mirror publishes what this node has in the cluster. Make it with New and run it with Run.
type Mirror struct {
	options Options
	cluster *Cluster
	node    Node

	owner  *OwnershipController
	labels *Labels
	pools  *PoolPublisher

	unrest unrest
	queue  workqueue.TypedRateLimitingInterface[meta.Ref]
	poke   chan struct{} // pools may have changed

	published atomic.Int64 // when, in ns since 1970; see Published
	homing    *homing
	orphans   *OrphansController
	expansion *ExpansionController
}

// New returns a mirror of node, to be run by Run.
func New(clients *Clients, node Node, options Options) *Mirror {
	m := &Mirror{
		options: options, cluster: NewCluster(clients, options.Identity), node: node,
		queue: NewQueue[meta.Ref](time.Second, 5*time.Minute),
		poke:  make(chan struct{}, 1),
	}
	m.unrest.until = map[meta.Ref]time.Time{}
	m.owner = NewOwnership(m.cluster, node)
	m.labels = NewLabels(m.cluster, m.owner.Undisputed)
	m.pools = NewPoolPublisher(m.cluster, node)
	m.expansion = NewExpansion(m.cluster, node, m.owner)
	m.orphans = NewOrphans(m.cluster, node, m.owner, options.Orphans, options.OrphanGrace)
	m.watchSubvolumes()
	m.watchVolumes()
	m.watchContents()
	m.homing = newHoming(m)
	return m
}

// Changed says that a volume or snapshot was made, changed or removed; with a
// zero Ref, that pools have come or gone. It does not block.
func (m *Mirror) Changed(ref meta.Ref) {
	if !ref.IsZero() {
		m.unrest.stir(time.Now())
		m.queue.AddAfter(ref, settle)
		return
	}
	m.lookAgain(0)
}

// lookAgain has the pools looked at after a while.
func (m *Mirror) lookAgain(after time.Duration) {
	time.AfterFunc(after, func() {
		select {
		case m.poke <- struct{}{}:
		default: // one is on its way
		}
	})
}

// Owner returns the node that serves a volume or snapshot, and the pool that it is in;
// empty where the cluster knows of none.
func (m *Mirror) Owner(ctx context.Context, ref meta.Ref) (node, poolID string, err error) {
	return Locate(ctx, m.cluster, ref)
}

// KeptBy returns the names of the objects of the cluster that stand for a volume or
// snapshot and are not deleted with it.
func (m *Mirror) KeptBy(ctx context.Context, ref meta.Ref) ([]string, error) {
	return m.cluster.KeptBy(ctx, ref)
}

// Claimed waits until the cluster has said whose the pools of this node are, for as long
// as ctx allows.
func (m *Mirror) Claimed(ctx context.Context) bool {
	select {
	case <-m.owner.Decided():
		return true
	case <-ctx.Done():
		return false
	}
}

// Expand asks the node that owns a volume to expand it to size bytes, and returns the new
// size.
func (m *Mirror) Expand(ctx context.Context, volume string, size int64) (int64, error) {
	return Request(ctx, m.cluster, volume, size)
}

// Orphans returns what the last look for orphans found on this node; false before the
// first.
func (m *Mirror) Orphans() ([]Orphan, bool) { return m.orphans.Found() }

// Published returns when all pools were last written to the cluster; the zero time for
// never.
func (m *Mirror) Published() time.Time {
	if at := m.published.Load(); at != 0 {
		return time.Unix(0, at)
	}
	return time.Time{}
}

// Run mirrors until ctx ends. It waits for an API server that is away.
func (m *Mirror) Run(ctx context.Context) {
	var all sync.WaitGroup
	defer all.Wait()
	all.Go(func() { m.cluster.Run(ctx) })
	if !cache.WaitForCacheSync(ctx.Done(), m.cluster.Subvolumes.HasSynced, m.cluster.PersistentVolumes.HasSynced) {
		return
	}
	klog.FromContext(ctx).Info("Mirroring into the cluster", "node", m.cluster.NodeName)
	all.Go(func() { m.followPools(ctx) })
	all.Go(func() { m.homing.run(ctx) })
	all.Go(func() { m.orphans.Run(ctx) })
	all.Go(func() { m.watchHomeless(ctx) })
	all.Go(func() { m.expansion.Run(ctx) })
	RunQueue(ctx, m.queue, m.syncRested)
}

// followPools brings the cluster in line with the pools of this node until ctx ends: first
// who owns them, then their state, and all that is in them where an owner has changed.
func (m *Mirror) followPools(ctx context.Context) {
	tick := time.NewTicker(lookAtPools)
	defer tick.Stop()
	var last time.Time // when all was compared
	labelled := false
	for ctx.Err() == nil {
		found, err := m.syncPools(ctx)
		if err != nil {
			klog.FromContext(ctx).V(2).Info("Pools not mirrored yet", "reason", err)
		} else {
			m.published.Store(time.Now().UnixNano())
		}
		if found.Changed || time.Since(last) >= resync {
			last, labelled = time.Now(), false
			m.syncAll(ctx)
		}
		if !labelled {
			labelled = m.labels.Reconcile(ctx) == nil
		}
		if found.Again || !labelled {
			m.lookAgain(secondLook)
		}
		select {
		case <-ctx.Done():
		case <-tick.C:
		case <-m.poke:
		}
	}
}

func (m *Mirror) syncPools(ctx context.Context) (Ownerships, error) {
	found, err := m.owner.Reconcile(ctx)
	return found, keepFirst(err, m.pools.Publish(ctx, found.Owned))
}

// unrest knows whether something changes all the time: on this node, or because
// somebody binds volumes of this driver, or waits for snapshots.
type unrest struct {
	mu    sync.Mutex             // protects what follows
	last  time.Time              // when something changed
	until map[meta.Ref]time.Time // what is put off, with its time to be written in any case
}

// stir notes a change.
func (u *unrest) stir(now time.Time) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.last = now
}

// left is for how long one that is to be written is put off. Each has a time of its
// own, so that all that is made in a burst waits for its end, whatever was before.
func (u *unrest) left(ref meta.Ref, now time.Time) time.Duration {
	u.mu.Lock()
	defer u.mu.Unlock()
	until, known := u.until[ref]
	if !known {
		until = now.Add(mostRest)
	}
	left := min(u.last.Add(settle).Sub(now), until.Sub(now))
	if left > 0 {
		u.until[ref] = until
	} else {
		delete(u.until, ref)
	}
	return left
}

// syncRested is syncSubvolume for when nothing has changed for a while, or one has
// waited for that long enough.
func (m *Mirror) syncRested(ctx context.Context, ref meta.Ref) error {
	if left := m.unrest.left(ref, time.Now()); left > 0 {
		m.queue.AddAfter(ref, left)
		return ErrPutOff
	}
	return m.syncSubvolume(ctx, ref)
}

// syncAll has everything compared, on this node and in the cluster.
func (m *Mirror) syncAll(ctx context.Context) {
	if err := m.takeOver(ctx); err != nil {
		klog.FromContext(ctx).Error(err, "What another node published of the pools here is not taken over yet")
	}
	for _, class := range []meta.Class{meta.Volumes, meta.Snapshots} {
		err := m.node.Walk(ctx, class, func(e meta.Entry) bool {
			m.queue.Add(e.Ref())
			return true
		})
		if err != nil {
			klog.FromContext(ctx).Error(err, "Volumes cannot be listed", "class", class)
		}
	}
	for _, s := range m.cluster.Subvolumes.List() {
		m.queue.Add(RefOf(s))
	}
	m.homing.rescan()
	m.expansion.Resync()
}
