package groups

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"time"

	groupv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumegroupsnapshot/v1"
	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/btrfs-csi/btrfs-csi/pkg/cluster/client"
	"github.com/btrfs-csi/btrfs-csi/pkg/cluster/node"
	"github.com/btrfs-csi/btrfs-csi/pkg/cluster/queue"
	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
)

// Node is what the Controller needs of its node. Errors have a code.
type Node interface {
	node.Reader
	// CommitGroup takes a group of snapshots of volumes. It may be repeated.
	CommitGroup(ctx context.Context, name string, volumes []string, parameters map[string]string) ([]meta.Entry, error)
	// Group returns the members of a group. snapshots are their IDs, as far as they are known.
	Group(ctx context.Context, id string, snapshots []string) ([]meta.Entry, error)
	// DeleteGroup removes all members of a group. It may be repeated.
	DeleteGroup(ctx context.Context, id string, snapshots []string) error
}

// Controller takes and deletes the groups whose volumes are on this node.
type Controller struct {
	cluster *client.Cluster
	node    Node
	owner   node.Owner
	queue   queue.Queue[string] // names of VolumeGroupSnapshotContents
}

// New returns the controller of the groups of a node.
func New(cluster *client.Cluster, node Node, owner node.Owner) *Controller {
	c := &Controller{cluster: cluster, node: node, owner: owner, queue: queue.New[string](100*time.Millisecond, time.Minute)}
	cluster.GroupContents.Handle(client.Handlers[*groupv1.VolumeGroupSnapshotContent]{
		Add: c.seen, Update: func(_, content *groupv1.VolumeGroupSnapshotContent) { c.seen(content) },
	})
	return c
}

func (c *Controller) seen(content *groupv1.VolumeGroupSnapshotContent) {
	if c.isToDelete(content) || c.isUnready(content) {
		c.queue.Add(content.Name)
	}
}

// isUnready reports whether a group of this driver is to be taken or looked up.
func (c *Controller) isUnready(content *groupv1.VolumeGroupSnapshotContent) bool {
	ready := content.Status != nil && content.Status.ReadyToUse != nil && *content.Status.ReadyToUse
	return c.cluster.GroupHandle(content) != "" && content.DeletionTimestamp == nil && !ready
}

// isToDelete reports whether a content of this driver waits for its end: its VolumeGroupSnapshot is
// being deleted, or it never had one.
func (c *Controller) isToDelete(content *groupv1.VolumeGroupSnapshotContent) bool {
	_, ending := content.Annotations[client.AnnotationGroupBeingDeleted]
	unbound := content.Spec.Source.GroupSnapshotHandles != nil && content.Spec.VolumeGroupSnapshotRef.UID == ""
	return c.cluster.GroupHandle(content) != "" && content.DeletionTimestamp != nil && (ending || unbound) &&
		slices.Contains(content.Finalizers, client.FinalizerGroup)
}

// Resync checks all groups again.
func (c *Controller) Resync() {
	for _, content := range c.cluster.GroupContents.List() {
		c.seen(content)
	}
}

// Run runs the controller until ctx ends.
func (c *Controller) Run(ctx context.Context) { c.queue.Run(ctx, c.reconcile) }

// reconcile takes, looks up or deletes one group if that is the task of this node. It is idempotent.
func (c *Controller) reconcile(ctx context.Context, name string) error {
	content, ok := c.cluster.GroupContents.Get(name)
	switch {
	case !ok:
		return nil
	case c.isToDelete(content):
		return c.delete(ctx, content)
	case !c.isUnready(content):
		return nil
	case content.Spec.Source.GroupSnapshotHandles != nil:
		return c.lookUp(ctx, content)
	}
	return c.take(ctx, content)
}

