package mirror

import (
	"context"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/gentype"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/flowcontrol"

	"github.com/btrfs-csi/btrfs-csi/api/v1alpha1"
)

// Clients is all that is used of the API server. They are made from the types
// alone: the clientset of Kubernetes would link every API there is, which made
// the program four times as large, and take half of its memory.
type Clients struct {
	core, storage, snapshot, ours rest.Interface
}

// Typed clients, each of one resource.
type (
	nodesClient     = gentype.ClientWithList[*corev1.Node, *corev1.NodeList]
	volumesClient   = gentype.ClientWithList[*corev1.PersistentVolume, *corev1.PersistentVolumeList]
	claimsClient    = gentype.ClientWithList[*corev1.PersistentVolumeClaim, *corev1.PersistentVolumeClaimList]
	eventsClient    = gentype.ClientWithList[*corev1.Event, *corev1.EventList]
	classesClient   = gentype.ClientWithList[*storagev1.StorageClass, *storagev1.StorageClassList]
	snapshotsClient = gentype.ClientWithList[*snapshotv1.VolumeSnapshot, *snapshotv1.VolumeSnapshotList]
	contentsClient  = gentype.ClientWithList[*snapshotv1.VolumeSnapshotContent, *snapshotv1.VolumeSnapshotContentList]
	subvolumeClient = gentype.ClientWithList[*v1alpha1.Subvolume, *v1alpha1.SubvolumeList]
	poolsClient     = gentype.ClientWithList[*v1alpha1.Pool, *v1alpha1.PoolList]
)

// Connect makes clients that share the rate of config. It does not wait for the
// API server.
func Connect(config *rest.Config) (*Clients, error) {
	config = rest.CopyConfig(config)
	if config.RateLimiter == nil && config.QPS > 0 {
		config.RateLimiter = flowcontrol.NewTokenBucketRateLimiter(config.QPS, config.Burst)
	}
	c := &Clients{}
	for _, group := range []struct {
		client      *rest.Interface
		version     schema.GroupVersion
		contentType string
	}{
		{&c.core, corev1.SchemeGroupVersion, runtime.ContentTypeProtobuf},
		{&c.storage, storagev1.SchemeGroupVersion, runtime.ContentTypeProtobuf},
		{&c.snapshot, snapshotv1.SchemeGroupVersion, runtime.ContentTypeJSON}, // custom resources know JSON alone
		{&c.ours, v1alpha1.GroupVersion, runtime.ContentTypeJSON},
	} {
		client, err := groupClient(config, group.version, group.contentType)
		if err != nil {
			return nil, err
		}
		*group.client = client
	}
	return c, nil
}

func groupClient(config *rest.Config, version schema.GroupVersion, contentType string) (rest.Interface, error) {
	config = rest.CopyConfig(config)
	config.GroupVersion, config.ContentType = &version, contentType
	config.APIPath = "/apis"
	if version.Group == corev1.GroupName {
		config.APIPath = "/api"
	}
	config.NegotiatedSerializer = serializer.NewCodecFactory(scheme).WithoutConversion()
	return rest.RESTClientFor(config)
}

var (
	scheme = newScheme()
	codec  = runtime.NewParameterCodec(scheme)
)

// newScheme knows the types that are used here.
func newScheme() *runtime.Scheme {
	s := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{
		corev1.AddToScheme, storagev1.AddToScheme, snapshotv1.AddToScheme, v1alpha1.AddToScheme,
	} {
		if err := add(s); err != nil {
			panic(err) // two types of one name: a mistake in the program
		}
	}
	return s
}

func (c *Clients) nodes() *nodesClient {
	return resourceClient[corev1.Node, corev1.NodeList](c.core, "nodes", "")
}

func (c *Clients) volumes() *volumesClient {
	return resourceClient[corev1.PersistentVolume, corev1.PersistentVolumeList](c.core, "persistentvolumes", "")
}

// claims returns those of a namespace; of all, to list and to watch, with "".
func (c *Clients) claims(namespace string) *claimsClient {
	return resourceClient[corev1.PersistentVolumeClaim, corev1.PersistentVolumeClaimList](c.core, "persistentvolumeclaims", namespace)
}

func (c *Clients) events(namespace string) *eventsClient {
	return resourceClient[corev1.Event, corev1.EventList](c.core, "events", namespace)
}

func (c *Clients) classes() *classesClient {
	return resourceClient[storagev1.StorageClass, storagev1.StorageClassList](c.storage, "storageclasses", "")
}

