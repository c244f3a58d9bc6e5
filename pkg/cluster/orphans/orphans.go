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

// Policy is what to do with orphans.
type Policy string

const (
	// Report reports orphans and keeps them.
	Report Policy = "report"
	// Delete deletes orphans after a time of grace.
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
	// orphanPeriod is the time between two searches.
	orphanPeriod = time.Minute
	// minAge is the least age of an orphan. The PersistentVolume or VolumeSnapshotContent of a
	// younger volume or snapshot may not exist yet.
	minAge = 5 * time.Minute
	// maxMarked is how many orphans may be deleted, whatever their share of all volumes and
	// snapshots is: see tooMany.
	maxMarked = 10
)

// Orphan is a volume or snapshot that no object of the cluster refers to, or a PersistentVolume
// whose volume is missing.
type Orphan struct {
	meta.Ref
	Pool    string    // the name of its pool; "" if it is missing
	PoolID  string    // the pool that contains it, or should
	Since   time.Time // when it was first seen; zero if that could not be written
	Missing string    // the name of the PersistentVolume, if its volume is missing

	marked time.Time // when it was marked for deletion; zero if it is kept
}

// Node is what the Controller needs of its node.
type Node interface {
	node.Reader
	// Remove deletes a volume or snapshot. It fails if that is in use.
	Remove(ctx context.Context, ref meta.Ref) error
}

// Controller finds the orphans of this node, and deletes them if the policy is Delete.
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

// Found returns the result of the last search; false before the first one.
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
	select { // orphans are only in pools that this node owns
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

// Reconcile searches once.
func (c *Controller) Reconcile(ctx context.Context) {
	found := c.missingVolumes(ctx)
	unreferenced, total := c.unreferenced(ctx)
	var expired []Orphan
	marked := 0
	for _, entry := range unreferenced {
		o, err := c.marker.mark(ctx, entry)
		if err != nil {
			klog.FromContext(ctx).V(2).Info("Orphan not marked", "orphan", o.Ref, "reason", err)
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
		klog.FromContext(ctx).Error(nil, "No orphans deleted: too many volumes and snapshots are orphans; delete them by hand if that is right", "orphans", marked, "all", total)
		found, expired = append(found, expired...), nil
	}
	found = append(found, c.remove(ctx, expired)...)
	c.mu.Lock()
	c.found, c.looked = found, true
	c.mu.Unlock()
}

// tooMany reports whether so many are marked for deletion that the cluster has probably lost their
// objects. Those whose time of grace is not over count, too. Else a cluster that loses its objects
// one by one would have all volumes deleted one by one.
func tooMany(marked, total int) bool { return marked > maxMarked && marked > total/10 }

// remove deletes orphans whose time of grace is over, and returns those that it did not delete. It
// asks the API server for references first, because a cache may be behind.
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

// referencedNow returns the volumes and snapshots that objects refer to, read from the API server.
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
		return referenced, nil // then unreferenced returns no snapshots
	}
	contents, err := c.cluster.API.Contents().List(ctx, metav1.ListOptions{}) // fails if the snapshot API is gone
	if err != nil {
		return nil, err
	}
	for i := range contents.Items {
		referenced[meta.Snapshot(c.cluster.SnapshotHandle(&contents.Items[i]))] = true
	}
	return referenced, c.addMembersNow(ctx, referenced)
}

// addMembersNow adds the members of all groups.
func (c *Controller) addMembersNow(ctx context.Context, referenced map[meta.Ref]bool) error {
	if !c.cluster.GroupsSynced.Load() {
		return nil // then unreferenced returns no members
	}
	groups, err := c.cluster.API.GroupContents().List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	for _, group := range groups.Items {
		if group.Spec.Driver != c.cluster.Driver || group.Status == nil {
			continue
		}
		for _, member := range group.Status.VolumeSnapshotInfoList {
			referenced[meta.Snapshot(member.SnapshotHandle)] = true
		}
	}
	return nil
}

// unreferenced returns the volumes and snapshots of this node that no object refers to, and the
// number of all. It removes the marks of the others.
func (c *Controller) unreferenced(ctx context.Context) (found []meta.Entry, total int) {
	classes := []meta.Class{meta.Volumes}
	if c.cluster.SnapshotsSynced.Load() {
		classes = append(classes, meta.Snapshots)
	}
	pending := c.pendingNames()
	var referenced []meta.Entry
	for _, class := range classes {
		_ = c.node.Walk(ctx, class, func(e meta.Entry) bool { // a pool that cannot be listed has no orphans
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

// isReferenced reports whether a PersistentVolume, VolumeSnapshotContent or
// VolumeGroupSnapshotContent refers to an entry.
func (c *Controller) isReferenced(e meta.Entry) bool {
	if e.Group.ID != "" && (!c.cluster.GroupsSynced.Load() || len(c.cluster.GroupContentsOf(e.Group.ID)) > 0) {
		return true // in a cluster without groups nobody knows
	}
	if e.Kind == meta.Committed {
		return len(c.cluster.ContentsOf(e.ID)) > 0
	}
	return len(c.cluster.VolumesOf(e.ID)) > 0
}

// pendingNames returns the CSI names of volumes and snapshots whose objects may not exist or not
// have a handle yet.
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

// missingVolumes returns the PersistentVolumes in pools of this node whose volume is gone or lost,
// and records an Event on each.
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

// marker writes to the Subvolume of an orphan since when it is one, and since when it is marked for
// deletion. So the time of grace continues after a restart of the driver.
type marker struct {
	cluster *client.Cluster
	policy  Policy
	grace   time.Duration
}

// mark marks the Subvolume of an orphan, with an Event, when it is first found and when it is first
// to be deleted. A volume that never had an object in this cluster is never marked for deletion,
// because it may belong to another cluster.
func (m marker) mark(ctx context.Context, e meta.Entry) (Orphan, error) {
	orphan := Orphan{Ref: e.Ref(), Pool: e.Pool, PoolID: e.PoolID}
	s, ok := m.cluster.Subvolumes.Get(client.SubvolumeName(e.Ref()))
	if !ok {
		return orphan, errors.New("its Subvolume is not published yet")
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

// unmark removes the marks of an entry that is referenced again. If that fails the next search
// retries it.
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
