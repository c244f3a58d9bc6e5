package mirror

import (
	"context"
	"time"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/klog/v2"

	"github.com/btrfs-csi/btrfs-csi/api/v1alpha1"
	"github.com/btrfs-csi/btrfs-csi/pkg/cluster/client"
	"github.com/btrfs-csi/btrfs-csi/pkg/cluster/node"
	"github.com/btrfs-csi/btrfs-csi/pkg/cluster/queue"
	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
)

// Node is what Subvolumes needs of its node.
type Node interface {
	node.Reader
	// Used returns the used bytes of a volume or snapshot; false if no quota counts them.
	Used(ctx context.Context, ref meta.Ref) (int64, bool)
	node.Pools
}

// Subvolumes publishes the volumes and snapshots of this node: a Subvolume for each, and the lineage
// on the PersistentVolume or VolumeSnapshotContent.
type Subvolumes struct {
	cluster  *client.Cluster
	node     Node
	owner    node.Owner
	writer   writer
	lineage  lineageWriter
	debounce debounce
	queue    queue.Queue[meta.Ref]
}

// NewSubvolumes returns the controller of the volumes and snapshots of a node.
func NewSubvolumes(cluster *client.Cluster, node Node, owner node.Owner) *Subvolumes {
	c := &Subvolumes{
		cluster: cluster, node: node, owner: owner,
		writer: writer{cluster, node.Used}, lineage: lineageWriter{cluster},
		debounce: debounce{until: map[meta.Ref]time.Time{}},
		queue:    queue.New[meta.Ref](time.Second, 5*time.Minute),
	}
	c.watch()
	return c
}

// watch enqueues a volume or snapshot when one of its objects is added, changed or deleted.
func (c *Subvolumes) watch() {
	seen := func(s *v1alpha1.Subvolume) { c.enqueue(client.RefOf(s)) }
	c.cluster.Subvolumes.Handle(client.Handlers[*v1alpha1.Subvolume]{
		Add: seen, Update: func(_, s *v1alpha1.Subvolume) { seen(s) }, Delete: seen,
	})
	c.cluster.PersistentVolumes.Handle(client.Handlers[*corev1.PersistentVolume]{Add: c.volumeSeen, Update: c.volumeChanged})
	c.cluster.Contents.Handle(client.Handlers[*snapshotv1.VolumeSnapshotContent]{Add: c.contentSeen, Update: c.contentChanged})
	c.cluster.Snapshots.Handle(client.Handlers[*snapshotv1.VolumeSnapshot]{Update: func(was, is *snapshotv1.VolumeSnapshot) {
		if isReady(was) != isReady(is) {
			c.debounce.changed(time.Now())
		}
	}})
}

func (c *Subvolumes) enqueue(ref meta.Ref) {
	if ref.ID != "" {
		c.queue.AddAfter(ref, calm)
	}
}

func (c *Subvolumes) volumeSeen(v *corev1.PersistentVolume) {
	c.enqueue(meta.Volume(c.cluster.VolumeHandle(v)))
}

func (c *Subvolumes) volumeChanged(was, is *corev1.PersistentVolume) {
	turned := was.Status.Phase != is.Status.Phase // bound, or released
	if turned && c.cluster.VolumeHandle(is) != "" {
		c.debounce.changed(time.Now())
	}
	if turned || lineageDiffers(was.Annotations, is.Annotations) {
		c.volumeSeen(is)
	}
}

func (c *Subvolumes) contentSeen(content *snapshotv1.VolumeSnapshotContent) {
	c.enqueue(meta.Snapshot(c.cluster.SnapshotHandle(content)))
}

func (c *Subvolumes) contentChanged(was, is *snapshotv1.VolumeSnapshotContent) {
	if c.cluster.SnapshotHandle(was) == "" || lineageDiffers(was.Annotations, is.Annotations) || was.Labels[client.LabelManagedBy] != is.Labels[client.LabelManagedBy] {
		c.contentSeen(is)
	}
}

func isReady(snapshot *snapshotv1.VolumeSnapshot) bool {
	status := snapshot.Status
	return status != nil && status.ReadyToUse != nil && *status.ReadyToUse
}

// Changed enqueues a volume or snapshot that was created, changed or removed.
func (c *Subvolumes) Changed(ref meta.Ref) {
	c.debounce.changed(time.Now())
	c.enqueue(ref)
}

// Resync enqueues all volumes and snapshots of this node, and all that are published.
func (c *Subvolumes) Resync(ctx context.Context) {
	if err := c.takeOver(ctx); err != nil {
		klog.FromContext(ctx).Error(err, "Subvolumes of another node not taken over yet")
	}
	for _, class := range []meta.Class{meta.Volumes, meta.Snapshots} {
		err := c.node.Walk(ctx, class, func(e meta.Entry) bool {
			c.queue.Add(e.Ref())
			return true
		})
		if err != nil {
			klog.FromContext(ctx).Error(err, "Volumes cannot be listed", "class", class)
		}
	}
	for _, s := range c.cluster.Subvolumes.List() {
		c.queue.Add(client.RefOf(s))
	}
}

// Run publishes until ctx ends.
func (c *Subvolumes) Run(ctx context.Context) { c.queue.Run(ctx, c.reconcile) }

// reconcile publishes one volume or snapshot, unless the write is postponed.
func (c *Subvolumes) reconcile(ctx context.Context, ref meta.Ref) error {
	if delay := c.debounce.delay(ref, time.Now()); delay > 0 {
		c.queue.AddAfter(ref, delay)
		return queue.ErrPutOff
	}
	return c.Publish(ctx, ref)
}

// Publish writes the objects of one volume or snapshot as they are on disk.
func (c *Subvolumes) Publish(ctx context.Context, ref meta.Ref) error {
	have, _ := c.cluster.Subvolumes.Get(client.SubvolumeName(ref)) // nil if there is none
	entry, state := c.node.Look(ctx, ref)
	switch state {
	case node.Gone:
		if have == nil || !c.owner.Owns(have.Spec.PoolID) {
			return nil // it may be on another node, with its pool
		}
		return c.writer.remove(ctx, have)
	case node.Away:
		return nil
	}
	if !c.owner.Owns(entry.PoolID) {
		return nil // Resync comes back to it when this node owns its pool
	}
	if state == node.Lost {
		return c.writer.writeLost(ctx, have, entry)
	}
	if err := c.writer.write(ctx, have, entry); err != nil {
		return err
	}
	return c.lineage.write(ctx, entry)
}

// takeOver takes over Subvolumes of another node if this node owns their pool now and their volume
// is gone or lost. Then the cache of this node has them, and they are published or deleted. Other
// Subvolumes are taken over when their volume is published.
func (c *Subvolumes) takeOver(ctx context.Context) error {
	for _, pool := range c.node.Pools(ctx) {
		if pool.ID == "" || !c.owner.Owns(pool.ID) {
			continue
		}
		others, err := c.cluster.API.Subvolumes().List(ctx, metav1.ListOptions{FieldSelector: fields.AndSelectors(
			fields.OneTermEqualSelector("spec.poolID", pool.ID), fields.OneTermNotEqualSelector("spec.nodeName", c.cluster.NodeName),
		).String()})
		if err != nil {
			return err
		}
		for i := range others.Items {
			s := &others.Items[i]
			if _, state := c.node.Look(ctx, client.RefOf(s)); state != node.Gone && state != node.Lost {
				continue
			}
			if err := c.writer.takeOver(ctx, s, pool.Name); err != nil {
				return err
			}
		}
	}
	return nil
}
