package placement

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"maps"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/klog/v2"

	"github.com/btrfs-csi/btrfs-csi/api/v1alpha1"
	"github.com/btrfs-csi/btrfs-csi/pkg/cluster/client"
	"github.com/btrfs-csi/btrfs-csi/pkg/cluster/node"
	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
)

const (
	// lookForUnschedulable is the time between two looks at claims that no node takes.
	lookForUnschedulable = 10 * time.Second
	// lookAgain is the time between two looks at a claim that needs no Event, and between
	// two lists of all Pools.
	lookAgain = 30 * time.Second
	// lookSeldom is the time between two Events on one claim, two looks at one that only
	// waits for a pod, as many do, and two looks of a node that is not the reporter. Anybody
	// can make claims, and a thousand nodes would list all Pools.
	lookSeldom = 2 * time.Minute
	// lookTogether is lookSeldom where every node records Events: there may be a thousand.
	lookTogether = 10 * time.Minute
)

// Unschedulable records Events on claims that no node can take: their source is on no live
// node, or no node has a pool for them. The scheduler only says that there is no room.
type Unschedulable struct {
	cluster *client.Cluster
	node    node.Pools
	owner   node.Owner

	// What follows is used by Reconcile alone.
	nextOf map[types.UID]time.Time // when a claim is looked at again
	next   time.Time               // when any is
	pools  []v1alpha1.Pool         // that have an owner
	listed time.Time               // when the Pools were
}

// NewUnschedulable returns the controller of the claims that no node can take.
func NewUnschedulable(cluster *client.Cluster, node node.Pools, owner node.Owner) *Unschedulable {
	return &Unschedulable{cluster: cluster, node: node, owner: owner, nextOf: map[types.UID]time.Time{}}
}

// Run records Events until ctx ends.
func (c *Unschedulable) Run(ctx context.Context) {
	tick := time.NewTicker(lookForUnschedulable)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		c.Reconcile(ctx)
	}
}

// Reconcile looks once. It must not run twice at the same time.
func (c *Unschedulable) Reconcile(ctx context.Context) {
	if time.Now().Before(c.next) {
		return
	}
	waiting := c.waiting(ctx)
	maps.DeleteFunc(c.nextOf, func(uid types.UID, next time.Time) bool { return waiting[uid] == nil || !time.Now().Before(next) })
	maps.DeleteFunc(waiting, func(uid types.UID, _ *corev1.PersistentVolumeClaim) bool { return !c.nextOf[uid].IsZero() })
	if len(waiting) == 0 {
		return
	}
	if time.Since(c.listed) >= lookAgain {
		pools, err := c.cluster.API.Pools().List(ctx, metav1.ListOptions{ResourceVersion: "0"})
		if err != nil {
			return
		}
		c.pools = slices.DeleteFunc(pools.Items, func(p v1alpha1.Pool) bool { return p.Spec.NodeName == "" })
		c.listed = time.Now()
	}
	reports, alone := c.isReporter(ctx, c.pools)
	if !reports {
		c.next = time.Now().Add(lookSeldom)
		return
	}
	for uid, claim := range waiting {
		c.nextOf[uid] = time.Now().Add(c.report(ctx, claim, alone))
	}
}

// isReporter reports whether this node records the Events of all nodes, and whether it
// alone does. The reporter is the first, by name, of the ready nodes that own a pool. Where
// none does, no node knows of the others, and each one is a reporter. It does no harm that
// for a while two are the first, or none.
func (c *Unschedulable) isReporter(ctx context.Context, pools []v1alpha1.Pool) (reports, alone bool) {
	var owners []string
	for _, pool := range pools {
		owners = append(owners, pool.Spec.NodeName)
	}
	slices.Sort(owners)
	for _, owner := range slices.Compact(owners) {
		if owner == c.cluster.NodeName {
			return true, true
		}
		if ready, err := c.cluster.API.NodeReady(ctx, owner); ready || err != nil {
			return false, false
		}
	}
	return true, false
}

