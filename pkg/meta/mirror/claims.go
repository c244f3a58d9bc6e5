package mirror

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/klog/v2"

	"github.com/btrfs-csi/btrfs-csi/api/v1alpha1"
	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
)

const (
	// doubt is how long a pool that another node serves may be a disk that was moved
	// from there, and not a copy of it.
	doubt = 2 * time.Minute
	// secondLook is the time to the look by which a claim is given up.
	secondLook = 2 * time.Second
	// away is the state of a pool that no node has.
	away = "Away"
	// warnAgain is the time between two Events of one copy. A cluster keeps them for
	// an hour.
	warnAgain = 30 * time.Minute
	// anybody stands for a node that is not known: no node has that name.
	anybody = "*"
)

// claims are the pools that this node serves with the consent of the cluster,
// and those that it must not serve.
type claims struct {
	first chan struct{} // closed when the pools have been claimed for the first time

	mu   sync.RWMutex    // protects held
	held map[string]bool // by pool ID

	// What follows is of followPools alone, by pool ID.
	denied map[string]denial
	yields map[string]string // the node that may have an older claim, or anybody
	gone   map[string]bool   // claimed, and not here at the last look

	rescans map[string]uint64 // of the quota, that have an Event
}

type denial struct {
	pool   string // its name
	owner  string // the node that serves it
	since  time.Time
	warned time.Time // by an Event
	reason error
}

// holds reports whether a pool is claimed by this node.
func (c *claims) holds(poolID string) bool {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.held[poolID]
}

// hold replaces what is held, and reports whether anything is new.
func (c *claims) hold(held map[string]bool) (news bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for id := range held {
		news = news || !c.held[id]
	}
	c.held = held
	return news
}

// Claimed waits until the pools of this node have been claimed, or the cluster has
// said that they are others', for as long as ctx allows.
func (m *Mirror) Claimed(ctx context.Context) bool {
	select {
	case <-m.claims.first:
		return true
	case <-ctx.Done():
		return false
	}
}

// claim returns the Pool of an ID with whoever serves it: this node, if nobody
// else does, or who does is lost. A node that is not lost keeps its claim, unless
// that of this node is older: it was only away for a while. One of two live nodes
// always yields, also when it was restarted: the one that TakenFrom does not name.
// Who takes a Pool from another node names that one, so that it can be taken back:
// a policy of the cluster asks for it.
func (m *Mirror) claim(ctx context.Context, have *v1alpha1.Pool, id, name string, alive func(context.Context, string) (bool, error)) (*v1alpha1.Pool, error) {
	if have == nil {
		return m.makePool(ctx, id, name)
	}
	me, owner, from := m.cluster.NodeName, have.Spec.NodeName, have.Annotations[v1alpha1.AnnotationTakenFrom]
	yields := m.claims.yields[id]
	_, denied := m.claims.denied[id]
	logger := klog.FromContext(ctx).WithValues("pool", name, "poolID", id, "node", owner)
	switch {
	case owner == me && have.Spec.Pool == name:
		m.claims.yields[id] = from
		return have, nil
	case owner == me, owner == "":
		if from == me {
			from = "" // it has it again
		}
	case from == me && (denied || yields == anybody):
		logger.Info("Leaving a pool to a node that had it before")
		return m.update(ctx, have, have.Spec, "")
	case from == me:
		from = ""
		logger.Info("Taking back a pool from a node that has a copy of its disk")
	case m.claims.holds(id) && yields == "":
		from = owner
		logger.Info("Taking back a pool from a node that did not say whom it took it from")
	default:
		if alive, err := alive(ctx, owner); alive || err != nil {
			return have, err
		}
		from = owner
		logger.Info("Taking over a pool from a node that is not ready")
	}
	have, err := m.update(ctx, have, v1alpha1.PoolSpec{NodeName: me, Pool: name}, from)
	if err == nil {
		m.claims.yields[id] = from
	}
	return have, err
}

// update writes a claim, and the node that it was taken from.
func (m *Mirror) update(ctx context.Context, have *v1alpha1.Pool, spec v1alpha1.PoolSpec, from string) (*v1alpha1.Pool, error) {
	want := have.DeepCopy()
	want.Spec = spec
	noteTaken(want, from)
	return m.cluster.API.Pools().Update(ctx, want, metav1.UpdateOptions{})
}

// makePool claims what nobody has. If somebody has deleted the Pool, the node that
// was known to serve it may do so still.
func (m *Mirror) makePool(ctx context.Context, id, name string) (*v1alpha1.Pool, error) {
	want := &v1alpha1.Pool{ObjectMeta: metav1.ObjectMeta{Name: id}, Spec: v1alpha1.PoolSpec{NodeName: m.cluster.NodeName, Pool: name}}
	noteTaken(want, m.claims.denied[id].owner)
	made, err := m.cluster.API.Pools().Create(ctx, want, metav1.CreateOptions{})
	if err != nil {
		return nil, err
	}
	m.claims.yields[id] = ""
	if !m.claims.holds(id) {
		m.claims.yields[id] = anybody // until the next look: who served it unknown to this node has seen it by then
	}
	return made, nil
}

func noteTaken(pool *v1alpha1.Pool, from string) {
	if from == "" {
		delete(pool.Annotations, v1alpha1.AnnotationTakenFrom)
		return
	}
	metav1.SetMetaDataAnnotation(&pool.ObjectMeta, v1alpha1.AnnotationTakenFrom, from)
}

