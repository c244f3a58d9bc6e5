package placement

import (
	"context"
	"errors"
	"fmt"
	"time"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"

	"github.com/btrfs-csi/btrfs-csi/pkg/cluster/client"
	"github.com/btrfs-csi/btrfs-csi/pkg/cluster/node"
	"github.com/btrfs-csi/btrfs-csi/pkg/cluster/queue"
	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
)

// errNoSource makes reconcile retry a claim.
var errNoSource = errors.New("its source is not there yet")

// Claims selects this node for pending claims whose source is on it. A clone or restore can only be
// made on the node of its source. The scheduler does not know that, and would try one node after
// another. The pods of the claim follow the selected node.
type Claims struct {
	cluster *client.Cluster
	node    node.Reader
	queue   queue.Queue[types.NamespacedName] // of claims
}

// NewClaims returns the controller of the claims whose source is on node.
func NewClaims(cluster *client.Cluster, node node.Reader) *Claims {
	c := &Claims{cluster: cluster, node: node, queue: queue.New[types.NamespacedName](50*time.Millisecond, time.Minute)}
	cluster.Claims.Handle(client.Handlers[*corev1.PersistentVolumeClaim]{
		Add: c.claimSeen, Update: func(_, claim *corev1.PersistentVolumeClaim) { c.claimSeen(claim) },
	})
	cluster.Snapshots.Handle(client.Handlers[*snapshotv1.VolumeSnapshot]{
		Add: c.snapshotSeen, Update: func(_, s *snapshotv1.VolumeSnapshot) { c.snapshotSeen(s) },
	})
	return c
}

// claimSeen enqueues a pending claim. For a bound claim it enqueues those that have it as source.
func (c *Claims) claimSeen(claim *corev1.PersistentVolumeClaim) {
	if claim.Spec.VolumeName != "" {
		c.sourceSeen(client.Source{Kind: client.KindClaim, Name: claim.Name}, claim.Namespace)
		return
	}
	if _, ok := client.SourceOf(claim); ok && client.IsPending(claim) {
		c.queue.Add(types.NamespacedName{Namespace: claim.Namespace, Name: claim.Name})
	}
}

func (c *Claims) snapshotSeen(s *snapshotv1.VolumeSnapshot) {
	c.sourceSeen(client.Source{Kind: client.KindSnapshot, Name: s.Name}, s.Namespace)
}

// sourceSeen enqueues the pending claims with a source.
func (c *Claims) sourceSeen(s client.Source, namespace string) {
	for _, claim := range c.cluster.ClaimsFrom(s, namespace) {
		c.claimSeen(claim)
	}
}

// Resync enqueues all pending claims.
func (c *Claims) Resync() {
	for _, claim := range c.cluster.Claims.List() {
		if client.IsPending(claim) {
			c.claimSeen(claim)
		}
	}
}

// Run runs the controller until ctx ends.
func (c *Claims) Run(ctx context.Context) {
	defer c.queue.ShutDown()
	if !cache.WaitForCacheSync(ctx.Done(), c.cluster.Claims.HasSynced, c.cluster.Classes.HasSynced) {
		return
	}
	c.queue.Run(ctx, c.reconcile)
}

// reconcile selects this node for a claim if its source is on this node.
func (c *Claims) reconcile(ctx context.Context, key types.NamespacedName) error {
	claim, ok := c.cluster.Claims.Get(key.String())
	if !ok {
		return nil
	}
	s, ok := client.SourceOf(claim)
	if !ok || !client.IsPending(claim) || c.cluster.ClassOf(claim) == nil || claim.Annotations[client.AnnotationSelectedNode] == c.cluster.NodeName {
		return nil
	}
	ref, ok := c.cluster.Resolve(s, claim.Namespace)
	if !ok {
		return errNoSource // its objects arrive by several watches, in any order
	}
	switch _, state := c.node.Look(ctx, ref); state {
	case node.Ready:
	case node.Away:
		return errNoSource
	default:
		return nil // on another node
	}
	if selected := claim.Annotations[client.AnnotationSelectedNode]; selected != "" {
		// The selected node may have died before it created the volume. Nobody else would select
		// another one.
		if ready, err := c.cluster.API.NodeReady(ctx, selected); ready || err != nil {
			return err
		}
	}
	return c.selectNode(ctx, claim, ref)
}

// selectNode selects this node for a claim, unless somebody, such as the scheduler, has changed the
// claim meanwhile.
func (c *Claims) selectNode(ctx context.Context, claim *corev1.PersistentVolumeClaim, ref meta.Ref) error {
	patch := fmt.Sprintf(`{"metadata":{"resourceVersion":%q,"annotations":{%q:%q}}}`, claim.ResourceVersion, client.AnnotationSelectedNode, c.cluster.NodeName)
	_, err := c.cluster.API.Claims(claim.Namespace).Patch(ctx, claim.Name, types.MergePatchType, []byte(patch), metav1.PatchOptions{})
	if apierrors.IsConflict(err) || apierrors.IsNotFound(err) {
		return nil // an update of the claim follows
	}
	if err == nil {
		klog.FromContext(ctx).Info("Node of the source selected for a claim", "pvc", klog.KObj(claim), "source", ref)
	}
	return err
}
