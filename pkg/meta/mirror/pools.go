package mirror

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/klog/v2"

	"github.com/btrfs-csi/btrfs-csi/api/v1alpha1"
	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
)

const (
	// lookAtPools is the time between two looks at the pools, their room and the
	// claims of others.
	lookAtPools = 15 * time.Second
	// grains are the steps in which bytes are published, in parts of the whole: not every
	// write is news.
	grains = 128
)

// followPools claims the pools of this node, publishes their state, and lets go of
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
			m.published.Store(time.Now().UnixNano())
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

// Published returns when all pools were last written to the cluster; the zero time for
// never.
func (m *Mirror) Published() time.Time {
	if at := m.published.Load(); at != 0 {
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

// knownPools returns the Pools that this node claims, and those of the pools that
// it has or is denied, by ID. It asks for no others: there may be a thousand.
func (m *Mirror) knownPools(ctx context.Context, reports []PoolReport) (map[string]*v1alpha1.Pool, error) {
	claimed, err := m.cluster.API.Pools().List(ctx, metav1.ListOptions{
		FieldSelector: fields.OneTermEqualSelector("spec.nodeName", m.cluster.NodeName).String(), ResourceVersion: "0",
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
		pool, err := m.cluster.API.Pools().Get(ctx, id, metav1.GetOptions{})
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

// syncPool claims a pool and publishes its state; false where it is another node's.
func (m *Mirror) syncPool(ctx context.Context, have *v1alpha1.Pool, report PoolReport, subvolumes int64) (held bool, err error) {
	have, err = m.claim(ctx, have, report.ID, report.Name, m.cluster.API.NodeReady)
	if err != nil {
		return m.claims.holds(report.ID), err // until the cluster says otherwise
	}
	if have.Spec.NodeName != m.cluster.NodeName {
		m.deny(ctx, have, report.Name)
		return false, nil
	}
	m.recordRescans(have, report)
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
	m.recordState(have, report)
	have.Status = status
	_, err = m.cluster.API.Pools().UpdateStatus(ctx, have, metav1.UpdateOptions{})
	return true, err
}

const (
	// ready is the state of a pool with which nothing is wrong.
	ready = "Ready"
	// quotaInconsistent is a state, and the reason of the Event of each rescan.
	quotaInconsistent = "QuotaInconsistent"
)

// recordState records an Event on a pool that has a new fault. have has the state that was
// published last.
func (m *Mirror) recordState(have *v1alpha1.Pool, report PoolReport) {
	before := have.Status.State
	switch {
	case report.State == before, report.State == quotaInconsistent: // recordRescans records that
	case report.State != ready:
		m.cluster.Events.Eventf(have, corev1.EventTypeWarning, report.State, "Pool %q of node %q is %s. %s", report.Name, m.cluster.NodeName, report.State, report.Message)
	case before != "":
		m.cluster.Events.Eventf(have, corev1.EventTypeNormal, ready, "Pool %q of node %q is ready again, it was %s", report.Name, m.cluster.NodeName, before)
	}
}

// recordRescans records an Event for a quota that was inconsistent, which the state may not
// show any more.
func (m *Mirror) recordRescans(pool *v1alpha1.Pool, report PoolReport) {
	if report.Rescans > m.claims.rescans[report.ID] {
		m.cluster.Events.Eventf(pool, corev1.EventTypeWarning, quotaInconsistent,
			"The quota of pool %q of node %q was inconsistent, so its limits were void; it is rescanned, and they hold when that is done", report.Name, m.cluster.NodeName)
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