// take takes a group. The node that has the first volume does it, or reports why the group cannot be taken.
func (c *Controller) take(ctx context.Context, content *groupv1.VolumeGroupSnapshotContent) error {
	volumes := slices.Sorted(slices.Values(content.Spec.Source.VolumeHandles))
	if len(volumes) == 0 || !c.has(ctx, meta.Volume(volumes[0])) {
		return nil // the task of another node, or Resync comes back to it when this node owns its pool
	}
	parameters, err := c.parameters(ctx, content)
	if err != nil {
		return c.refuse(ctx, content, err)
	}
	entries, err := c.node.CommitGroup(ctx, c.cluster.GroupHandle(content), volumes, parameters)
	if err != nil {
		return c.refuse(ctx, content, err)
	}
	return c.publish(ctx, content, entries)
}

// has reports whether a volume or snapshot is on this node, in a pool that the node owns.
func (c *Controller) has(ctx context.Context, ref meta.Ref) bool {
	entry, state := c.node.Look(ctx, ref)
	return state == node.Ready && c.owner.Owns(entry.PoolID)
}

// parameters returns the parameters of the class, and for whom the group is.
func (c *Controller) parameters(ctx context.Context, content *groupv1.VolumeGroupSnapshotContent) (map[string]string, error) {
	parameters := map[string]string{}
	if name := content.Spec.VolumeGroupSnapshotClassName; name != nil {
		class, err := c.cluster.API.GroupClasses().Get(ctx, *name, metav1.GetOptions{})
		if err != nil {
			return nil, fmt.Errorf("VolumeGroupSnapshotClass %q: %w", *name, err)
		}
		maps.Copy(parameters, class.Parameters)
	}
	const prefix = "csi.storage.k8s.io/"
	parameters[prefix+"volumegroupsnapshot/name"] = content.Spec.VolumeGroupSnapshotRef.Name
	parameters[prefix+"volumegroupsnapshot/namespace"] = content.Spec.VolumeGroupSnapshotRef.Namespace
	parameters[prefix+"volumegroupsnapshotcontent/name"] = content.Name
	return parameters, nil
}

// lookUp publishes a group that somebody has taken before.
func (c *Controller) lookUp(ctx context.Context, content *groupv1.VolumeGroupSnapshotContent) error {
	if !c.has(ctx, firstMember(c.cluster.GroupHandle(content))) {
		return nil
	}
	entries, err := c.node.Group(ctx, c.cluster.GroupHandle(content), content.Spec.Source.GroupSnapshotHandles.VolumeSnapshotHandles)
	if err != nil {
		return c.refuse(ctx, content, err)
	}
	return c.publish(ctx, content, entries)
}

func firstMember(group string) meta.Ref { return meta.Group{ID: group, Members: 1}.Refs()[0] }

// publish writes a group into the status of its content.
func (c *Controller) publish(ctx context.Context, content *groupv1.VolumeGroupSnapshotContent, entries []meta.Entry) error {
	ready, handle, created := true, entries[0].Group.ID, metav1.NewTime(entries[0].Created)
	infos := make([]groupv1.VolumeSnapshotInfo, len(entries))
	for i, entry := range entries {
		at, size := entry.Created.UnixNano(), entry.Size
		infos[i] = groupv1.VolumeSnapshotInfo{
			VolumeHandle: entry.Source.ID, SnapshotHandle: entry.ID, CreationTime: &at, ReadyToUse: &ready, RestoreSize: &size,
		}
	}
	return c.write(ctx, content, map[string]any{
		"volumeGroupSnapshotHandle": handle, "creationTime": created, "readyToUse": ready, "volumeSnapshotInfoList": infos, "error": nil,
	})
}

// refuse writes why a group cannot be taken into the status of its content, once, and returns the
// error, so that the request is repeated. What will pass by itself is not written at first.
func (c *Controller) refuse(ctx context.Context, content *groupv1.VolumeGroupSnapshotContent, reason error) error {
	message := status.Convert(reason).Message()
	passes := status.Code(reason) == codes.Aborted && c.queue.NumRequeues(content.Name) < patience
	if has := content.Status; passes || has != nil && has.Error != nil && has.Error.Message != nil && *has.Error.Message == message {
		return reason
	}
	now := metav1.Now()
	if err := c.write(ctx, content, map[string]any{
		"readyToUse": false, "error": snapshotv1.VolumeSnapshotError{Time: &now, Message: &message},
	}); err != nil {
		return err
	}
	return reason
}

