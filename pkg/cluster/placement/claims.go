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

// errNoSource has a claim looked at again.
var errNoSource = errors.New("its source is not there yet")

// Claims selects this node for the claims whose source is here, as the
// scheduler would, and the pod follows the claim. A volume is made from another one where
// that is, without a copy. The scheduler does not know that, and would try node after node.
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

// claimSeen looks at a claim; at those that are made from it, once it is bound.
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

// sourceSeen looks at the claims that are made from a source.
func (c *Claims) sourceSeen(s client.Source, namespace string) {
	for _, claim := range c.cluster.ClaimsFrom(s, namespace) {
		c.claimSeen(claim)
	}
}

// Resync looks at all claims again.
func (c *Claims) Resync() {
	for _, claim := range c.cluster.Claims.List() {
		if client.IsPending(claim) {
			c.claimSeen(claim)
		}
	}
}

// Run selects until ctx ends.
func (c *Claims) Run(ctx context.Context) {
	defer c.queue.ShutDown()
	if !cache.WaitForCacheSync(ctx.Done(), c.cluster.Claims.HasSynced, c.cluster.Classes.HasSynced) {
		return
	}
	c.queue.Run(ctx, c.reconcile)
}

// reconcile selects this node for a claim if its source is here.
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
		return errNoSource // several watches, in any order, bring what resolves it
	}
	switch _, state := c.node.Look(ctx, ref); state {
	case node.Ready:
	case node.Away:
		return errNoSource
	default:
		return nil // another node's
	}
	if selected := claim.Annotations[client.AnnotationSelectedNode]; selected != "" {
		// The selected node may have died before it made the volume, and nothing else
		// selects another one.
		if ready, err := c.cluster.API.NodeReady(ctx, selected); ready || err != nil {
			return err
		}
	}
	return c.selectNode(ctx, claim, ref)
}

// selectNode selects this node for a claim, unless somebody else, such as the scheduler,
// has changed the claim in the meantime.
func (c *Claims) selectNode(ctx context.Context, claim *corev1.PersistentVolumeClaim, ref meta.Ref) error {
	patch := fmt.Sprintf(`{"metadata":{"resourceVersion":%q,"annotations":{%q:%q}}}`, claim.ResourceVersion, client.AnnotationSelectedNode, c.cluster.NodeName)
	_, err := c.cluster.API.Claims(claim.Namespace).Patch(ctx, claim.Name, types.MergePatchType, []byte(patch), metav1.PatchOptions{})
	if apierrors.IsConflict(err) || apierrors.IsNotFound(err) {
		return nil // the change is seen, too
	}
	if err == nil {
		klog.FromContext(ctx).Info("Claim sent to the node of its source", "claim", klog.KObj(claim), "source", ref)
	}
	return err
}
