package client

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	groupv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumegroupsnapshot/v1"
	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"

	"github.com/btrfs-csi/btrfs-csi/api/v1alpha1"
)

// Cluster is the read model of all controllers of this node: they read its caches and write
// through its clients. All methods are safe for concurrent use.
type Cluster struct {
	Identity
	API    *Clients
	Events record.EventRecorder

	Subvolumes        Informer[*v1alpha1.Subvolume] // of this node only
	PersistentVolumes Informer[*corev1.PersistentVolume]
	Claims            Informer[*corev1.PersistentVolumeClaim]
	Classes           Informer[*storagev1.StorageClass]
	Snapshots         Informer[*snapshotv1.VolumeSnapshot]
	Contents          Informer[*snapshotv1.VolumeSnapshotContent]
	GroupContents     Informer[*groupv1.VolumeGroupSnapshotContent]

	// SnapshotsSynced is true once the caches of Snapshots and Contents are filled. In a cluster
	// without the snapshot API it stays false.
	SnapshotsSynced atomic.Bool
	// GroupsSynced is the same for the cache of GroupContents.
	GroupsSynced atomic.Bool

	broadcaster record.EventBroadcaster
}

// Indexes of the caches.
const (
	byHandle = "handle"
	bySource = "source"
)

// retrySnapshots is the time between two checks whether somebody has installed an API of snapshots.
const retrySnapshots = 30 * time.Second

// New returns a Cluster whose caches are empty until Run.
func New(api *Clients, id Identity) *Cluster {
	broadcaster := record.NewBroadcaster()
	return &Cluster{
		Identity: id, API: api,
		Events:      broadcaster.NewRecorder(scheme, corev1.EventSource{Component: id.Driver, Host: id.NodeName}),
		broadcaster: broadcaster,

		Subvolumes:        newInformer(api.Subvolumes(), fields.OneTermEqualSelector("spec.nodeName", id.NodeName).String(), cache.Indexers{}),
		PersistentVolumes: newInformer(api.PersistentVolumes(), "", cache.Indexers{byHandle: indexer(id.VolumeHandle)}),
		Claims:            newInformer(api.Claims(""), "", cache.Indexers{bySource: indexer(sourceKeyOf)}),
		Classes:           newInformer(api.StorageClasses(), "", cache.Indexers{}),
		Snapshots:         newInformer(api.Snapshots(), "", cache.Indexers{}),
		Contents:          newInformer(api.Contents(), "", cache.Indexers{byHandle: indexer(id.SnapshotHandle)}),
		GroupContents:     newInformer(api.GroupContents(), "", cache.Indexers{byHandle: indexer(id.GroupHandle)}),
	}
}

// Run keeps the caches up to date until ctx ends, and writes Events until Close. If the API server
// does not answer, Run retries.
func (c *Cluster) Run(ctx context.Context) {
	c.broadcaster.StartRecordingToSink(eventSink{c.API})
	var all sync.WaitGroup
	defer all.Wait()
	for _, informer := range []cache.SharedIndexInformer{c.Subvolumes, c.PersistentVolumes, c.Claims, c.Classes} {
		all.Go(func() { informer.RunWithContext(ctx) })
	}
	all.Go(func() {
		follow(ctx, c.API.SnapshotsServed, &c.SnapshotsSynced, c.Snapshots, c.Contents)
	})
	all.Go(func() { follow(ctx, c.API.GroupsServed, &c.GroupsSynced, c.GroupContents) })
	<-ctx.Done()
}

// Close ends the writing of Events.
func (c *Cluster) Close() { c.broadcaster.Shutdown() }

// follow waits until the cluster serves an API, and then runs its caches.
func follow(ctx context.Context, served func(context.Context) bool, synced *atomic.Bool, informers ...cache.SharedIndexInformer) {
	err := wait.PollUntilContextCancel(ctx, retrySnapshots, true, func(ctx context.Context) (bool, error) {
		return served(ctx), nil
	})
	if err != nil {
		return // ctx has ended
	}
	var running sync.WaitGroup
	defer running.Wait()
	filled := make([]cache.InformerSynced, len(informers))
	for i, informer := range informers {
		running.Go(func() { informer.RunWithContext(ctx) })
		filled[i] = informer.HasSynced
	}
	if cache.WaitForCacheSync(ctx.Done(), filled...) {
		synced.Store(true)
		<-ctx.Done()
	}
}

// eventSink writes Events.
type eventSink struct{ api *Clients }

func (s eventSink) Create(e *corev1.Event) (*corev1.Event, error) {
	return s.api.Events(e.Namespace).Create(context.Background(), e, metav1.CreateOptions{})
}

func (s eventSink) Update(e *corev1.Event) (*corev1.Event, error) {
	return s.api.Events(e.Namespace).Update(context.Background(), e, metav1.UpdateOptions{})
}

func (s eventSink) Patch(e *corev1.Event, patch []byte) (*corev1.Event, error) {
	return s.api.Events(e.Namespace).Patch(context.Background(), e.Name, types.StrategicMergePatchType, patch, metav1.PatchOptions{})
}
