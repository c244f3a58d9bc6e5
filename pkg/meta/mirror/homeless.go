package mirror

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/klog/v2"

	"github.com/btrfs-csi/btrfs-csi/api/v1alpha1"
	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
)

const (
	// lookForHomeless is the time between two looks at claims that nobody takes.
	lookForHomeless = 10 * time.Second
	// poolParameter is the parameter of a StorageClass that names a pool.
	poolParameter = "pool"
	// defaultPool is the pool of a class that names none, on a node that has several.
	defaultPool = "default"
	// lookAgain is the time between two looks at a claim that needs no
	// Event, and between two lists of all Pools.
	lookAgain = 30 * time.Second
	// homelessEvery is the time between two Events on one of them, two looks at one that
	// waits for no more than a pod, as many do, and two looks of a node that does not
	// speak: anybody can make claims, and each of a thousand nodes would list all Pools.
	homelessEvery = 2 * time.Minute
	// togetherEvery is that where every node records Events: there may be a thousand.
	togetherEvery = 10 * time.Minute
)

// owned returns the Pools that a node has.
func (m *Mirror) owned(ctx context.Context) ([]v1alpha1.Pool, error) {
	pools, err := m.cluster.API.Pools().List(ctx, metav1.ListOptions{ResourceVersion: "0"})
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(pools.Items, func(p v1alpha1.Pool) bool { return p.Spec.NodeName == "" }), nil
}

// speaks reports whether this node speaks for those that cannot speak any more,
// and whether it alone does: the first, by name, of the ready nodes that have a
// pool. Where none has, no node knows which others there are, and each one speaks.
// It does not matter that for a while two are the first, or none.
func (m *Mirror) speaks(ctx context.Context, pools []v1alpha1.Pool) (speaks, alone bool) {
	var nodes []string
	for _, pool := range pools {
		nodes = append(nodes, pool.Spec.NodeName)
	}
	slices.Sort(nodes)
	for _, node := range slices.Compact(nodes) {
		if node == m.cluster.NodeName {
			return true, true
		}
		if ready, err := m.cluster.API.NodeReady(ctx, node); ready || err != nil {
			return false, false
		}
	}
	return true, false
}

// homeless is what a node knows of the claims that no node can take.
type homeless struct {
	rests  map[types.UID]time.Time // until when a claim is left alone
	rest   time.Time               // until when all are
	pools  []v1alpha1.Pool
	listed time.Time // when the Pools were
}

// watchHomeless records Events on claims that no node can take: their source is on none
// that lives, or a pool for them on none at all.
func (m *Mirror) watchHomeless(ctx context.Context) {
	h := homeless{rests: map[types.UID]time.Time{}}
	tick := time.NewTicker(lookForHomeless)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		m.tellOfHomeless(ctx, &h)
	}
}

// tellOfHomeless looks once.
func (m *Mirror) tellOfHomeless(ctx context.Context, h *homeless) {
	if time.Now().Before(h.rest) {
		return
	}
	waiting := m.waiting(ctx)
	maps.DeleteFunc(h.rests, func(uid types.UID, until time.Time) bool { return waiting[uid] == nil || !time.Now().Before(until) })
	maps.DeleteFunc(waiting, func(uid types.UID, _ *corev1.PersistentVolumeClaim) bool { return !h.rests[uid].IsZero() })
	if len(waiting) == 0 {
		return
	}
	if time.Since(h.listed) >= lookAgain {
		pools, err := m.owned(ctx)
		if err != nil {
			return
		}
		h.pools, h.listed = pools, time.Now()
	}
	speaks, alone := m.speaks(ctx, h.pools)
	if !speaks {
		h.rest = time.Now().Add(homelessEvery)
		return
	}
	for uid, claim := range waiting {
		h.rests[uid] = time.Now().Add(m.tellIfHomeless(ctx, claim, h.pools, alone))
	}
}

// tellIfHomeless looks at one claim, and returns for how long it is left alone.
func (m *Mirror) tellIfHomeless(ctx context.Context, claim *corev1.PersistentVolumeClaim, pools []v1alpha1.Pool, alone bool) time.Duration {
	class := m.cluster.ClassOf(claim)
	reason, why := "SourceUnavailable", m.whyHomeless(ctx, claim)
	if why == "" {
		reason, why = whyPoolless(claim, class, pools)
	}
	switch {
	case why == "" && plain(claim, class):
		return homelessEvery
	case why == "":
		return lookAgain
	case alone:
		m.cluster.Events.Event(claim, corev1.EventTypeWarning, reason, why)
		return homelessEvery
	}
	m.recordOnce(ctx, claim, reason, why)
	return togetherEvery
}

// recordOnce writes an Event that other nodes write too: they give it one name, and
// the API server takes the first.
func (m *Mirror) recordOnce(ctx context.Context, claim *corev1.PersistentVolumeClaim, reason, why string) {
	sum, now := sha256.Sum256([]byte(string(claim.UID)+reason+why)), metav1.Now()
	_, err := m.cluster.API.Events(claim.Namespace).Create(ctx, &corev1.Event{
		ObjectMeta: metav1.ObjectMeta{Namespace: claim.Namespace, Name: "btrfs-csi." + hex.EncodeToString(sum[:16])},
		InvolvedObject: corev1.ObjectReference{
			APIVersion: "v1", Kind: KindClaim, Namespace: claim.Namespace, Name: claim.Name, UID: claim.UID, ResourceVersion: claim.ResourceVersion,
		},
		Type: corev1.EventTypeWarning, Reason: reason, Message: why, Source: corev1.EventSource{Component: m.cluster.Driver},
		FirstTimestamp: now, LastTimestamp: now, Count: 1,
	}, metav1.CreateOptions{})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		klog.FromContext(ctx).V(2).Info("Event not written", "claim", klog.KObj(claim), "message", why, "reason", err)
	}
}

