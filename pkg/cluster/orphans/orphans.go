package orphans

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"

	"github.com/btrfs-csi/btrfs-csi/api/v1alpha1"
	"github.com/btrfs-csi/btrfs-csi/pkg/cluster/client"
	"github.com/btrfs-csi/btrfs-csi/pkg/cluster/node"
	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
)

// Policy says what is done with orphans.
type Policy string

const (
	// Report reports orphans and keeps them.
	Report Policy = "report"
	// Delete deletes what has been an orphan for the time of grace.
	Delete Policy = "delete"
)

// ParsePolicy returns the policy of a name.
func ParsePolicy(name string) (Policy, error) {
	switch p := Policy(name); p {
	case Report, Delete:
		return p, nil
	}
	return "", fmt.Errorf("%q: report or delete is wanted", name)
}

const (
	// orphanPeriod is the time between two looks.
	orphanPeriod = time.Minute
	// minAge is how old an orphan is at least: the PersistentVolume or
	// VolumeSnapshotContent of a younger volume or snapshot is still to come.
	minAge = 5 * time.Minute
	// maxMarked is how many orphans may be marked for deletion in any case; more only
	// if they are few of all that there is.
	maxMarked = 10
)

// Orphan is a volume or snapshot for which no object of the cluster stands, or a
// PersistentVolume whose volume is missing.
type Orphan struct {
	meta.Ref
	Pool    string    // the name of its pool; "" if it is missing
	PoolID  string    // of the pool where it is, or should be
	Since   time.Time // when it was first seen; zero if that could not be written
	Missing string    // the name of the PersistentVolume, if its volume is missing

	marked time.Time // for deletion; zero for what is not to be deleted
}

// Node is what the Controller needs of its node.
type Node interface {
	node.Reader
	// Remove deletes a volume or snapshot. It fails for one in use.
	Remove(ctx context.Context, ref meta.Ref) error
}

// Controller finds orphans on this node, and deletes them where the policy is to.
type Controller struct {
	cluster *client.Cluster
	node    Node
	owner   node.Owner
	marker  marker

	mu     sync.Mutex // protects what follows
	looked bool
	found  []Orphan
}

// New returns the controller of the orphans of a node.
func New(cluster *client.Cluster, node Node, owner node.Owner, policy Policy, grace time.Duration) *Controller {
	return &Controller{cluster: cluster, node: node, owner: owner, marker: marker{cluster, policy, grace}}
}

// Found returns what the last look found; false before the first.
func (c *Controller) Found() ([]Orphan, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.found, c.looked
}