func (c *Clients) snapshots() *snapshotsClient {
	return resourceClient[snapshotv1.VolumeSnapshot, snapshotv1.VolumeSnapshotList](c.snapshot, "volumesnapshots", "")
}

func (c *Clients) contents() *contentsClient {
	return resourceClient[snapshotv1.VolumeSnapshotContent, snapshotv1.VolumeSnapshotContentList](c.snapshot, "volumesnapshotcontents", "")
}

func (c *Clients) subvolumes() *subvolumeClient {
	return resourceClient[v1alpha1.Subvolume, v1alpha1.SubvolumeList](c.ours, "subvolumes", "")
}

func (c *Clients) pools() *poolsClient {
	return resourceClient[v1alpha1.Pool, v1alpha1.PoolList](c.ours, "pools", "")
}

// snapshotsServed reports whether the cluster has the API of snapshots, which is
// no part of Kubernetes itself.
func (c *Clients) snapshotsServed(ctx context.Context) bool {
	return c.snapshot.Get().AbsPath("/apis/"+snapshotv1.SchemeGroupVersion.String()).Do(ctx).Error() == nil
}

// object is what gentype wants of a type.
type object[T any] interface {
	*T
	runtime.Object
	metav1.Object
}

type list[T any] interface {
	*T
	runtime.Object
}

func resourceClient[O, L any, PO object[O], PL list[L]](client rest.Interface, resource, namespace string) *gentype.ClientWithList[PO, PL] {
	return gentype.NewClientWithList(resource, client, codec, namespace,
		func() PO { return new(O) }, func() PL { return new(L) })
}

// follow returns the cache of the objects of a client that a field selector
// matches, all with "", to be run.
func follow[O any, PO object[O], PL runtime.Object](client *gentype.ClientWithList[PO, PL], fieldSelector string) cache.SharedIndexInformer {
	informer := cache.NewSharedIndexInformer(&cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			o.FieldSelector = fieldSelector
			return client.List(ctx, o)
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			o.FieldSelector = fieldSelector
			return client.Watch(ctx, o)
		},
	}, PO(new(O)), 0, cache.Indexers{})
	_ = informer.SetTransform(slim) // fails for one that runs already
	return informer
}

// slim leaves out what nobody here reads: every node keeps the claims and volumes
// of the whole cluster.
func slim(o any) (any, error) {
	switch o := o.(type) {
	case *corev1.PersistentVolume:
		spec := corev1.PersistentVolumeSpec{NodeAffinity: o.Spec.NodeAffinity, PersistentVolumeReclaimPolicy: o.Spec.PersistentVolumeReclaimPolicy}
		if csi := o.Spec.CSI; csi != nil {
			spec.CSI = &corev1.CSIPersistentVolumeSource{Driver: csi.Driver, VolumeHandle: csi.VolumeHandle}
		}
		if o.Spec.ClaimRef != nil {
			spec.ClaimRef = &corev1.ObjectReference{} // that there is one is all that is asked
		}
		o.Spec = spec
	case *corev1.PersistentVolumeClaim:
		o.Spec = corev1.PersistentVolumeClaimSpec{
			VolumeName: o.Spec.VolumeName, StorageClassName: o.Spec.StorageClassName, DataSource: o.Spec.DataSource,
		}
		o.Annotations = ours(o.Annotations)
		o.Status = corev1.PersistentVolumeClaimStatus{}
	}
	if object, ok := o.(metav1.Object); ok {
		object.SetManagedFields(nil)
	}
	return o, nil
}

// ours returns the annotations of a claim that are read here.
func ours(annotations map[string]string) map[string]string {
	if selected, ok := annotations[selectedNode]; ok {
		return map[string]string{selectedNode: selected}
	}
	return nil
}

// eventSink writes Events.
type eventSink struct{ *Clients }

func (s eventSink) Create(e *corev1.Event) (*corev1.Event, error) {
	return s.events(e.Namespace).Create(context.Background(), e, metav1.CreateOptions{})
}

func (s eventSink) Update(e *corev1.Event) (*corev1.Event, error) {
	return s.events(e.Namespace).Update(context.Background(), e, metav1.UpdateOptions{})
}

func (s eventSink) Patch(e *corev1.Event, patch []byte) (*corev1.Event, error) {
	return s.events(e.Namespace).Patch(context.Background(), e.Name, types.StrategicMergePatchType, patch, metav1.PatchOptions{})
}
