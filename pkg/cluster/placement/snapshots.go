package placement

import (
	"context"
	"time"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/btrfs-csi/btrfs-csi/pkg/cluster/client"
	"github.com/btrfs-csi/btrfs-csi/pkg/cluster/node"
	"github.com/btrfs-csi/btrfs-csi/pkg/cluster/queue"
	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
)

// Snapshots assigns unassigned snapshots to the csi-snapshotter of this node if their volume is here.
// The snapshot-controller assigns snapshots by the topology label of the pool, once. It finds no node
// if the label is not there yet.
type Snapshots struct {
	cluster *client.Cluster
	node    node.Reader
	owner   node.Owner
	queue   queue.Queue[string] // names of VolumeSnapshotContents
}

// NewSnapshots returns the controller of the snapshots of volumes on node.
func NewSnapshots(cluster *client.Cluster, node node.Reader, owner node.Owner) *Snapshots {
	c := &Snapshots{cluster: cluster, node: node, owner: owner, queue: queue.New[string](time.Second, 5*time.Minute)}
	cluster.Contents.Handle(client.Handlers[*snapshotv1.VolumeSnapshotContent]{
		Add: c.seen, Update: func(_, content *snapshotv1.VolumeSnapshotContent) { c.seen(content) },
	})
	return c
}

func (c *Snapshots) seen(content *snapshotv1.VolumeSnapshotContent) {
	if c.isUnassigned(content) || c.isOfWrongDriver(content) {
		c.queue.Add(content.Name)
	}
}

// isUnassigned reports whether a snapshot of this driver is assigned to no node.
func (c *Snapshots) isUnassigned(content *snapshotv1.VolumeSnapshotContent) bool {
	return content.Spec.Driver == c.cluster.Driver && content.Spec.Source.VolumeHandle != nil && content.Labels[client.LabelManagedBy] == ""
}

// isOfWrongDriver reports whether another driver is to make the snapshot and has not. Its volume may
// be of this driver.
func (c *Snapshots) isOfWrongDriver(content *snapshotv1.VolumeSnapshotContent) bool {
	return content.Spec.Driver != c.cluster.Driver && content.Spec.Source.VolumeHandle != nil && (content.Status == nil || content.Status.SnapshotHandle == nil)
}

// Resync enqueues all snapshots that need it.
func (c *Snapshots) Resync() {
	for _, content := range c.cluster.Contents.List() {
		c.seen(content)
	}
}

// Run runs the controller until ctx ends.
func (c *Snapshots) Run(ctx context.Context) { c.queue.Run(ctx, c.reconcile) }

// reconcile assigns one snapshot to this node if its volume is on it.
func (c *Snapshots) reconcile(ctx context.Context, name string) error {
	content, ok := c.cluster.Contents.Get(name)
	if !ok || content.Spec.Source.VolumeHandle == nil {
		return nil
	}
	volume, state := c.node.Look(ctx, meta.Volume(*content.Spec.Source.VolumeHandle))
	if state != node.Ready || !c.owner.Owns(volume.PoolID) {
		return nil // on another node, or Resync comes back to it when this node owns its pool
	}
	switch {
	case c.isOfWrongDriver(content):
		c.warn(content)
	case c.isUnassigned(content):
		patch := client.MetadataPatch(nil, nil, content.Labels, map[string]string{client.LabelManagedBy: c.cluster.NodeName})
		_, err := c.cluster.API.Contents().Patch(ctx, content.Name, types.MergePatchType, patch, metav1.PatchOptions{})
		if !apierrors.IsNotFound(err) {
			return err
		}
	}
	return nil
}

// warn records an Event on a snapshot whose class is of another driver, which does not know the
// volume or does not exist. Nobody else reports that.
func (c *Snapshots) warn(content *snapshotv1.VolumeSnapshotContent) {
	class := ""
	if content.Spec.VolumeSnapshotClassName != nil {
		class = *content.Spec.VolumeSnapshotClassName
	}
	c.cluster.Events.Eventf(&content.Spec.VolumeSnapshotRef, corev1.EventTypeWarning, "WrongSnapshotClass",
		"VolumeSnapshotClass %q is of the driver %q, the volume is of %q: delete this snapshot, and create it with a class of that driver",
		class, content.Spec.Driver, c.cluster.Driver)
}