// Run looks for orphans until ctx ends.
func (c *Controller) Run(ctx context.Context) {
	if !cache.WaitForCacheSync(ctx.Done(), c.cluster.Claims.HasSynced) {
		return
	}
	select { // only what is in an owned pool can be an orphan
	case <-ctx.Done():
		return
	case <-c.owner.Decided():
	}
	tick := time.NewTicker(orphanPeriod)
	defer tick.Stop()
	for {
		c.Reconcile(ctx)
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// Reconcile looks once.
func (c *Controller) Reconcile(ctx context.Context) {
	found := c.missingVolumes(ctx)
	unreferenced, total := c.unreferenced(ctx)
	var expired []Orphan
	marked := 0
	for _, entry := range unreferenced {
		o, err := c.marker.mark(ctx, entry)
		if err != nil {
			klog.FromContext(ctx).V(2).Info("Orphan not noted", "orphan", o.Ref, "reason", err)
		}
		if !o.marked.IsZero() {
			marked++
		}
		if !o.marked.IsZero() && time.Since(o.marked) > c.marker.grace {
			expired = append(expired, o)
		} else {
			found = append(found, o)
		}
	}
	if len(expired) > 0 && tooMany(marked, total) {
		klog.FromContext(ctx).Error(nil, "No orphans deleted: they are too many of all that there is; delete them by hand if they are right", "orphans", marked, "all", total)
		found, expired = append(found, expired...), nil
	}
	found = append(found, c.remove(ctx, expired)...)
	c.mu.Lock()
	c.found, c.looked = found, true
	c.mu.Unlock()
}

// tooMany reports whether so many are marked for deletion that something else is wrong than
// orphans. Those whose time of grace is not over count too, or what a cluster forgets bit
// by bit would be deleted bit by bit.
func tooMany(marked, total int) bool { return marked > maxMarked && marked > total/10 }

// remove deletes orphans whose time of grace is over, and returns those that it did not
// delete. The API server itself has to say that nothing stands for them: a cache may lag
// behind.
func (c *Controller) remove(ctx context.Context, expired []Orphan) (kept []Orphan) {
	if len(expired) == 0 {
		return nil
	}
	referenced, err := c.referencedNow(ctx)
	if err != nil {
		klog.FromContext(ctx).Error(err, "No orphans deleted")
		return expired
	}
	for _, o := range expired {
		err := errors.New("something in the cluster stands for it")
		if !referenced[o.Ref] {
			err = c.node.Remove(ctx, o.Ref)
		}
		if err != nil {
			klog.FromContext(ctx).Error(err, "Orphan not deleted", "orphan", o.Ref)
			kept = append(kept, o)
			continue
		}
		klog.FromContext(ctx).Info("Orphan deleted", "orphan", o.Ref, "pool", o.Pool, "since", o.Since)
	}
	return kept
}

// referencedNow returns what objects stand for, as the API server says at this moment.
func (c *Controller) referencedNow(ctx context.Context) (map[meta.Ref]bool, error) {
	referenced := map[meta.Ref]bool{}
	volumes, err := c.cluster.API.PersistentVolumes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	for i := range volumes.Items {
		referenced[meta.Volume(c.cluster.VolumeHandle(&volumes.Items[i]))] = true
	}
	if !c.cluster.SnapshotsSynced.Load() {
		return referenced, nil // and no snapshot was found to be an orphan
	}
	contents, err := c.cluster.API.Contents().List(ctx, metav1.ListOptions{}) // fails where they are not served any more
	if err != nil {
		return nil, err
	}
	for i := range contents.Items {
		referenced[meta.Snapshot(c.cluster.SnapshotHandle(&contents.Items[i]))] = true
	}
	return referenced, nil
}

// unreferenced returns the volumes and snapshots of this node for which nothing stands, and
// how many there are in all. It takes the marks from the others.
func (c *Controller) unreferenced(ctx context.Context) (found []meta.Entry, total int) {
	classes := []meta.Class{meta.Volumes}
	if c.cluster.SnapshotsSynced.Load() {
		classes = append(classes, meta.Snapshots)
	}
	pending := c.pendingNames()
	var referenced []meta.Entry
	for _, class := range classes {
		_ = c.node.Walk(ctx, class, func(e meta.Entry) bool { // what cannot be listed is no orphan
			total++
			switch {
			case !c.owner.Owns(e.PoolID):
			case pending[e.Name] || c.isReferenced(e):
				referenced = append(referenced, e)
			case time.Since(e.Created) > minAge:
				found = append(found, e)
			}
			return true
		})
	}
	for _, e := range referenced {
		c.marker.unmark(ctx, e)
	}
	return found, total
}

// isReferenced reports whether a PersistentVolume or VolumeSnapshotContent stands for an
// entry.
func (c *Controller) isReferenced(e meta.Entry) bool {
	if e.Kind == meta.Committed {
		return len(c.cluster.ContentsOf(e.ID)) > 0
	}
	return len(c.cluster.VolumesOf(e.ID)) > 0
}

// pendingNames returns the CSI names that the sidecars give to what they ask for, and whose
// objects may be still to come.
func (c *Controller) pendingNames() map[string]bool {
	names := map[string]bool{}
	for _, claim := range c.cluster.Claims.List() {
		names["pvc-"+string(claim.UID)] = true
	}
	for _, name := range c.cluster.Contents.GetStore().ListKeys() {
		names["snapshot-"+strings.TrimPrefix(name, "snapcontent-")] = true
	}
	return names
}

// missingVolumes returns the PersistentVolumes of this node's pools whose volume is not
// there, and records an Event on each.
func (c *Controller) missingVolumes(ctx context.Context) (found []Orphan) {
	for _, v := range c.cluster.PersistentVolumes.List() {
		poolID := c.cluster.PoolID(v)
		if poolID == "" || !c.owner.Owns(poolID) || v.DeletionTimestamp != nil || v.Status.Phase == corev1.VolumeReleased {
			continue
		}
		ref := meta.Volume(c.cluster.VolumeHandle(v))
		if _, state := c.node.Look(ctx, ref); state != node.Gone && state != node.Lost {
			continue
		}
		found = append(found, Orphan{Ref: ref, PoolID: poolID, Missing: v.Name})
		c.cluster.Events.Eventf(v, corev1.EventTypeWarning, "VolumeMissing",
			"Node %q, which has the pool %s, has no %s: it was removed by hand, or the disk is not the same; restore a snapshot, then delete this PersistentVolume",
			c.cluster.NodeName, poolID, ref)
	}
	return found
}

// marker keeps on the Subvolume of an orphan since when it is one, and since when it is
// marked for deletion: the time of grace goes on when the driver restarts.
type marker struct {
	cluster *client.Cluster
	policy  Policy
	grace   time.Duration
}

// mark returns the orphan of an entry. It is marked, with an Event, when it is first seen
// and when it is first to be deleted. What never had an object in this cluster is not to
// be deleted: it may be all there is of another cluster.
func (m marker) mark(ctx context.Context, e meta.Entry) (Orphan, error) {
	orphan := Orphan{Ref: e.Ref(), Pool: e.Pool, PoolID: e.PoolID}
	s, ok := m.cluster.Subvolumes.Get(client.SubvolumeName(e.Ref()))
	if !ok {
		return orphan, errors.New("not mirrored yet")
	}
	marks, now := map[string]*string{}, time.Now().UTC()
	text := now.Format(time.RFC3339)
	since := func(key string, wanted bool) time.Time {
		at, err := time.Parse(time.RFC3339, s.Annotations[key])
		switch {
		case !wanted && s.Annotations[key] != "":
			marks[key] = nil
		case wanted && err != nil:
			marks[key] = &text
			return now
		}
		return at
	}
	orphan.Since = since(v1alpha1.AnnotationOrphanedSince, true)
	toDelete := m.policy == Delete && s.Annotations[v1alpha1.AnnotationObject] != ""
	if at := since(v1alpha1.AnnotationMarkedForDeletionSince, toDelete); toDelete {
		orphan.marked = at
	}
	if len(marks) == 0 {
		return orphan, nil
	}
	fate := "it is kept until somebody deletes it"
	if toDelete {
		fate = fmt.Sprintf("it is deleted after %v", m.grace)
	}
	m.cluster.Events.Eventf(s, corev1.EventTypeWarning, "Orphaned", "No PersistentVolume or VolumeSnapshotContent stands for %s in pool %q of node %q; %s",
		e.Ref(), e.Pool, m.cluster.NodeName, fate)
	return orphan, m.patch(ctx, s.Name, marks)
}

// unmark takes the marks from an entry for which something stands again. If that fails it
// is done at the next look.
func (m marker) unmark(ctx context.Context, e meta.Entry) {
	s, ok := m.cluster.Subvolumes.Get(client.SubvolumeName(e.Ref()))
	if ok && s.Annotations[v1alpha1.AnnotationOrphanedSince] != "" {
		_ = m.patch(ctx, s.Name, map[string]*string{v1alpha1.AnnotationOrphanedSince: nil, v1alpha1.AnnotationMarkedForDeletionSince: nil})
	}
}

func (m marker) patch(ctx context.Context, name string, marks map[string]*string) error {
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"annotations": marks}})
	if err != nil {
		return err
	}
	_, err = m.cluster.API.Subvolumes().Patch(ctx, name, types.MergePatchType, patch, metav1.PatchOptions{})
	return err
}
