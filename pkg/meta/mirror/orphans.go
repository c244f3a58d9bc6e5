package mirror

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
	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
)

// OrphanPolicy says what is done with orphans.
type OrphanPolicy string

const (
	// ReportOrphans reports orphans and keeps them.
	ReportOrphans OrphanPolicy = "report"
	// DeleteOrphans deletes what has been an orphan for the time of grace.
	DeleteOrphans OrphanPolicy = "delete"
)

const (
	// lookForOrphans is the time between two looks.
	lookForOrphans = time.Minute
	// youth is how long after it was made something is no orphan: its
	// PersistentVolume or VolumeSnapshotContent is still to come.
	youth = 5 * time.Minute
	// mostCondemned is how many orphans may wait to be deleted without a second thought.
	mostCondemned = 10
)

// Orphan is a volume or snapshot that the cluster knows nothing of, or the
// reverse.
type Orphan struct {
	meta.Ref
	Pool    string    // of a volume or snapshot that is on disk
	PoolID  string    // of the pool where it is, or should be
	Since   time.Time // when it was first seen; zero if it could not be noted
	Missing string    // the name of the PersistentVolume whose volume is not there

	condemned time.Time // from when the grace counts; zero for what is not to be deleted
}

// orphans is what the last look found.
type orphans struct {
	mu     sync.Mutex // protects what follows
	looked bool
	found  []Orphan
}

// Orphans returns what the last look found on this node; false before the first.
func (m *Mirror) Orphans() ([]Orphan, bool) {
	m.orphans.mu.Lock()
	defer m.orphans.mu.Unlock()
	return m.orphans.found, m.orphans.looked
}