// waiting returns the claims of this driver that have waited for their volume for
// a while, but for those that this node could take.
func (m *Mirror) waiting(ctx context.Context) map[types.UID]*corev1.PersistentVolumeClaim {
	plainHere := sync.OnceValue(func() bool { return m.plainHere(ctx) })
	waiting := map[types.UID]*corev1.PersistentVolumeClaim{}
	for _, claim := range m.cluster.Claims.List() {
		if !IsPending(claim) || time.Since(claim.CreationTimestamp.Time) < lookForHomeless {
			continue
		}
		class := m.cluster.ClassOf(claim)
		if class != nil && (!plain(claim, class) || !plainHere()) {
			waiting[claim.UID] = claim
		}
	}
	return waiting
}

// plain reports whether a claim is made from nothing, in no certain pool.
func plain(claim *corev1.PersistentVolumeClaim, class *storagev1.StorageClass) bool {
	_, made := SourceOf(claim)
	return !made && class != nil && class.Parameters[poolParameter] == ""
}

// plainHere reports whether this node has a pool for plain claims, which need
// no Event then, or cannot say yet.
func (m *Mirror) plainHere(ctx context.Context) bool {
	select {
	case <-m.owner.Decided():
	default:
		return true
	}
	var pools []string
	for _, report := range m.node.Pools(ctx) {
		if report.ID != "" && m.owner.Owns(report.ID) {
			pools = append(pools, report.Name)
		}
	}
	return takesPlain(pools)
}

// takesPlain reports whether a node with these pools takes plain claims.
func takesPlain(pools []string) bool {
	return len(pools) == 1 || slices.Contains(pools, defaultPool)
}

// whyHomeless says why no node takes a claim; "" where one does, or will.
func (m *Mirror) whyHomeless(ctx context.Context, claim *corev1.PersistentVolumeClaim) string {
	if selected := claim.Annotations[AnnotationSelectedNode]; selected != "" {
		if ready, err := m.cluster.API.NodeReady(ctx, selected); ready || err != nil {
			return ""
		}
	}
	s, made := SourceOf(claim)
	if !made {
		return ""
	}
	ref, ok := m.cluster.Resolve(s, claim.Namespace)
	if !ok {
		return ""
	}
	return m.whyUnavailable(ctx, ref)
}

// whyUnavailable says why nothing can be made from a volume or snapshot.
func (m *Mirror) whyUnavailable(ctx context.Context, ref meta.Ref) string {
	owner, _, err := Locate(ctx, m.cluster, ref)
	switch {
	case err != nil:
		return ""
	case owner == "":
		return "No node has the source, " + ref.String() + ": it was removed by hand, or its pool was never seen by this cluster"
	}
	if ready, err := m.cluster.API.NodeReady(ctx, owner); ready || err != nil {
		return ""
	}
	return "The source, " + ref.String() + ", is on node " + owner + ", which is gone or not ready: copies of it are made there; " +
		"bring the node back, or attach its disk to another node"
}

// whyPoolless says that no node has the pool that a claim's class names, or one
// for a class that names none; "" where one has. The scheduler only says that
// there is no room.
func whyPoolless(claim *corev1.PersistentVolumeClaim, class *storagev1.StorageClass, pools []v1alpha1.Pool) (reason, why string) {
	byNode, have := map[string][]string{}, []string{}
	for _, pool := range pools {
		byNode[pool.Spec.NodeName] = append(byNode[pool.Spec.NodeName], pool.Spec.Pool)
		have = append(have, pool.Spec.Pool)
	}
	slices.Sort(have)
	have = slices.Compact(have)
	switch isPlain := plain(claim, class); {
	case class == nil:
	case isPlain && len(pools) == 0:
		return "NoPool", "No node has a pool: mount a btrfs filesystem at /var/lib/btrfs-csi/pools/default of a node (of its stateDir, if that is another), or set loopPoolSize of the chart; " +
			"`btrfs-csi pools` in the driver of a node shows why one is not used"
	case isPlain:
		if !slices.ContainsFunc(slices.Collect(maps.Values(byNode)), takesPlain) {
			return "NoDefaultPool", fmt.Sprintf("StorageClass %q names no pool, and each node that has pools has several and none called %q; there are %q: use a class whose parameter %q names one",
				class.Name, defaultPool, have, poolParameter)
		}
	case class.Parameters[poolParameter] != "" && !slices.Contains(have, class.Parameters[poolParameter]):
		return "UnknownPool", fmt.Sprintf("StorageClass %q names pool %q, which no node has; there are %q: mount a btrfs filesystem at pools/%s of a node, or use another class",
			class.Name, class.Parameters[poolParameter], have, class.Parameters[poolParameter])
	}
	return "", ""
}
