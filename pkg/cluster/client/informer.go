package client

import (
	"context"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/gentype"
	"k8s.io/client-go/tools/cache"
)

// Informer is a cache of the objects of one resource.
type Informer[O metav1.Object] struct{ cache.SharedIndexInformer }

// newInformer returns a cache of the objects that match a field selector, of all for "". It is
// empty until it runs.
func newInformer[T any, O object[T], L runtime.Object](client *gentype.ClientWithList[O, L], fieldSelector string, indexers cache.Indexers) Informer[O] {
	informer := cache.NewSharedIndexInformer(&cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			o.FieldSelector = fieldSelector
			return client.List(ctx, o)
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			o.FieldSelector = fieldSelector
			return client.Watch(ctx, o)
		},
	}, O(new(T)), 0, indexers)
	_ = informer.SetTransform(Slim) // fails only while the informer runs
	return Informer[O]{informer}
}

// indexer returns an index of objects by a key. It omits objects whose key is "".
func indexer[O any](key func(O) string) cache.IndexFunc {
	return func(o any) ([]string, error) {
		if key := key(o.(O)); key != "" {
			return []string{key}, nil
		}
		return nil, nil
	}
}

// Get returns the object with a key: its name, or its namespace/name.
func (i Informer[O]) Get(key string) (object O, ok bool) {
	found, ok, _ := i.GetStore().GetByKey(key) // a store in memory never fails
	if ok {
		object = found.(O)
	}
	return object, ok
}

// List returns all objects.
func (i Informer[O]) List() []O { return typed[O](i.GetStore().List()) }

// ByIndex returns the objects with a key in an index, by name. What is written about the first
// of several stays the same then.
func (i Informer[O]) ByIndex(index, key string) []O {
	found, _ := i.GetIndexer().ByIndex(index, key) // fails only for an unknown index
	objects := typed[O](found)
	slices.SortFunc(objects, func(a, b O) int { return strings.Compare(a.GetName(), b.GetName()) })
	return objects
}

func typed[O any](found []any) []O {
	objects := make([]O, 0, len(found))
	for _, o := range found {
		objects = append(objects, o.(O))
	}
	return objects
}

// Handlers are called for each object that is added, updated or deleted. Each may be nil.
type Handlers[O any] struct {
	Add    func(O)
	Update func(was, is O)
	Delete func(O)
}

// Handle adds handlers.
func (i Informer[O]) Handle(h Handlers[O]) {
	funcs := cache.ResourceEventHandlerFuncs{}
	if h.Add != nil {
		funcs.AddFunc = func(o any) { h.Add(o.(O)) }
	}
	if h.Update != nil {
		funcs.UpdateFunc = func(was, is any) { h.Update(was.(O), is.(O)) }
	}
	if h.Delete != nil {
		funcs.DeleteFunc = func(o any) {
			if tombstone, ok := o.(cache.DeletedFinalStateUnknown); ok {
				o = tombstone.Obj // the watch missed the deletion
			}
			if o, ok := o.(O); ok {
				h.Delete(o)
			}
		}
	}
	_, _ = i.AddEventHandler(funcs) // fails only for an informer that has stopped
}

// Slim removes the fields that no controller reads, since each node caches the claims and volumes
// of the whole cluster.
func Slim(o any) (any, error) {
	switch o := o.(type) {
	case *corev1.PersistentVolume:
		spec := corev1.PersistentVolumeSpec{NodeAffinity: o.Spec.NodeAffinity, PersistentVolumeReclaimPolicy: o.Spec.PersistentVolumeReclaimPolicy}
		if csi := o.Spec.CSI; csi != nil {
			spec.CSI = &corev1.CSIPersistentVolumeSource{Driver: csi.Driver, VolumeHandle: csi.VolumeHandle}
		}
		if o.Spec.ClaimRef != nil {
			spec.ClaimRef = &corev1.ObjectReference{} // controllers only read whether it is set
		}
		o.Spec = spec
	case *corev1.PersistentVolumeClaim:
		o.Spec = corev1.PersistentVolumeClaimSpec{
			VolumeName: o.Spec.VolumeName, StorageClassName: o.Spec.StorageClassName, DataSource: o.Spec.DataSource,
		}
		selected, ok := o.Annotations[AnnotationSelectedNode]
		o.Annotations = nil
		if ok {
			o.Annotations = map[string]string{AnnotationSelectedNode: selected}
		}
		o.Status = corev1.PersistentVolumeClaimStatus{}
	}
	if object, ok := o.(metav1.Object); ok {
		object.SetManagedFields(nil)
	}
	return o, nil
}