// releaseGone gives up the claims to pools that are not here at the second look in
// a row: one may be mounted anew.
func (m *Mirror) releaseGone(ctx context.Context, known map[string]*v1alpha1.Pool, held map[string]bool, reports []PoolReport) (released bool, err error) {
	before := m.claims.gone
	m.claims.gone = map[string]bool{}
	for id, pool := range known {
		switch {
		case pool.Spec.NodeName != m.cluster.NodeName || held[id]:
		case !before[id]:
			m.claims.gone[id] = true
			time.AfterFunc(secondLook, func() { m.Changed(meta.Ref{}) })
		default:
			failed := m.release(ctx, pool, whyNot(reports, pool.Spec.Pool))
			released = released || failed == nil
			err = keepFirst(err, failed)
		}
	}
	return released, err
}

// whyNot is why the pool of a name is refused; empty where there is none.
func whyNot(reports []PoolReport, name string) string {
	for _, report := range reports {
		if report.Name == name && report.ID == "" {
			return report.Message
		}
	}
	return ""
}

// release gives up the claim to a pool that this node has no more, or refuses. The
// status comes first: it is for the node to write whose the Pool is.
func (m *Mirror) release(ctx context.Context, pool *v1alpha1.Pool, refused string) error {
	message := fmt.Sprintf("node %s had it and has it no more", m.cluster.NodeName)
	if refused != "" {
		message = fmt.Sprintf("node %s had it and refuses it: %s", m.cluster.NodeName, refused)
	}
	want := pool.DeepCopy()
	want.Status = v1alpha1.PoolStatus{
		State: away, Message: message,
		Size: want.Status.Size, Quota: want.Status.Quota, Subvolumes: want.Status.Subvolumes,
	}
	want, err := m.cluster.API.Pools().UpdateStatus(ctx, want, metav1.UpdateOptions{})
	if err != nil {
		return err
	}
	want.Spec.NodeName = ""
	if _, err = m.cluster.API.Pools().Update(ctx, want, metav1.UpdateOptions{}); err != nil {
		return err
	}
	klog.FromContext(ctx).Info("Claim to a pool given up", "pool", pool.Spec.Pool, "poolID", pool.Name)
	return nil
}

// forgetMoved has the node forget pools that another one serves now: their disk was
// moved there. What is denied is here still.
func (m *Mirror) forgetMoved(ctx context.Context) error {
	for _, id := range m.node.Away(ctx) {
		if _, denied := m.claims.denied[id]; denied {
			continue
		}
		pool, err := m.cluster.API.Pools().Get(ctx, id, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			continue
		}
		if err != nil {
			return err
		}
		if owner := pool.Spec.NodeName; owner != "" && owner != m.cluster.NodeName {
			klog.FromContext(ctx).Info("Forgetting a pool that another node has", "pool", pool.Spec.Pool, "poolID", id, "node", owner)
			m.node.Forget(ctx, id)
		}
	}
	return nil
}

// retryDenied takes back what was denied where the other node has let go, or the
// pool is not here any more.
func (m *Mirror) retryDenied(ctx context.Context, known map[string]*v1alpha1.Pool, reports []PoolReport) {
	for id, d := range m.claims.denied {
		here := slices.ContainsFunc(reports, func(r PoolReport) bool { return r.Name == d.pool && (r.ID == "" || r.ID == id) })
		if here {
			alive := m.cluster.API.NodeReady
			if time.Since(d.since) > doubt {
				alive = m.cluster.API.NodeExists // it is a copy, and its owner only stumbles
			}
			pool, err := m.claim(ctx, known[id], id, d.pool, alive)
			if err != nil {
				continue
			}
			if pool.Spec.NodeName != m.cluster.NodeName {
				d.owner = pool.Spec.NodeName
				m.claims.denied[id] = m.warnOfCopy(pool, d)
				continue
			}
		}
		delete(known, id) // as of before the claim
		delete(m.claims.denied, id)
		m.tellDenied()
	}
}

// deny keeps a pool that another node serves out of use here. Two nodes can have
// one ID when a disk was cloned; volumes of it would be here and there.
func (m *Mirror) deny(ctx context.Context, have *v1alpha1.Pool, name string) {
	if _, known := m.claims.denied[have.Name]; known {
		return // the engine is about to let go of it
	}
	owner := have.Spec.NodeName
	reason := fmt.Errorf("node %q serves a pool with the same ID %s: a copy of its disk? On one of the two nodes unmount it, "+
		"or remove its pool.json and all it holds, to make it a pool of its own; if that node has the disk no more and its driver does not run, "+
		"kubectl delete pools.btrfs-csi.github.io %s", owner, have.Name, have.Name)
	if m.claims.denied == nil {
		m.claims.denied = map[string]denial{}
	}
	m.claims.denied[have.Name] = m.warnOfCopy(have, denial{pool: name, owner: owner, since: time.Now(), reason: reason})
	m.tellDenied()
	m.relabel(0)
	klog.FromContext(ctx).Error(reason, "Pool denied", "pool", name)
}

// warnOfCopy records a denied pool where the owner's is seen, again before the
// cluster forgets the Event.
func (m *Mirror) warnOfCopy(owners *v1alpha1.Pool, d denial) denial {
	if time.Since(d.warned) < warnAgain {
		return d
	}
	d.warned = time.Now()
	m.cluster.Events.Eventf(owners, corev1.EventTypeWarning, "PoolClaimedTwice",
		"Node %q has a pool %q with the ID of this one and does not serve it: %v", m.cluster.NodeName, d.pool, d.reason)
	return d
}

func (m *Mirror) tellDenied() {
	reasons := map[string]error{}
	for id, d := range maps.All(m.claims.denied) {
		reasons[id] = d.reason
	}
	m.node.Deny(reasons)
}
