package mirror

import (
	"context"
	"errors"
	"fmt"
	"time"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
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

// bySource indexes claims by the claim or snapshot that they are made from.
const bySource = "source"

// homing sends restores and clones home. A volume is copied where its source is,
// without a copy being made; the scheduler knows nothing of that, and would try
// node after node. Each driver puts its own node into the claims whose source it
// has, as the scheduler would, and the pod follows the claim.
type homing struct {
	m       *Mirror
	claims  cache.SharedIndexInformer // PersistentVolumeClaims
	classes cache.SharedIndexInformer // StorageClasses
	queue   workqueue.TypedRateLimitingInterface[types.NamespacedName]
}

func newHoming(m *Mirror) *homing {
	h := &homing{
		m:       m,
		claims:  follow(m.clients.claims(""), ""),
		classes: follow(m.clients.classes(), ""),
		queue: workqueue.NewTypedRateLimitingQueue(
			workqueue.NewTypedItemExponentialFailureRateLimiter[types.NamespacedName](50*time.Millisecond, time.Minute)),
	}
	_ = h.claims.AddIndexers(cache.Indexers{bySource: func(o any) ([]string, error) {
		claim := o.(*corev1.PersistentVolumeClaim)
		if s, ok := sourceOf(claim); ok && unmade(claim) {
			return []string{s.key(claim.Namespace)}, nil
		}
		return nil, nil
	}})
	seen := func(o any) { h.enqueue(o.(*corev1.PersistentVolumeClaim)) }
	_, _ = h.claims.AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: seen, UpdateFunc: func(_, o any) { seen(o) }})
	// A source becomes known when its snapshot is made, or its claim bound.
	snapshot := func(o any) {
		h.wake(source{snapshotKind, o.(*snapshotv1.VolumeSnapshot).Name}, o.(*snapshotv1.VolumeSnapshot).Namespace)
	}
	_, _ = m.contents.snapshots.AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: snapshot, UpdateFunc: func(_, o any) { snapshot(o) }})
	return h
}

const (
	snapshotKind = "VolumeSnapshot"
	claimKind    = "PersistentVolumeClaim"
)

// source is what a claim is made from, in its own namespace.
type source struct{ kind, name string }

func (s source) key(namespace string) string { return s.kind + "/" + namespace + "/" + s.name }

// sourceOf returns what a claim is made from; false for nothing, or what is not
// for CSI to read.
func sourceOf(claim *corev1.PersistentVolumeClaim) (source, bool) {
	ref := claim.Spec.DataSource
	if ref == nil {
		return source{}, false
	}
	group := ""
	if ref.APIGroup != nil {
		group = *ref.APIGroup
	}
	switch {
	case ref.Kind == snapshotKind && group == snapshotv1.GroupName, ref.Kind == claimKind && group == "":
		return source{ref.Kind, ref.Name}, true
	}
	return source{}, false
}

// unmade reports whether the volume of a claim is still to be made.
func unmade(claim *corev1.PersistentVolumeClaim) bool {
	return claim.Spec.VolumeName == "" && claim.DeletionTimestamp == nil
}

func (h *homing) enqueue(claim *corev1.PersistentVolumeClaim) {
	if claim.Spec.VolumeName != "" {
		h.wake(source{claimKind, claim.Name}, claim.Namespace) // what is made from it can go on
		return
	}
	if _, ok := sourceOf(claim); ok && unmade(claim) {
		h.queue.Add(types.NamespacedName{Namespace: claim.Namespace, Name: claim.Name})
	}
}

// rescan looks again at all claims that are made from a source.
func (h *homing) rescan() {
	for _, o := range h.claims.GetStore().List() {
		if claim := o.(*corev1.PersistentVolumeClaim); unmade(claim) {
			h.enqueue(claim)
		}
	}
}

// wake looks again at the claims that are made from a source.
func (h *homing) wake(s source, namespace string) {
	waiting, _ := h.claims.GetIndexer().ByIndex(bySource, s.key(namespace))
	for _, o := range waiting {
		h.enqueue(o.(*corev1.PersistentVolumeClaim))
	}
}

func (h *homing) run(ctx context.Context) {
	if !cache.WaitForCacheSync(ctx.Done(), h.claims.HasSynced, h.classes.HasSynced) {
		return
	}
	context.AfterFunc(ctx, h.queue.ShutDown)
	work(ctx, h.queue, h.sync)
}

// sync puts this node into a claim whose source is here.
func (h *homing) sync(ctx context.Context, key types.NamespacedName) error {
	o, ok, err := h.claims.GetStore().GetByKey(key.String())
	if err != nil || !ok {
		return err
	}
	claim := o.(*corev1.PersistentVolumeClaim)
	s, ok := sourceOf(claim)
	if !ok || !unmade(claim) || h.classOf(claim) == nil || claim.Annotations[selectedNode] == h.m.options.NodeName {
		return nil
	}
	ref, ok := h.resolve(s, claim.Namespace)
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
	if selected := claim.Annotations[selectedNode]; selected != "" {
		// The node that was chosen may have died before it made the volume; nobody
		// else chooses again.
		if ready, err := h.m.nodeReady(ctx, selected); ready || err != nil {
			return err
		}
	}
	return h.send(ctx, claim, ref)
}

// classOf returns the StorageClass of a claim that is for this driver to
// provision, else nil.
func (h *homing) classOf(claim *corev1.PersistentVolumeClaim) *storagev1.StorageClass {
	if claim.Spec.StorageClassName == nil {
		return nil
	}
	o, ok, _ := h.classes.GetStore().GetByKey(*claim.Spec.StorageClassName)
	if !ok || o.(*storagev1.StorageClass).Provisioner != h.m.options.Driver {
		return nil
	}
	return o.(*storagev1.StorageClass)
}

// resolve returns the volume or snapshot that a source stands for; false while
// there is none.
func (h *homing) resolve(s source, namespace string) (meta.Ref, bool) {
	if s.kind == snapshotKind {
		return h.m.contents.resolve(namespace, s.name)
	}
	o, ok, _ := h.claims.GetStore().GetByKey(namespace + "/" + s.name)
	if !ok {
		return meta.Ref{}, false
	}
	v, ok, _ := h.m.volumes.GetStore().GetByKey(o.(*corev1.PersistentVolumeClaim).Spec.VolumeName)
	if !ok {
		return meta.Ref{}, false
	}
	handle := h.m.handleOf(v.(*corev1.PersistentVolume))
	return meta.Volume(handle), handle != ""
}

// send selects this node for a claim. Whoever else did so in the meantime, the
// scheduler say, has the last word: the resource version must still be the same.
func (h *homing) send(ctx context.Context, claim *corev1.PersistentVolumeClaim, ref meta.Ref) error {
	patch := fmt.Sprintf(`{"metadata":{"resourceVersion":%q,"annotations":{%q:%q}}}`, claim.ResourceVersion, selectedNode, h.m.options.NodeName)
	_, err := h.m.clients.claims(claim.Namespace).Patch(ctx, claim.Name, types.MergePatchType, []byte(patch), metav1.PatchOptions{})
	if apierrors.IsConflict(err) || apierrors.IsNotFound(err) {
		return nil // its event comes
	}
	if err == nil {
		klog.FromContext(ctx).Info("Claim sent to the node of its source", "claim", klog.KObj(claim), "source", ref)
	}
	return err
}
