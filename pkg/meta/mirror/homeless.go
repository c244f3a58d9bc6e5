package mirror

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
)

const (
	// lookForHomeless is the time between two looks at claims that nobody takes.
	lookForHomeless = 10 * time.Second
	// poolParameter is the parameter of a StorageClass that names a pool.
	poolParameter = "pool"
	// tellHomeless is the time between two Events on one of them.
	tellHomeless = 2 * time.Minute
)

// spokesman reports whether this node is the one that speaks for those that
// cannot speak any more: the first, by name, of the ready nodes that have a pool.
// It does not matter that for a while two may be, or none.
func (m *Mirror) spokesman(ctx context.Context) bool {
	pools, err := m.clients.pools().List(ctx, metav1.ListOptions{ResourceVersion: "0"})
	if err != nil {
		return false
	}
	var nodes []string
	for _, pool := range pools.Items {
		nodes = append(nodes, pool.Spec.NodeName)
	}
	slices.Sort(nodes)
	for _, node := range slices.Compact(nodes) {
		if node == m.options.NodeName {
			return true
		}
		if node == "" {
			continue
		}
		if ready, err := m.nodeReady(ctx, node); ready || err != nil {
			return false
		}
	}
	return false
}

// watchHomeless tells of claims that no node can take: their source is on none
// that lives, or their pool on none at all.
func (m *Mirror) watchHomeless(ctx context.Context) {
	told := map[types.UID]time.Time{}
	tick := time.NewTicker(lookForHomeless)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		waiting := m.waiting()
		maps.DeleteFunc(told, func(uid types.UID, last time.Time) bool {
			return waiting[uid] == nil || time.Since(last) >= tellHomeless
		})
		maps.DeleteFunc(waiting, func(uid types.UID, _ *corev1.PersistentVolumeClaim) bool { return !told[uid].IsZero() })
		if len(waiting) == 0 || !m.spokesman(ctx) {
			continue
		}
		for uid, claim := range waiting {
			reason, why := "SourceUnavailable", m.whyHomeless(ctx, claim)
			if why == "" {
				reason, why = "UnknownPool", m.whyPoolless(ctx, claim)
			}
			if why != "" {
				told[uid] = time.Now()
				m.events.Event(claim, corev1.EventTypeWarning, reason, why)
			}
		}
	}
}

// waiting returns the claims of this driver that are made from a source, or in a
// certain pool, and have waited for their volume for a while.
func (m *Mirror) waiting() map[types.UID]*corev1.PersistentVolumeClaim {
	waiting := map[types.UID]*corev1.PersistentVolumeClaim{}
	for _, o := range m.homing.claims.GetStore().List() {
		claim := o.(*corev1.PersistentVolumeClaim)
		if !unmade(claim) || time.Since(claim.CreationTimestamp.Time) < lookForHomeless {
			continue
		}
		class := m.homing.classOf(claim)
		if _, made := sourceOf(claim); class != nil && (made || class.Parameters[poolParameter] != "") {
			waiting[claim.UID] = claim
		}
	}
	return waiting
}

// whyHomeless says why no node takes a claim; "" where one does, or will.
func (m *Mirror) whyHomeless(ctx context.Context, claim *corev1.PersistentVolumeClaim) string {
	if selected := claim.Annotations[selectedNode]; selected != "" {
		if ready, err := m.nodeReady(ctx, selected); ready || err != nil {
			return ""
		}
	}
	s, made := sourceOf(claim)
	if !made {
		return ""
	}
	ref, ok := m.homing.resolve(s, claim.Namespace)
	if !ok {
		return ""
	}
	return m.whyUnavailable(ctx, ref)
}

// whyUnavailable says why nothing can be made from a volume or snapshot.
func (m *Mirror) whyUnavailable(ctx context.Context, ref meta.Ref) string {
	owner, _, err := m.Owner(ctx, ref)
	switch {
	case err != nil:
		return ""
	case owner == "":
		return "No node has the source, " + ref.String() + ": it was removed by hand, or its pool was never seen by this cluster"
	}
	if ready, err := m.nodeReady(ctx, owner); ready || err != nil {
		return ""
	}
	return "The source, " + ref.String() + ", is on node " + owner + ", which is gone or not ready: copies of it are made there; " +
		"bring the node back, or attach its disk to another node"
}

// whyPoolless says that no node has the pool that a claim's class names; "" where
// one does. The scheduler only says that there is no room.
func (m *Mirror) whyPoolless(ctx context.Context, claim *corev1.PersistentVolumeClaim) string {
	class := m.homing.classOf(claim)
	if class == nil || class.Parameters[poolParameter] == "" {
		return ""
	}
	pools, err := m.clients.pools().List(ctx, metav1.ListOptions{ResourceVersion: "0"})
	if err != nil {
		return ""
	}
	var have []string
	for _, pool := range pools.Items {
		if pool.Spec.NodeName != "" {
			have = append(have, pool.Spec.Pool)
		}
	}
	slices.Sort(have)
	have = slices.Compact(have)
	if slices.Contains(have, class.Parameters[poolParameter]) {
		return ""
	}
	return fmt.Sprintf("StorageClass %q names pool %q, which no node has; there are %q: mount a btrfs filesystem at pools/%s of a node, or use another class",
		class.Name, class.Parameters[poolParameter], have, class.Parameters[poolParameter])
}