// report looks at one claim, and returns the time to the next look.
func (c *Unschedulable) report(ctx context.Context, claim *corev1.PersistentVolumeClaim, alone bool) time.Duration {
	class := c.cluster.ClassOf(claim)
	reason, message := "SourceUnavailable", c.whyNoSource(ctx, claim)
	if message == "" {
		reason, message = whyNoPool(claim, class, c.pools)
	}
	switch {
	case message == "" && isUnconstrained(claim, class):
		return lookSeldom
	case message == "":
		return lookAgain
	case alone:
		c.cluster.Events.Event(claim, corev1.EventTypeWarning, reason, message)
		return lookSeldom
	}
	c.recordOnce(ctx, claim, reason, message)
	return lookTogether
}

// recordOnce writes an Event that other nodes write too: they give it one name, and the API
// server takes the first.
func (c *Unschedulable) recordOnce(ctx context.Context, claim *corev1.PersistentVolumeClaim, reason, message string) {
	sum, now := sha256.Sum256([]byte(string(claim.UID)+reason+message)), metav1.Now()
	_, err := c.cluster.API.Events(claim.Namespace).Create(ctx, &corev1.Event{
		ObjectMeta: metav1.ObjectMeta{Namespace: claim.Namespace, Name: "btrfs-csi." + hex.EncodeToString(sum[:16])},
		InvolvedObject: corev1.ObjectReference{
			APIVersion: "v1", Kind: client.KindClaim, Namespace: claim.Namespace, Name: claim.Name, UID: claim.UID, ResourceVersion: claim.ResourceVersion,
		},
		Type: corev1.EventTypeWarning, Reason: reason, Message: message, Source: corev1.EventSource{Component: c.cluster.Driver},
		FirstTimestamp: now, LastTimestamp: now, Count: 1,
	}, metav1.CreateOptions{})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		klog.FromContext(ctx).V(2).Info("Event not written", "claim", klog.KObj(claim), "message", message, "reason", err)
	}
}

// waiting returns the claims of this driver that have waited for their volume for a while,
// but for those that this node could take.
func (c *Unschedulable) waiting(ctx context.Context) map[types.UID]*corev1.PersistentVolumeClaim {
	takesHere := sync.OnceValue(func() bool { return c.takesUnconstrained(ctx) })
	waiting := map[types.UID]*corev1.PersistentVolumeClaim{}
	for _, claim := range c.cluster.Claims.List() {
		if !client.IsPending(claim) || time.Since(claim.CreationTimestamp.Time) < lookForUnschedulable {
			continue
		}
		class := c.cluster.ClassOf(claim)
		if class != nil && (!isUnconstrained(claim, class) || !takesHere()) {
			waiting[claim.UID] = claim
		}
	}
	return waiting
}

// takesUnconstrained reports whether this node has a pool for unconstrained claims, which
// need no Event then, or does not know yet.
func (c *Unschedulable) takesUnconstrained(ctx context.Context) bool {
	select {
	case <-c.owner.Decided():
	default:
		return true
	}
	var pools []string
	for _, report := range c.node.Pools(ctx) {
		if report.ID != "" && c.owner.Owns(report.ID) {
			pools = append(pools, report.Name)
		}
	}
	return takeUnconstrained(pools)
}

// whyNoSource returns why nothing can be made from the source of a claim; "" where it can,
// or will.
func (c *Unschedulable) whyNoSource(ctx context.Context, claim *corev1.PersistentVolumeClaim) string {
	if selected := claim.Annotations[client.AnnotationSelectedNode]; selected != "" {
		if ready, err := c.cluster.API.NodeReady(ctx, selected); ready || err != nil {
			return ""
		}
	}
	s, ok := client.SourceOf(claim)
	if !ok {
		return ""
	}
	ref, ok := c.cluster.Resolve(s, claim.Namespace)
	if !ok {
		return ""
	}
	return c.whyUnavailable(ctx, ref)
}

// whyUnavailable returns why nothing can be made from a volume or snapshot.
func (c *Unschedulable) whyUnavailable(ctx context.Context, ref meta.Ref) string {
	owner, _, err := c.cluster.Locate(ctx, ref)
	switch {
	case err != nil:
		return ""
	case owner == "":
		return "No node has the source, " + ref.String() + ": it was removed by hand, or its pool was never seen by this cluster"
	}
	if ready, err := c.cluster.API.NodeReady(ctx, owner); ready || err != nil {
		return ""
	}
	return "The source, " + ref.String() + ", is on node " + owner + ", which is gone or not ready: copies of it are made there; " +
		"bring the node back, or attach its disk to another node"
}
