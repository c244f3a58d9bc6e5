package mirror

import (
	"context"
	"time"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/klog/v2"

	"github.com/btrfs-csi/btrfs-csi/api/v1alpha1"
	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
)

// SubvolumesNode is what the SubvolumeController needs of its node.
type SubvolumesNode interface {
	NodeReader
	// Used returns the bytes that a volume or snapshot occupies; false where nobody counts.
	Used(ctx context.Context, ref meta.Ref) (int64, bool)
	// Pools returns all pools, also those that cannot be used.
	Pools(ctx context.Context) []PoolReport
}

// SubvolumeController publishes the volumes and snapshots of this node: a Subvolume for
// each, and its lineage on the PersistentVolume or VolumeSnapshotContent.
type SubvolumeController struct {
	cluster  *Cluster
	node     SubvolumesNode
	owner    Owner
	writer   writer
	lineage  lineageWriter
	adopter  adopter
	debounce debounce
	queue    workqueue.TypedRateLimitingInterface[meta.Ref]
}

// NewSubvolumes returns the controller of the volumes and snapshots of a node.
func NewSubvolumes(cluster *Cluster, node SubvolumesNode, owner Owner) *SubvolumeController {
	c := &SubvolumeController{
		cluster: cluster, node: node, owner: owner,
		writer: writer{cluster, node.Used}, lineage: lineageWriter{cluster}, adopter: newAdopter(cluster),
		debounce: debounce{until: map[meta.Ref]time.Time{}},
		queue:    NewQueue[meta.Ref](time.Second, 5*time.Minute),
	}
	c.watch()
	return c
}

// watch has an object written again that somebody changed or deleted, and the lineage
// written to what is new.
func (c *SubvolumeController) watch() {
	seen := func(s *v1alpha1.Subvolume) { c.enqueue(RefOf(s)) }
	c.cluster.Subvolumes.Handle(Handlers[*v1alpha1.Subvolume]{
		Add: seen, Update: func(_, s *v1alpha1.Subvolume) { seen(s) }, Delete: seen,
	})
	c.cluster.PersistentVolumes.Handle(Handlers[*corev1.PersistentVolume]{Add: c.volumeSeen, Update: c.volumeChanged})
	c.cluster.Contents.Handle(Handlers[*snapshotv1.VolumeSnapshotContent]{Add: c.contentSeen, Update: c.contentChanged})
	c.cluster.Snapshots.Handle(Handlers[*snapshotv1.VolumeSnapshot]{Update: func(was, is *snapshotv1.VolumeSnapshot) {
		if isReady(was) != isReady(is) {
			c.debounce.changed(time.Now())
		}
	}})
}

func (c *SubvolumeController) enqueue(ref meta.Ref) {
	if ref.ID != "" {
		c.queue.AddAfter(ref, calm)
	}
}

func (c *SubvolumeController) volumeSeen(v *corev1.PersistentVolume) {
	c.enqueue(meta.Volume(c.cluster.VolumeHandle(v)))
}

func (c *SubvolumeController) volumeChanged(was, is *corev1.PersistentVolume) {
	turned := was.Status.Phase != is.Status.Phase // somebody binds, or releases
	if turned && c.cluster.VolumeHandle(is) != "" {
		c.debounce.changed(time.Now())
	}
	if turned || lineageDiffers(was.Annotations, is.Annotations) {
		c.volumeSeen(is)
	}
}

func (c *SubvolumeController) contentSeen(content *snapshotv1.VolumeSnapshotContent) {
	c.enqueue(meta.Snapshot(c.cluster.SnapshotHandle(content)))
	c.enqueue(meta.Volume(c.adopter.volumeOf(content)))
}

func (c *SubvolumeController) contentChanged(was, is *snapshotv1.VolumeSnapshotContent) {
	if c.cluster.SnapshotHandle(was) == "" || lineageDiffers(was.Annotations, is.Annotations) || was.Labels[LabelManagedBy] != is.Labels[LabelManagedBy] {
		c.contentSeen(is)
	}
}

func isReady(snapshot *snapshotv1.VolumeSnapshot) bool {
	status := snapshot.Status
	return status != nil && status.ReadyToUse != nil && *status.ReadyToUse
}

// Changed has a volume or snapshot published that was made, changed or removed.
func (c *SubvolumeController) Changed(ref meta.Ref) {
	c.debounce.changed(time.Now())
	c.enqueue(ref)
}

// Resync has everything compared, on this node and in the cluster.
func (c *SubvolumeController) Resync(ctx context.Context) {
	if err := c.takeOver(ctx); err != nil {
		klog.FromContext(ctx).Error(err, "What another node published of the pools here is not taken over yet")
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
		c.queue.Add(RefOf(s))
	}
}

// Run publishes until ctx ends.
func (c *SubvolumeController) Run(ctx context.Context) { RunQueue(ctx, c.queue, c.reconcile) }

// reconcile publishes one volume or snapshot, unless it is put off.
func (c *SubvolumeController) reconcile(ctx context.Context, ref meta.Ref) error {
	if delay := c.debounce.delay(ref, time.Now()); delay > 0 {
		c.queue.AddAfter(ref, delay)
		return ErrPutOff
	}
	return c.publish(ctx, ref)
}

// publish brings the objects of one volume or snapshot in line with what is on disk.
func (c *SubvolumeController) publish(ctx context.Context, ref meta.Ref) error {
	have, _ := c.cluster.Subvolumes.Get(SubvolumeName(ref)) // nil if there is none
	entry, state := c.node.Look(ctx, ref)
	switch state {
	case Gone:
		if have == nil || !c.owner.Owns(have.Spec.PoolID) {
			return nil // another node may have the pool, and what is in it
		}
		return c.writer.remove(ctx, have)
	case Away:
		return nil
	}
	if !c.owner.Owns(entry.PoolID) {
		return nil // a pool that is owned is resynced
	}
	if state == Lost {
		return c.writer.writeLost(ctx, have, entry)
	}
	if err := c.writer.write(ctx, have, entry); err != nil {
		return err
	}
	if err := c.lineage.write(ctx, entry); err != nil {
		return err
	}
	return c.adopter.adopt(ctx, entry)
}

// takeOver makes this node's what another one published of the pools that this node owns
// now, and that is not in them: it was deleted before, or lost with the data. Its update
// comes back as that of an object of this node. What is in them is taken over when it is
// published.
func (c *SubvolumeController) takeOver(ctx context.Context) error {
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
			if _, state := c.node.Look(ctx, RefOf(s)); state != Gone && state != Lost {
				continue
			}
			if err := c.writer.takeOver(ctx, s, pool.Name); err != nil {
				return err
			}
		}
	}
	return nil
}
