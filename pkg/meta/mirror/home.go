package mirror

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
	"k8s.io/client-go/util/workqueue"
	"k8s.io/klog/v2"

	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
)

// errNotYet has a claim looked at again.
var errNotYet = errors.New("its source is not there yet")

// homing sends restores and clones home. A volume is copied where its source is,
// without a copy being made; the scheduler knows nothing of that, and would try
// node after node. Each driver puts its own node into the claims whose source it
// has, as the scheduler would, and the pod follows the claim.
type homing struct {
	m     *Mirror
	queue workqueue.TypedRateLimitingInterface[types.NamespacedName]
}

func newHoming(m *Mirror) *homing {
	h := &homing{
		m:     m,
		queue: NewQueue[types.NamespacedName](50*time.Millisecond, time.Minute),
	}
	m.cluster.Claims.Handle(Handlers[*corev1.PersistentVolumeClaim]{
		Add: h.enqueue, Update: func(_, claim *corev1.PersistentVolumeClaim) { h.enqueue(claim) },
	})
	// A source becomes known when its snapshot is made, or its claim bound.
	snapshot := func(s *snapshotv1.VolumeSnapshot) { h.wake(Source{KindSnapshot, s.Name}, s.Namespace) }
	m.cluster.Snapshots.Handle(Handlers[*snapshotv1.VolumeSnapshot]{
		Add: snapshot, Update: func(_, s *snapshotv1.VolumeSnapshot) { snapshot(s) },
	})
	return h
}

func (h *homing) enqueue(claim *corev1.PersistentVolumeClaim) {
	if claim.Spec.VolumeName != "" {
		h.wake(Source{KindClaim, claim.Name}, claim.Namespace) // what is made from it can go on
		return
	}
	if _, ok := SourceOf(claim); ok && IsPending(claim) {
		h.queue.Add(types.NamespacedName{Namespace: claim.Namespace, Name: claim.Name})
	}
}

// rescan looks again at all claims that are made from a source.
func (h *homing) rescan() {
	for _, claim := range h.m.cluster.Claims.List() {
		if IsPending(claim) {
			h.enqueue(claim)
		}
	}
}

// wake looks again at the claims that are made from a source.
func (h *homing) wake(s Source, namespace string) {
	for _, claim := range h.m.cluster.ClaimsFrom(s, namespace) {
		h.enqueue(claim)
	}
}

func (h *homing) run(ctx context.Context) {
	if !cache.WaitForCacheSync(ctx.Done(), h.m.cluster.Claims.HasSynced, h.m.cluster.Classes.HasSynced) {
		return
	}
	RunQueue(ctx, h.queue, h.sync)
}

// sync puts this node into a claim whose source is here.
func (h *homing) sync(ctx context.Context, key types.NamespacedName) error {
	claim, ok := h.m.cluster.Claims.Get(key.String())
	if !ok {
		return nil
	}
	s, ok := SourceOf(claim)
	if !ok || !IsPending(claim) || h.m.cluster.ClassOf(claim) == nil || claim.Annotations[AnnotationSelectedNode] == h.m.cluster.NodeName {
		return nil
	}
	ref, ok := h.m.cluster.Resolve(s, claim.Namespace)
	if !ok {
		return errNotYet // what it is resolved by comes by several watches, in any order
	}
	switch _, state := h.m.node.Look(ctx, ref); state {
	case Ready:
	case Away:
		return errNotYet
	default:
		return nil // another node's
	}
	if selected := claim.Annotations[AnnotationSelectedNode]; selected != "" {
		// The node that was chosen may have died before it made the volume; nobody
		// else chooses again.
		if ready, err := h.m.cluster.API.NodeReady(ctx, selected); ready || err != nil {
			return err
		}
	}
	return h.send(ctx, claim, ref)
}

// send selects this node for a claim. Whoever else did so in the meantime, the
// scheduler say, has the last word: the resource version must still be the same.
func (h *homing) send(ctx context.Context, claim *corev1.PersistentVolumeClaim, ref meta.Ref) error {
	patch := fmt.Sprintf(`{"metadata":{"resourceVersion":%q,"annotations":{%q:%q}}}`, claim.ResourceVersion, AnnotationSelectedNode, h.m.cluster.NodeName)
	_, err := h.m.cluster.API.Claims(claim.Namespace).Patch(ctx, claim.Name, types.MergePatchType, []byte(patch), metav1.PatchOptions{})
	if apierrors.IsConflict(err) || apierrors.IsNotFound(err) {
		return nil // its event comes
	}
	if err == nil {
		klog.FromContext(ctx).Info("Claim sent to the node of its source", "claim", klog.KObj(claim), "source", ref)
	}
	return err
}
