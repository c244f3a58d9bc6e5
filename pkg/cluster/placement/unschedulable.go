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
	// lookForUnschedulable is the time between two rounds, and the least age of a claim.
	lookForUnschedulable = 10 * time.Second
	// lookAgain is the time between two checks of a claim that needs no Event, and between two
	// lists of all Pools.
	lookAgain = 30 * time.Second
	// lookSeldom is the time between two Events on one claim, between two checks of a claim that
	// only waits for a pod, and between two rounds of a node that is not the reporter. Any user can
	// create claims, and each of a thousand nodes would list all Pools.
	lookSeldom = 2 * time.Minute
	// lookTogether replaces lookSeldom if each of perhaps a thousand nodes records Events.
	lookTogether = 10 * time.Minute
)

// Unschedulable records Events on claims that no node can take, because their source is on no live
// node or no node has a pool for them. The scheduler only reports that there is no space.
type Unschedulable struct {
	cluster *client.Cluster
	node    node.Pools
	owner   node.Owner

	// Only Reconcile uses the fields below.
	nextOf map[types.UID]time.Time // the next check of each claim
	next   time.Time               // the next round
	pools  []v1alpha1.Pool         // with an owner
	listed time.Time               // when pools was read
}

// NewUnschedulable returns the controller of the claims that no node can take.
func NewUnschedulable(cluster *client.Cluster, node node.Pools, owner node.Owner) *Unschedulable {
	return &Unschedulable{cluster: cluster, node: node, owner: owner, nextOf: map[types.UID]time.Time{}}
}

// Run runs the controller until ctx ends.
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

// Reconcile runs one round. It must not be called concurrently.
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

// isReporter reports whether this node records the Events for all nodes, and whether it is the only
// one. The reporter is the first, by name, of the ready nodes that own a pool. If there is none, each
// node is a reporter. For a short time there may be two reporters or none, which does no harm.
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

// report checks one claim and records an Event if it needs one. It returns the time to the next check.
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

// recordOnce writes an Event that other nodes write, too. All use the same name, and the API server
// keeps the first.
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
		klog.FromContext(ctx).V(2).Info("Event not written", "pvc", klog.KObj(claim), "message", message, "reason", err)
	}
}

// waiting returns the claims of this driver that have waited for a while, without those that this
// node can take.
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

// takesUnconstrained reports whether this node can take unconstrained claims, or does not know yet.
// Then they need no Event.
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

// whyNoSource returns why the source of a claim cannot be copied; "" if it can, or may soon.
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

// whyUnavailable returns why a volume or snapshot cannot be copied; "" if it can.
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
