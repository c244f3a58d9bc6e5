package client

import (
	"context"

	groupv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumegroupsnapshot/v1"
	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/gentype"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/util/flowcontrol"

	"github.com/btrfs-csi/btrfs-csi/api/v1alpha1"
)

// Clients are the typed clients of the resources that the driver uses. They are built with
// gentype. The clientset of Kubernetes would link all APIs, which made the binary four times as
// large and took half of its memory.
type Clients struct {
	core, storage, snapshot, group, ours rest.Interface
}

// The typed clients, one for each resource.
type (
	nodesClient         = gentype.ClientWithList[*corev1.Node, *corev1.NodeList]
	volumesClient       = gentype.ClientWithList[*corev1.PersistentVolume, *corev1.PersistentVolumeList]
	claimsClient        = gentype.ClientWithList[*corev1.PersistentVolumeClaim, *corev1.PersistentVolumeClaimList]
	eventsClient        = gentype.ClientWithList[*corev1.Event, *corev1.EventList]
	classesClient       = gentype.ClientWithList[*storagev1.StorageClass, *storagev1.StorageClassList]
	snapshotsClient     = gentype.ClientWithList[*snapshotv1.VolumeSnapshot, *snapshotv1.VolumeSnapshotList]
	contentsClient      = gentype.ClientWithList[*snapshotv1.VolumeSnapshotContent, *snapshotv1.VolumeSnapshotContentList]
	groupContentsClient = gentype.ClientWithList[*groupv1.VolumeGroupSnapshotContent, *groupv1.VolumeGroupSnapshotContentList]
	groupClassesClient  = gentype.ClientWithList[*groupv1.VolumeGroupSnapshotClass, *groupv1.VolumeGroupSnapshotClassList]
	subvolumeClient     = gentype.ClientWithList[*v1alpha1.Subvolume, *v1alpha1.SubvolumeList]
	poolsClient         = gentype.ClientWithList[*v1alpha1.Pool, *v1alpha1.PoolList]
)

// Connect returns clients that share the rate limit of config. It does not contact the API
// server.
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
		{&c.snapshot, snapshotv1.SchemeGroupVersion, runtime.ContentTypeJSON}, // custom resources support only JSON
		{&c.group, groupv1.SchemeGroupVersion, runtime.ContentTypeJSON},
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

// newScheme returns a scheme with the types of the clients.
func newScheme() *runtime.Scheme {
	s := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{
		corev1.AddToScheme, storagev1.AddToScheme, snapshotv1.AddToScheme, groupv1.AddToScheme, v1alpha1.AddToScheme,
	} {
		if err := add(s); err != nil {
			panic(err) // two types have one name: a bug
		}
	}
	return s
}

func (c *Clients) Nodes() *nodesClient {
	return resourceClient[corev1.Node, corev1.NodeList](c.core, "nodes", "")
}

func (c *Clients) PersistentVolumes() *volumesClient {
	return resourceClient[corev1.PersistentVolume, corev1.PersistentVolumeList](c.core, "persistentvolumes", "")
}

// Claims returns the client of a namespace, or of all namespaces, to list and watch, for "".
func (c *Clients) Claims(namespace string) *claimsClient {
	return resourceClient[corev1.PersistentVolumeClaim, corev1.PersistentVolumeClaimList](c.core, "persistentvolumeclaims", namespace)
}

func (c *Clients) Events(namespace string) *eventsClient {
	return resourceClient[corev1.Event, corev1.EventList](c.core, "events", namespace)
}

func (c *Clients) StorageClasses() *classesClient {
	return resourceClient[storagev1.StorageClass, storagev1.StorageClassList](c.storage, "storageclasses", "")
}

func (c *Clients) Snapshots() *snapshotsClient {
	return resourceClient[snapshotv1.VolumeSnapshot, snapshotv1.VolumeSnapshotList](c.snapshot, "volumesnapshots", "")
}

func (c *Clients) Contents() *contentsClient {
	return resourceClient[snapshotv1.VolumeSnapshotContent, snapshotv1.VolumeSnapshotContentList](c.snapshot, "volumesnapshotcontents", "")
}

func (c *Clients) GroupContents() *groupContentsClient {
	return resourceClient[groupv1.VolumeGroupSnapshotContent, groupv1.VolumeGroupSnapshotContentList](c.group, "volumegroupsnapshotcontents", "")
}

func (c *Clients) GroupClasses() *groupClassesClient {
	return resourceClient[groupv1.VolumeGroupSnapshotClass, groupv1.VolumeGroupSnapshotClassList](c.group, "volumegroupsnapshotclasses", "")
}

func (c *Clients) Subvolumes() *subvolumeClient {
	return resourceClient[v1alpha1.Subvolume, v1alpha1.SubvolumeList](c.ours, "subvolumes", "")
}

func (c *Clients) Pools() *poolsClient {
	return resourceClient[v1alpha1.Pool, v1alpha1.PoolList](c.ours, "pools", "")
}

// SnapshotsServed reports whether the cluster has the snapshot API. Kubernetes itself does not.
func (c *Clients) SnapshotsServed(ctx context.Context) bool {
	return c.snapshot.Get().AbsPath("/apis/"+snapshotv1.SchemeGroupVersion.String()).Do(ctx).Error() == nil
}

// GroupsServed reports whether the cluster has the API of groups of snapshots.
func (c *Clients) GroupsServed(ctx context.Context) bool {
	return c.group.Get().AbsPath("/apis/"+groupv1.SchemeGroupVersion.String()).Do(ctx).Error() == nil
}

// object is the constraint of gentype on a type.
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
