package mirror

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/klog/v2"

	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
	"github.com/btrfs-csi/btrfs-csi/pkg/meta/mirror/v1alpha1"
)

const (
	// lookAtPools is the time between two looks at the pools, their room and the
	// claims of others.
	lookAtPools = 15 * time.Second
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
	// grains are the steps in which bytes are told, in parts of the whole: not every
	// write is news.
	grains = 128
)

// claims are the pools that this node serves with the consent of the cluster,
// and those that it must not serve.
type claims struct {
	first chan struct{} // closed when the pools have been claimed for the first time

	mu   sync.RWMutex    // protects held
	held map[string]bool // by pool ID

	// What follows is of followPools alone, by pool ID.
	denied map[string]denial
	yields map[string]bool // held, and another node may have an older claim
	gone   map[string]bool // claimed, and not here at the last look

	rescans map[string]uint64 // of the quota, that were told
}

type denial struct {
	pool   string // its name
	owner  string // the node that serves it
	since  time.Time
	told   time.Time // by an Event
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

// followPools claims the pools of this node, tells their state, and lets go of
// the claims to those that are gone, until ctx ends.
func (m *Mirror) followPools(ctx context.Context) {
	tick := time.NewTicker(lookAtPools)
	defer tick.Stop()
	var last time.Time // of a look at everything
	begin := sync.OnceFunc(func() { close(m.claims.first) })
	for ctx.Err() == nil {
		news, err := m.syncPools(ctx)
		if err != nil {
			klog.FromContext(ctx).V(2).Info("Pools not mirrored yet", "reason", err)
		} else {
			begin()
			m.told.Store(time.Now().UnixNano())
		}
		if news || time.Since(last) >= resync {
			last = time.Now()
			m.syncAll(ctx)
			m.syncLabels(ctx)
		}
		select {
		case <-ctx.Done():
		case <-tick.C:
		case <-m.poke:
		case <-m.labels:
			m.syncLabels(ctx)
		}
	}
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

// Told returns when the cluster was last told of all pools; the zero time for
// never.
func (m *Mirror) Told() time.Time {
	if at := m.told.Load(); at != 0 {
		return time.Unix(0, at)
	}
	return time.Time{}
}

func (m *Mirror) syncPools(ctx context.Context) (news bool, err error) {
	reports := m.node.Pools(ctx)
	known, err := m.knownPools(ctx, reports)
	if err != nil {
		return false, err
	}
	m.retryDenied(ctx, known, reports)
	held, counts := map[string]bool{}, m.countSubvolumes(ctx)
	for _, report := range reports {
		if report.ID == "" {
			continue
		}
		ok, failed := m.syncPool(ctx, known[report.ID], report, counts[report.ID])
		if ok {
			held[report.ID] = true
		}
		err = keepFirst(err, failed)
	}
	news = m.claims.hold(held)
	released, failed := m.releaseGone(ctx, known, held, reports)
	return news || released, keepFirst(keepFirst(err, failed), m.forgetMoved(ctx))
}

// forgetMoved has the node forget pools that another one serves now: their disk was
// moved there.
func (m *Mirror) forgetMoved(ctx context.Context) error {
	for _, id := range m.node.Away(ctx) {
		pool, err := m.clients.pools().Get(ctx, id, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			continue
		}
		if err != nil {
			return err
		}
		if owner := pool.Spec.NodeName; owner != "" && owner != m.options.NodeName {
			klog.FromContext(ctx).Info("Forgetting a pool that another node has", "pool", pool.Spec.Pool, "poolID", id, "node", owner)
			m.node.Forget(ctx, id)
		}
	}
	return nil
}

// releaseGone gives up the claims to pools that are not here at the second look in
// a row: one may be mounted anew.
func (m *Mirror) releaseGone(ctx context.Context, known map[string]*v1alpha1.Pool, held map[string]bool, reports []PoolReport) (released bool, err error) {
	before := m.claims.gone
	m.claims.gone = map[string]bool{}
	for id, pool := range known {
		switch {
		case pool.Spec.NodeName != m.options.NodeName || held[id]:
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

// knownPools returns the Pools that this node claims, and those of the pools that
// it has or is denied, by ID. It asks for no others: there may be a thousand.
func (m *Mirror) knownPools(ctx context.Context, reports []PoolReport) (map[string]*v1alpha1.Pool, error) {
	claimed, err := m.clients.pools().List(ctx, metav1.ListOptions{
		FieldSelector: fields.OneTermEqualSelector("spec.nodeName", m.options.NodeName).String(), ResourceVersion: "0",
	})
	if err != nil {
		return nil, err
	}
	known := map[string]*v1alpha1.Pool{}
	for i := range claimed.Items {
		known[claimed.Items[i].Name] = &claimed.Items[i]
	}
	ids := slices.Collect(maps.Keys(m.claims.denied))
	for _, report := range reports {
		ids = append(ids, report.ID)
	}
	for _, id := range ids {
		if known[id] != nil || id == "" {
			continue
		}
		pool, err := m.clients.pools().Get(ctx, id, metav1.GetOptions{})
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

func keepFirst(first, second error) error {
	if first != nil {
		return first
	}
	return second
}

// syncPool claims a pool and tells its state; false where it is another node's.
func (m *Mirror) syncPool(ctx context.Context, have *v1alpha1.Pool, report PoolReport, subvolumes int64) (held bool, err error) {
	have, err = m.claim(ctx, have, report.ID, report.Name, m.nodeLost)
	if err != nil {
		return m.claims.holds(report.ID), err // until the cluster says otherwise
	}
	if have.Spec.NodeName != m.options.NodeName {
		m.deny(ctx, have, report.Name)
		return false, nil
	}
	m.tellRescans(have, report)
	status := v1alpha1.PoolStatus{
		State: report.State, Message: report.Message, Quota: report.Quota,
		Size:       resource.NewQuantity(report.Size, resource.BinarySI),
		Available:  resource.NewQuantity(coarse(report.Available, report.Size), resource.BinarySI),
		Subvolumes: subvolumes,
	}
	if equality.Semantic.DeepEqual(have.Status, status) {
		return true, nil
	}
	have = have.DeepCopy()
	have.Status = status
	_, err = m.clients.pools().UpdateStatus(ctx, have, metav1.UpdateOptions{})
	return true, err
}

// tellRescans tells of a quota that was inconsistent, which its state may not show any
// more.
func (m *Mirror) tellRescans(pool *v1alpha1.Pool, report PoolReport) {
	if report.Rescans > m.claims.rescans[report.ID] {
		m.events.Eventf(pool, corev1.EventTypeWarning, "QuotaInconsistent",
			"The quota of pool %q of node %q was inconsistent, so its limits were void; it is rescanned, and they hold when that is done", report.Name, m.options.NodeName)
	}
	if m.claims.rescans == nil {
		m.claims.rescans = map[string]uint64{}
	}
	m.claims.rescans[report.ID] = report.Rescans
}

// coarse rounds bytes down to a power of two that is small beside the whole, by
// which they stay legible too.
func coarse(n, whole int64) int64 {
	step := int64(1)
	for step*2 <= whole/grains {
		step *= 2
	}
	return n / step * step
}

// countSubvolumes returns the number of volumes and snapshots by pool ID.
func (m *Mirror) countSubvolumes(ctx context.Context) map[string]int64 {
	counts := map[string]int64{}
	for _, class := range []meta.Class{meta.Volumes, meta.Snapshots} {
		_ = m.node.Walk(ctx, class, func(e meta.Entry) bool { // what cannot be listed is not counted
			counts[e.PoolID]++
			return true
		})
	}
	return counts
}

// claim returns the Pool of an ID with whoever serves it: this node, if nobody
// else does, or who does is lost. A node that is not lost keeps its claim, unless
// that of this node is older: it was only away for a while. One of two live nodes
// always yields, also when it was restarted: the one that TakenFrom tells of.
func (m *Mirror) claim(ctx context.Context, have *v1alpha1.Pool, id, name string, lost func(context.Context, string) (bool, error)) (*v1alpha1.Pool, error) {
	if have == nil {
		return m.makePool(ctx, id, name)
	}
	me, owner, from := m.options.NodeName, have.Spec.NodeName, have.Annotations[TakenFrom]
	logger := klog.FromContext(ctx).WithValues("pool", name, "poolID", id, "node", owner)
	switch {
	case owner == me && have.Spec.Pool == name:
		m.claims.yields[id] = from != ""
		return have, nil
	case owner == me, owner == "":
	case from == me, m.claims.holds(id) && !m.claims.yields[id]:
		from = ""
		logger.Info("Taking back a pool from a node that has a copy of its disk")
	default:
		if gone, err := lost(ctx, owner); !gone || err != nil {
			return have, err
		}
		from = owner
		logger.Info("Taking over a pool from a node that is not ready")
	}
	if from == me {
		from = "" // it has it again
	}
	want := have.DeepCopy()
	want.Spec = v1alpha1.PoolSpec{NodeName: me, Pool: name}
	noteTaken(want, from)
	have, err := m.clients.pools().Update(ctx, want, metav1.UpdateOptions{})
	if err == nil {
		m.claims.yields[id] = from != ""
	}
	return have, err
}

// makePool claims what nobody has. If somebody has deleted the Pool, the node that
// was known to serve it may do so still.
func (m *Mirror) makePool(ctx context.Context, id, name string) (*v1alpha1.Pool, error) {
	want := &v1alpha1.Pool{ObjectMeta: metav1.ObjectMeta{Name: id}, Spec: v1alpha1.PoolSpec{NodeName: m.options.NodeName, Pool: name}}
	noteTaken(want, m.claims.denied[id].owner)
	made, err := m.clients.pools().Create(ctx, want, metav1.CreateOptions{})
	if err == nil {
		m.claims.yields[id] = !m.claims.holds(id) // until the next look: who served it unknown to this node has seen it by then
	}
	return made, err
}

func noteTaken(pool *v1alpha1.Pool, from string) {
	if from == "" {
		delete(pool.Annotations, TakenFrom)
		return
	}
	metav1.SetMetaDataAnnotation(&pool.ObjectMeta, TakenFrom, from)
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

// release gives up the claim to a pool that this node has no more, or refuses.
func (m *Mirror) release(ctx context.Context, pool *v1alpha1.Pool, refused string) error {
	want := pool.DeepCopy()
	want.Spec.NodeName = ""
	want, err := m.clients.pools().Update(ctx, want, metav1.UpdateOptions{})
	if err != nil {
		return err
	}
	klog.FromContext(ctx).Info("Claim to a pool given up", "pool", pool.Spec.Pool, "poolID", pool.Name)
	message := fmt.Sprintf("node %s had it and has it no more", m.options.NodeName)
	if refused != "" {
		message = fmt.Sprintf("node %s had it and refuses it: %s", m.options.NodeName, refused)
	}
	want.Status = v1alpha1.PoolStatus{
		State: away, Message: message,
		Size: want.Status.Size, Quota: want.Status.Quota, Subvolumes: want.Status.Subvolumes,
	}
	_, err = m.clients.pools().UpdateStatus(ctx, want, metav1.UpdateOptions{})
	return err
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

// warnOfCopy tells of a denied pool where the owner's is seen, again before the
// cluster forgets the Event.
func (m *Mirror) warnOfCopy(owners *v1alpha1.Pool, d denial) denial {
	if time.Since(d.told) < warnAgain {
		return d
	}
	d.told = time.Now()
	m.events.Eventf(owners, corev1.EventTypeWarning, "PoolClaimedTwice",
		"Node %q has a pool %q with the ID of this one and does not serve it: %v", m.options.NodeName, d.pool, d.reason)
	return d
}

// retryDenied takes back what was denied where the other node has let go, or the
// pool is not here any more.
func (m *Mirror) retryDenied(ctx context.Context, known map[string]*v1alpha1.Pool, reports []PoolReport) {
	for id, d := range m.claims.denied {
		here := slices.ContainsFunc(reports, func(r PoolReport) bool { return r.Name == d.pool && (r.ID == "" || r.ID == id) })
		if here {
			lost := m.nodeLost
			if time.Since(d.since) > doubt {
				lost = m.nodeDeleted // it is a copy, and its owner only stumbles
			}
			pool, err := m.claim(ctx, known[id], id, d.pool, lost)
			if err != nil {
				continue
			}
			if pool.Spec.NodeName != m.options.NodeName {
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

func (m *Mirror) tellDenied() {
	reasons := map[string]error{}
	for id, d := range maps.All(m.claims.denied) {
		reasons[id] = d.reason
	}
	m.node.Deny(reasons)
}

// syncLabels brings the topology labels of the Node in line with the pools here.
// The kubelet sets them once, when the driver registers, and takes none back:
// pods would be sent here whose volumes have moved on with their disk.
func (m *Mirror) syncLabels(ctx context.Context) {
	node, err := m.clients.nodes().Get(ctx, m.options.NodeName, metav1.GetOptions{})
	if err != nil {
		klog.FromContext(ctx).V(2).Info("Labels of the node cannot be read", "reason", err)
		return
	}
	want := map[string]string{}
	for key := range node.Labels {
		if strings.HasPrefix(key, m.options.TopologyPrefix) {
			want[key] = ""
		}
	}
	for _, report := range m.node.Pools(ctx) {
		if _, denied := m.claims.denied[report.ID]; report.ID != "" && !denied {
			want[m.options.TopologyPrefix+report.ID] = m.options.TopologyValue
		}
	}
	patch := labelsPatch(node.ResourceVersion, node.Labels, want)
	if patch == nil {
		return
	}
	if _, err := m.clients.nodes().Patch(ctx, node.Name, types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
		klog.FromContext(ctx).V(2).Info("Topology labels of the node not brought in line yet", "labels", want, "reason", err)
		m.relabel(secondLook)
		return
	}
	klog.FromContext(ctx).Info("Topology labels of the node brought in line with its pools", "labels", want)
}

// relabel has the labels looked at again.
func (m *Mirror) relabel(after time.Duration) {
	time.AfterFunc(after, func() {
		select {
		case m.labels <- struct{}{}:
		default: // one is on its way
		}
	})
}

// labelsPatch is metadataPatch for the labels of an object that nobody else has
// changed in the meantime.
func labelsPatch(resourceVersion string, have, want map[string]string) []byte {
	patch := metadataPatch(nil, nil, have, want)
	if patch == nil {
		return nil
	}
	return []byte(strings.Replace(string(patch), `{"metadata":{`, fmt.Sprintf(`{"metadata":{"resourceVersion":%q,`, resourceVersion), 1))
}

// nodeReady reports whether a node is there and ready.
func (m *Mirror) nodeReady(ctx context.Context, name string) (bool, error) {
	lost, err := m.nodeLost(ctx, name)
	return !lost && err == nil, err
}

// nodeLost reports whether a node is not there, or not ready.
func (m *Mirror) nodeLost(ctx context.Context, name string) (bool, error) {
	node, err := m.clients.nodes().Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	return !slices.ContainsFunc(node.Status.Conditions, func(c corev1.NodeCondition) bool {
		return c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue
	}), nil
}

// nodeDeleted reports whether a node is not there.
func (m *Mirror) nodeDeleted(ctx context.Context, name string) (bool, error) {
	_, err := m.clients.nodes().Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return true, nil
	}
	return false, err
}