// watchOrphans looks for orphans until ctx ends.
func (m *Mirror) watchOrphans(ctx context.Context) {
	if !cache.WaitForCacheSync(ctx.Done(), m.cluster.Claims.HasSynced) {
		return
	}
	select { // of pools that are not claimed nothing is judged
	case <-ctx.Done():
		return
	case <-m.owner.Decided():
	}
	tick := time.NewTicker(lookForOrphans)
	defer tick.Stop()
	for {
		m.lookForOrphans(ctx)
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (m *Mirror) lookForOrphans(ctx context.Context) {
	found := m.missing(ctx)
	unknown, total := m.judge(ctx)
	var expired []Orphan
	condemned := 0
	for _, entry := range unknown {
		o, err := m.noteOrphan(ctx, entry)
		if err != nil {
			klog.FromContext(ctx).V(2).Info("Orphan not noted", "orphan", o.Ref, "reason", err)
		}
		if !o.condemned.IsZero() {
			condemned++
		}
		if m.expired(o) {
			expired = append(expired, o)
		} else {
			found = append(found, o)
		}
	}
	if len(expired) > 0 && tooMany(condemned, total) {
		klog.FromContext(ctx).Error(nil, "No orphans deleted: they are too many of all that there is; delete them by hand if they are right", "orphans", condemned, "all", total)
		found, expired = append(found, expired...), nil
	}
	found = append(found, m.removeOrphans(ctx, expired)...)
	m.orphans.mu.Lock()
	m.orphans.found, m.orphans.looked = found, true
	m.orphans.mu.Unlock()
}

func (m *Mirror) expired(o Orphan) bool {
	return m.options.Orphans == DeleteOrphans && !o.condemned.IsZero() && time.Since(o.condemned) > m.options.OrphanGrace
}

// tooMany reports whether so much of what there is should go that something else is
// wrong than orphans. All that are condemned count, also those whose time is not
// over: what a cluster forgets bit by bit would go bit by bit.
func tooMany(condemned, total int) bool { return condemned > mostCondemned && condemned > total/10 }

// removeOrphans deletes orphans whose time is over, and returns those that it did
// not. The API server itself has to say that nothing stands for them: a cache that
// lags behind, or was emptied, is not asked about somebody's data.
func (m *Mirror) removeOrphans(ctx context.Context, expired []Orphan) (kept []Orphan) {
	if len(expired) == 0 {
		return nil
	}
	known, err := m.handles(ctx)
	if err != nil {
		klog.FromContext(ctx).Error(err, "No orphans deleted")
		return expired
	}
	for _, o := range expired {
		err := errors.New("something in the cluster stands for it")
		if !known[o.Ref] {
			err = m.node.Remove(ctx, o.Ref)
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

// handles returns what the cluster knows, as the API server says at this moment.
func (m *Mirror) handles(ctx context.Context) (map[meta.Ref]bool, error) {
	known := map[meta.Ref]bool{}
	volumes, err := m.cluster.API.PersistentVolumes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	for i := range volumes.Items {
		known[meta.Volume(m.cluster.VolumeHandle(&volumes.Items[i]))] = true
	}
	if !m.cluster.SnapshotsSynced.Load() {
		return known, nil // and no snapshot was judged
	}
	contents, err := m.cluster.API.Contents().List(ctx, metav1.ListOptions{}) // fails where they are not served any more
	if err != nil {
		return nil, err
	}
	for i := range contents.Items {
		known[meta.Snapshot(m.cluster.SnapshotHandle(&contents.Items[i]))] = true
	}
	return known, nil
}

// judge returns the volumes and snapshots that the cluster knows nothing of, and
// how many there are in all. It takes their mark from those that it knows again.
func (m *Mirror) judge(ctx context.Context) (unknown []meta.Entry, total int) {
	classes := []meta.Class{meta.Volumes}
	if m.cluster.SnapshotsSynced.Load() {
		classes = append(classes, meta.Snapshots)
	}
	expected := m.expected()
	var known []meta.Entry
	for _, class := range classes {
		_ = m.node.Walk(ctx, class, func(e meta.Entry) bool { // what cannot be listed is nobody's orphan
			total++
			switch {
			case !m.owner.Owns(e.PoolID):
			case expected[e.Name] || m.referred(e):
				known = append(known, e)
			case time.Since(e.Created) > youth:
				unknown = append(unknown, e)
			}
			return true
		})
	}
	for _, e := range known {
		s, ok := m.cluster.Subvolumes.Get(SubvolumeName(e.Ref()))
		if ok && s.Annotations[v1alpha1.AnnotationOrphanedSince] != "" {
			_ = m.mark(ctx, SubvolumeName(e.Ref()), map[string]*string{v1alpha1.AnnotationOrphanedSince: nil, v1alpha1.AnnotationCondemnedSince: nil}) // else at the next look
		}
	}
	return unknown, total
}

// referred reports whether a PersistentVolume or VolumeSnapshotContent stands for
// an entry.
func (m *Mirror) referred(e meta.Entry) bool {
	if e.Kind == meta.Committed {
		return len(m.cluster.ContentsOf(e.ID)) > 0
	}
	return len(m.cluster.VolumesOf(e.ID)) > 0
}

// expected returns the CSI names that the sidecars give to what they are asked
// to make, and whose objects may be still to come.
func (m *Mirror) expected() map[string]bool {
	names := map[string]bool{}
	for _, claim := range m.cluster.Claims.List() {
		names["pvc-"+string(claim.UID)] = true
	}
	for _, name := range m.cluster.Contents.GetStore().ListKeys() {
		names["snapshot-"+strings.TrimPrefix(name, "snapcontent-")] = true
	}
	return names
}

// noteOrphan returns what is known of an orphan. It is reported, and marked in the
// cluster, so that a restart does not begin the time anew: when it is first seen,
// and when it is first to be deleted. What this cluster never knew is not, it may
// be all there is of another.
func (m *Mirror) noteOrphan(ctx context.Context, e meta.Entry) (Orphan, error) {
	orphan := Orphan{Ref: e.Ref(), Pool: e.Pool, PoolID: e.PoolID}
	s, ok := m.cluster.Subvolumes.Get(SubvolumeName(e.Ref()))
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
	condemn := m.options.Orphans == DeleteOrphans && s.Annotations[v1alpha1.AnnotationObject] != ""
	if at := since(v1alpha1.AnnotationCondemnedSince, condemn); condemn {
		orphan.condemned = at
	}
	if len(marks) == 0 {
		return orphan, nil
	}
	fate := "it is kept until somebody deletes it"
	if condemn {
		fate = fmt.Sprintf("it is deleted after %v", m.options.OrphanGrace)
	}
	m.cluster.Events.Eventf(s, corev1.EventTypeWarning, "Orphaned", "No PersistentVolume or VolumeSnapshotContent stands for %s in pool %q of node %q; %s",
		e.Ref(), e.Pool, m.cluster.NodeName, fate)
	return orphan, m.mark(ctx, s.Name, marks)
}

func (m *Mirror) mark(ctx context.Context, name string, marks map[string]*string) error {
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"annotations": marks}})
	if err != nil {
		return err
	}
	_, err = m.cluster.API.Subvolumes().Patch(ctx, name, types.MergePatchType, patch, metav1.PatchOptions{})
	return err
}

// missing returns the PersistentVolumes of this node's pools whose volume is not
// there, and records an Event on each.
func (m *Mirror) missing(ctx context.Context) (found []Orphan) {
	for _, v := range m.cluster.PersistentVolumes.List() {
		poolID := m.cluster.PoolID(v)
		if poolID == "" || !m.owner.Owns(poolID) || v.DeletionTimestamp != nil || v.Status.Phase == corev1.VolumeReleased {
			continue
		}
		ref := meta.Volume(m.cluster.VolumeHandle(v))
		if _, state := m.node.Look(ctx, ref); state != Gone && state != Lost {
			continue
		}
		found = append(found, Orphan{Ref: ref, PoolID: poolID, Missing: v.Name})
		m.cluster.Events.Eventf(v, corev1.EventTypeWarning, "VolumeMissing",
			"Node %q, which has the pool %s, has no %s: it was removed by hand, or the disk is not the same; restore a snapshot, then delete this PersistentVolume",
			m.cluster.NodeName, poolID, ref)
	}
	return found
}
