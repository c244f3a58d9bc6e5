package mirror

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"

	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
)

// unlabelled indexes the contents that no node's snapshotter looks after, by the
// volume that they are to be made of.
const unlabelled = "unlabelled"

// misled indexes the contents of other drivers by the volume that they are to be
// made of, which may be of this one.
const misled = "misled"

// retrySnapshots is the time between two looks whether the cluster knows of
// snapshots by now.
const retrySnapshots = 30 * time.Second

// snapshotCaches follow VolumeSnapshots and their contents, from when the
// cluster has them: they are no part of Kubernetes itself.
type snapshotCaches struct {
	m         *Mirror
	snapshots cache.SharedIndexInformer
	contents  cache.SharedIndexInformer // by handle
	served    atomic.Bool
}

func (c *snapshotCaches) init(m *Mirror) {
	c.m = m
	c.snapshots = follow(m.clients.snapshots(), "")
	c.contents = follow(m.clients.contents(), "")
	_ = c.contents.AddIndexers(cache.Indexers{
		byHandle:   func(o any) ([]string, error) { return some(c.handleOf(o.(*snapshotv1.VolumeSnapshotContent))), nil },
		unlabelled: func(o any) ([]string, error) { return some(c.volumeOf(o.(*snapshotv1.VolumeSnapshotContent))), nil },
		misled:     func(o any) ([]string, error) { return some(c.misledOf(o.(*snapshotv1.VolumeSnapshotContent))), nil },
	})
	seen := func(o any) {
		if handle := c.handleOf(o.(*snapshotv1.VolumeSnapshotContent)); handle != "" {
			m.queue.AddAfter(meta.Snapshot(handle), settle)
		}
		content := o.(*snapshotv1.VolumeSnapshotContent)
		if volume := c.volumeOf(content) + c.misledOf(content); volume != "" { // one or the other
			m.queue.AddAfter(meta.Volume(volume), settle)
		}
	}
	_, _ = c.contents.AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: seen, UpdateFunc: func(before, o any) {
		was, is := before.(*snapshotv1.VolumeSnapshotContent), o.(*snapshotv1.VolumeSnapshotContent)
		if c.handleOf(was) == "" || lineageTouched(was.Annotations, is.Annotations) || was.Labels[managedBy] != is.Labels[managedBy] {
			seen(o)
		}
	}})
	_, _ = c.snapshots.AddEventHandler(cache.ResourceEventHandlerFuncs{UpdateFunc: func(before, o any) {
		if isReady(before) != isReady(o) {
			m.unrest.stir(time.Now())
		}
	}})
}

func isReady(snapshot any) bool {
	status := snapshot.(*snapshotv1.VolumeSnapshot).Status
	return status != nil && status.ReadyToUse != nil && *status.ReadyToUse
}

func (c *snapshotCaches) handleOf(content *snapshotv1.VolumeSnapshotContent) string {
	return handleOf(content, c.m.options.Driver)
}

// volumeOf returns the volume of which a snapshot is to be made by nobody in
// particular, "" for all others.
func (c *snapshotCaches) volumeOf(content *snapshotv1.VolumeSnapshotContent) string {
	if content.Spec.Driver != c.m.options.Driver || content.Spec.Source.VolumeHandle == nil || content.Labels[managedBy] != "" {
		return ""
	}
	return *content.Spec.Source.VolumeHandle
}

// misledOf returns the volume of which another driver is to make a snapshot and has
// not, "" for all others.
func (c *snapshotCaches) misledOf(content *snapshotv1.VolumeSnapshotContent) string {
	if content.Spec.Driver == c.m.options.Driver || content.Spec.Source.VolumeHandle == nil || content.Status != nil && content.Status.SnapshotHandle != nil {
		return ""
	}
	return *content.Spec.Source.VolumeHandle
}

func some(key string) []string {
	if key == "" {
		return nil
	}
	return []string{key}
}