// patience is how often a request is repeated before an error is written that may pass by itself.
const patience = 5

// write takes a content into the care of this node, and changes its status.
func (c *Controller) write(ctx context.Context, content *groupv1.VolumeGroupSnapshotContent, fields map[string]any) error {
	if err := c.manage(ctx, content, nil); err != nil {
		return err
	}
	patch, err := json.Marshal(map[string]any{"status": fields})
	if err != nil {
		return err
	}
	_, err = c.cluster.API.GroupContents().Patch(ctx, content.Name, types.MergePatchType, patch, metav1.PatchOptions{}, "status")
	return ignoreGone(err)
}

// manage writes this node into the label of a content, as policies want it, and more metadata.
func (c *Controller) manage(ctx context.Context, content *groupv1.VolumeGroupSnapshotContent, more map[string]any) error {
	metadata := maps.Clone(more)
	if content.Labels[client.LabelManagedBy] != c.cluster.NodeName {
		if metadata == nil {
			metadata = map[string]any{}
		}
		metadata["labels"] = map[string]string{client.LabelManagedBy: c.cluster.NodeName}
	}
	if len(metadata) == 0 {
		return nil
	}
	patch, err := json.Marshal(map[string]any{"metadata": metadata})
	if err != nil {
		return err
	}
	_, err = c.cluster.API.GroupContents().Patch(ctx, content.Name, types.MergePatchType, patch, metav1.PatchOptions{})
	return ignoreGone(err)
}

// delete deletes a group if its policy says so, and lets its content go.
func (c *Controller) delete(ctx context.Context, content *groupv1.VolumeGroupSnapshotContent) error {
	is, err := c.isResponsible(ctx, content)
	if err != nil || !is {
		return err
	}
	if content.Spec.DeletionPolicy == snapshotv1.VolumeSnapshotContentDelete {
		var snapshots []string
		if content.Spec.Source.GroupSnapshotHandles != nil {
			snapshots = content.Spec.Source.GroupSnapshotHandles.VolumeSnapshotHandles
		}
		if err := c.node.DeleteGroup(ctx, c.cluster.GroupHandle(content), snapshots); err != nil {
			return err
		}
	}
	others := slices.DeleteFunc(slices.Clone(content.Finalizers), func(f string) bool { return f == client.FinalizerGroup })
	return c.manage(ctx, content, map[string]any{"finalizers": others, "resourceVersion": content.ResourceVersion})
}

// isResponsible reports whether this node deletes a group: it has member 0, which is made first and
// removed last; or nobody has it, and this node would take the group. Where no node is known for either,
// any node lets the content go.
func (c *Controller) isResponsible(ctx context.Context, content *groupv1.VolumeGroupSnapshotContent) (bool, error) {
	candidates := []meta.Ref{firstMember(c.cluster.GroupHandle(content))}
	if volumes := content.Spec.Source.VolumeHandles; len(volumes) > 0 {
		candidates = append(candidates, meta.Volume(slices.Min(volumes)))
	}
	for _, ref := range candidates {
		switch entry, state := c.node.Look(ctx, ref); state {
		case node.Away:
			return false, fmt.Errorf("%s cannot be read now", ref)
		case node.Ready, node.Lost:
			return c.owner.Owns(entry.PoolID), nil
		}
		owner, _, err := c.cluster.Locate(ctx, ref)
		if err != nil {
			return false, err
		}
		if owner != "" && owner != c.cluster.NodeName {
			return false, nil
		}
	}
	return true, nil
}

// ignoreGone returns nil if an object is gone.
func ignoreGone(err error) error {
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}