// run waits until the cluster knows of snapshots, and follows them.
func (c *snapshotCaches) run(ctx context.Context) {
	err := wait.PollUntilContextCancel(ctx, retrySnapshots, true, func(ctx context.Context) (bool, error) {
		return c.m.clients.snapshotsServed(ctx), nil
	})
	if err != nil {
		return // ctx has ended
	}
	var running sync.WaitGroup
	defer running.Wait()
	running.Go(func() { c.snapshots.RunWithContext(ctx) })
	running.Go(func() { c.contents.RunWithContext(ctx) })
	if cache.WaitForCacheSync(ctx.Done(), c.snapshots.HasSynced, c.contents.HasSynced) {
		c.served.Store(true)
		klog.FromContext(ctx).V(2).Info("Following VolumeSnapshots")
		<-ctx.Done()
	}
}

// ofHandle returns the contents of a snapshot.
func (c *snapshotCaches) ofHandle(handle string) []*snapshotv1.VolumeSnapshotContent {
	found, _ := c.contents.GetIndexer().ByIndex(byHandle, handle)
	contents := make([]*snapshotv1.VolumeSnapshotContent, 0, len(found))
	for _, o := range found {
		contents = append(contents, o.(*snapshotv1.VolumeSnapshotContent))
	}
	return contents
}

// resolve returns the snapshot that a VolumeSnapshot stands for; false while it
// stands for none of this driver.
func (c *snapshotCaches) resolve(namespace, name string) (meta.Ref, bool) {
	o, ok, _ := c.snapshots.GetStore().GetByKey(namespace + "/" + name)
	if !ok {
		return meta.Ref{}, false
	}
	status := o.(*snapshotv1.VolumeSnapshot).Status
	if status == nil || status.BoundVolumeSnapshotContentName == nil {
		return meta.Ref{}, false
	}
	content, ok, _ := c.contents.GetStore().GetByKey(*status.BoundVolumeSnapshotContentName)
	if !ok {
		return meta.Ref{}, false
	}
	handle := c.handleOf(content.(*snapshotv1.VolumeSnapshotContent))
	return meta.Snapshot(handle), handle != ""
}

// annotate writes the lineage to a snapshot's content, and hands it to the
// snapshotter of this node: that of another has it where the pool was moved, and
// none where the content was made by hand.
func (c *snapshotCaches) annotate(ctx context.Context, entry meta.Entry) error {
	for _, content := range c.ofHandle(entry.ID) {
		patch := metadataPatch(content.Annotations, lineage(entry), content.Labels, map[string]string{managedBy: c.m.options.NodeName})
		if patch == nil {
			continue
		}
		_, err := c.m.clients.contents().Patch(ctx, content.Name, types.MergePatchType, patch, metav1.PatchOptions{})
		if err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("annotate VolumeSnapshotContent %s: %w", content.Name, err)
		}
	}
	return nil
}

// adopt has the snapshotter of this node make the snapshots of a volume that
// nobody makes: the snapshot-controller finds no node for a volume whose pool has
// no label on a Node yet, and does not look again.
func (c *snapshotCaches) adopt(ctx context.Context, entry meta.Entry) error {
	found, _ := c.contents.GetIndexer().ByIndex(unlabelled, entry.ID)
	for _, o := range found {
		content := o.(*snapshotv1.VolumeSnapshotContent)
		patch := metadataPatch(nil, nil, content.Labels, map[string]string{managedBy: c.m.options.NodeName})
		_, err := c.m.clients.contents().Patch(ctx, content.Name, types.MergePatchType, patch, metav1.PatchOptions{})
		if err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("label VolumeSnapshotContent %s: %w", content.Name, err)
		}
	}
	return nil
}

// warn records an Event on snapshots of a volume whose class is that of another driver: that
// one, if there is such a one, knows nothing of the volume, and nobody else says so.
func (c *snapshotCaches) warn(entry meta.Entry) {
	found, _ := c.contents.GetIndexer().ByIndex(misled, entry.ID)
	for _, o := range found {
		content := o.(*snapshotv1.VolumeSnapshotContent)
		class := ""
		if content.Spec.VolumeSnapshotClassName != nil {
			class = *content.Spec.VolumeSnapshotClassName
		}
		c.m.events.Eventf(&content.Spec.VolumeSnapshotRef, corev1.EventTypeWarning, "WrongSnapshotClass",
			"VolumeSnapshotClass %q is of the driver %q, the volume is of %q: delete this snapshot, and make it with a class of that driver",
			class, content.Spec.Driver, c.m.options.Driver)
	}
}
