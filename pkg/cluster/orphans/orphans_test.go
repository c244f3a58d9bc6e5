package orphans

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	groupv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumegroupsnapshot/v1"
	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/btrfs-csi/btrfs-csi/api/v1alpha1"
	"github.com/btrfs-csi/btrfs-csi/pkg/cluster/clustertest"
	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
)

// grace is the time of grace in these tests.
const grace = time.Hour

// marked returns the annotations of an orphan that had an object in this cluster and was marked for
// deletion some time ago.
func marked(ago time.Duration) map[string]string {
	at := time.Now().Add(-ago).UTC().Format(time.RFC3339)
	return map[string]string{v1alpha1.AnnotationObject: "pv", v1alpha1.AnnotationOrphanedSince: at, v1alpha1.AnnotationMarkedForDeletionSince: at}
}

// lab is a lab with the controller of orphans.
type lab struct {
	*clustertest.Lab
	orphans *Controller
}

func newLab(t *testing.T, node *clustertest.Node) *lab {
	t.Helper()
	l := clustertest.New(t, node)
	return &lab{l, New(l.Cluster, l.Node, l.Owner, Delete, grace)}
}

// groupContent returns the content of a group with the member "snapshot-1".
func groupContent(l *lab) *groupv1.VolumeGroupSnapshotContent {
	return &groupv1.VolumeGroupSnapshotContent{
		ObjectMeta: metav1.ObjectMeta{Name: "group"},
		Spec: groupv1.VolumeGroupSnapshotContentSpec{
			Driver: l.Cluster.Driver, VolumeGroupSnapshotRef: corev1.ObjectReference{UID: "uid"},
			Source: groupv1.VolumeGroupSnapshotContentSource{VolumeHandles: []string{"pvc-1"}},
		},
		Status: &groupv1.VolumeGroupSnapshotContentStatus{VolumeSnapshotInfoList: []groupv1.VolumeSnapshotInfo{{SnapshotHandle: "snapshot-1"}}},
	}
}

// TestOrphans: one volume or snapshot without an object in the caches, and each reason not to delete
// it.
func TestOrphans(t *testing.T) {
	volume, snapshot := meta.Volume("pvc-1"), meta.Snapshot("snapshot-1")
	over := marked(2 * grace)
	without := func(key string) map[string]string {
		annotations := marked(2 * grace)
		delete(annotations, key)
		return annotations
	}
	for _, c := range []struct {
		name        string
		ref         meta.Ref
		policy      Policy
		annotations map[string]string               // of its Subvolume; nil: it has none
		setup       func(l *lab, entry *meta.Entry) // changes the lab
		event       string                          // part of its Event
		removed     bool                            // else it is kept
		noOrphan    bool                            // it is not reported as an orphan
	}{
		{name: "beyond its grace", ref: volume, annotations: over, removed: true},
		{name: "a snapshot beyond its grace", ref: snapshot, annotations: over, removed: true},
		{name: "within its grace", ref: volume, annotations: marked(grace / 2)},
		{name: "seen for the first time", ref: volume, annotations: map[string]string{v1alpha1.AnnotationObject: "pv"}, event: "deleted after 1h"},
		{name: "policy report", ref: volume, policy: Report, annotations: over, event: "kept until somebody deletes it"},
		{name: "policy report until now", ref: volume, annotations: without(v1alpha1.AnnotationMarkedForDeletionSince), event: "deleted after 1h"},
		{name: "this cluster never knew it", ref: volume, annotations: without(v1alpha1.AnnotationObject), event: "kept until somebody deletes it"},
		{name: "not published yet", ref: volume},
		{name: "its mark cannot be written", ref: volume, annotations: map[string]string{v1alpha1.AnnotationObject: "pv"}, event: "deleted after 1h", setup: func(l *lab, _ *meta.Entry) {
			l.API.Refuse(clustertest.Subvolumes, true)
		}},
		{name: "the mark is no time", ref: volume, annotations: map[string]string{v1alpha1.AnnotationObject: "pv", v1alpha1.AnnotationOrphanedSince: "long ago", v1alpha1.AnnotationMarkedForDeletionSince: "long ago"}, event: "deleted after 1h"},
		{name: "the API server has its volume, the cache misses it", ref: volume, annotations: over, setup: func(l *lab, _ *meta.Entry) {
			l.API.Put(clustertest.PersistentVolumes, clustertest.Volume("pvc-1", l.Cluster.Driver))
		}},
		{name: "the API server has its content, the cache misses it", ref: snapshot, annotations: over, setup: func(l *lab, _ *meta.Entry) {
			l.API.Put(clustertest.Contents, clustertest.Content("snapshot-1", l.Cluster.Driver))
		}},
		{name: "the volume of another driver has its handle", ref: volume, annotations: over, removed: true, setup: func(l *lab, _ *meta.Entry) {
			l.API.Put(clustertest.PersistentVolumes, clustertest.Volume("pvc-1", "example.com"))
		}},
		{name: "the API server does not list volumes", ref: volume, annotations: over, setup: func(l *lab, _ *meta.Entry) {
			l.API.Refuse(clustertest.PersistentVolumes, true)
		}},
		{name: "the API server does not list contents", ref: volume, annotations: over, setup: func(l *lab, _ *meta.Entry) {
			l.API.Refuse(clustertest.Contents, true)
		}},
		{name: "the cluster knows no snapshots", ref: snapshot, annotations: over, noOrphan: true, setup: func(l *lab, _ *meta.Entry) {
			l.Cluster.SnapshotsSynced.Store(false)
		}},
		{name: "young", ref: volume, annotations: over, noOrphan: true, setup: func(_ *lab, e *meta.Entry) {
			e.Created = time.Now().Add(-minAge / 2)
		}},
		{name: "its pool is not claimed", ref: volume, annotations: over, noOrphan: true, setup: func(_ *lab, e *meta.Entry) { e.PoolID = "pool-2" }},
		{name: "its claim is there", ref: volume, annotations: over, noOrphan: true, setup: func(l *lab, e *meta.Entry) {
			e.Name = "pvc-uid"
			l.No(l.Cluster.Claims.GetStore().Add(&corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Name: "data", UID: types.UID("uid")}}))
		}},
		{name: "its content is there, without a handle", ref: snapshot, annotations: over, noOrphan: true, setup: func(l *lab, e *meta.Entry) {
			e.Name = "snapshot-uid"
			l.No(l.Cluster.Contents.GetStore().Add(&snapshotv1.VolumeSnapshotContent{ObjectMeta: metav1.ObjectMeta{Name: "snapcontent-uid"}}))
		}},
		{name: "its group is gone", ref: snapshot, annotations: over, removed: true, setup: func(_ *lab, e *meta.Entry) { e.Group.ID = "groupsnapshot-uid" }},
		{name: "its group is there", ref: snapshot, annotations: over, noOrphan: true, setup: func(l *lab, e *meta.Entry) {
			e.Group.ID = "groupsnapshot-uid"
			l.No(l.Cluster.GroupContents.GetStore().Add(groupContent(l)))
		}},
		{name: "the API server has its group, the cache misses it", ref: snapshot, annotations: over, setup: func(l *lab, e *meta.Entry) {
			e.Group.ID = "groupsnapshot-uid"
			l.API.Put(clustertest.GroupContents, groupContent(l))
		}},
		{name: "the API server does not list groups", ref: snapshot, annotations: over, setup: func(l *lab, _ *meta.Entry) {
			l.API.Refuse(clustertest.GroupContents, true)
		}},
		{name: "the cluster knows no groups", ref: snapshot, annotations: over, noOrphan: true, setup: func(l *lab, e *meta.Entry) {
			e.Group.ID = "groupsnapshot-uid"
			l.Cluster.GroupsSynced.Store(false)
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			entry, node := clustertest.Entry(c.ref), clustertest.NewNode()
			l := newLab(t, node)
			if c.policy != "" {
				l.orphans.marker.policy = c.policy
			}
			if c.annotations != nil {
				l.API.Put(clustertest.Subvolumes, clustertest.Subvolume(entry, c.annotations))
			}
			l.See()
			if c.setup != nil {
				c.setup(l, &entry)
			}
			node.Entries[c.ref] = entry

			l.orphans.Reconcile(t.Context())
			if kept := len(node.Refs()) == 1; kept == c.removed {
				t.Errorf("want it removed: %v, got the opposite", c.removed)
			}
			found, _ := l.orphans.Found()
			if reported := len(found) == 1; reported == (c.removed || c.noOrphan) {
				t.Errorf("got the orphans %+v", found)
			}
			if events := strings.Join(l.Events(), "\n"); (events == "") != (c.event == "") || !strings.Contains(events, c.event) {
				t.Errorf("want an Event with %q, got %q", c.event, events)
			}
		})
	}
}

// TestTooManyOrphans: if a large part of all volumes are orphans none is deleted, also if they become
// orphans one by one.
func TestTooManyOrphans(t *testing.T) {
	for _, c := range []struct {
		expired, marked, all int
		removed              bool
	}{
		{expired: 10, marked: 10, all: 10, removed: true},
		{expired: 11, marked: 11, all: 11},
		{expired: 11, marked: 11, all: 20},
		{expired: 11, marked: 11, all: 109},
		{expired: 11, marked: 11, all: 110, removed: true},
		{expired: 12, marked: 12, all: 110},
		{expired: 8, marked: 200, all: 250},
		{expired: 1, marked: 11, all: 109},
		{expired: 1, marked: 11, all: 110, removed: true},
	} {
		t.Run(fmt.Sprintf("%d and %d more of %d", c.expired, c.marked-c.expired, c.all), func(t *testing.T) {
			l := newLab(t, clustertest.NewNode())
			for i := range c.all {
				entry := clustertest.Entry(meta.Volume(fmt.Sprintf("pvc-%d", i)))
				l.Node.Entries[entry.Ref()] = entry
				switch {
				case i < c.expired:
					l.API.Put(clustertest.Subvolumes, clustertest.Subvolume(entry, marked(2*grace)))
				case i < c.marked:
					l.API.Put(clustertest.Subvolumes, clustertest.Subvolume(entry, marked(grace/2)))
				default:
					l.API.Put(clustertest.PersistentVolumes, clustertest.Volume(entry.ID, l.Cluster.Driver))
				}
			}
			l.See()
			l.orphans.Reconcile(t.Context())
			left, found := c.all, c.marked
			if c.removed {
				left, found = c.all-c.expired, c.marked-c.expired
			}
			if got := len(l.Node.Refs()); got != left {
				t.Errorf("want %d left, got %d", left, got)
			}
			if orphans, _ := l.orphans.Found(); len(orphans) != found {
				t.Errorf("want %d orphans found, got %d", found, len(orphans))
			}
		})
	}
}

// TestOrphanMarks: the marks of an orphan stay the same in later searches, and are removed when an
// object refers to it again.
func TestOrphanMarks(t *testing.T) {
	entry := clustertest.Entry(meta.Volume("pvc-1"))
	l := newLab(t, clustertest.NewNode(entry))
	l.API.Put(clustertest.Subvolumes, clustertest.Subvolume(entry, map[string]string{v1alpha1.AnnotationObject: "pv"}))
	marks := func() (orphaned, marked string) {
		l.See()
		s, _ := l.Cluster.Subvolumes.Get("pvc-1")
		return s.Annotations[v1alpha1.AnnotationOrphanedSince], s.Annotations[v1alpha1.AnnotationMarkedForDeletionSince]
	}
	expect := func(when string, orphaned, marked bool, writes int) {
		t.Helper()
		if o, c := marks(); (o != "") != orphaned || (c != "") != marked {
			t.Errorf("%s: got the marks %q and %q", when, o, c)
		}
		if written := l.API.Written(); len(written) != writes {
			t.Errorf("%s: want %d writes, got %q", when, writes, written)
		}
	}
	marks()
	l.orphans.Reconcile(t.Context())
	expect("first seen", true, true, 1)
	l.orphans.Reconcile(t.Context())
	expect("seen again", true, true, 0)
	if events := l.Events(); len(events) != 1 {
		t.Errorf("want one Event, got %q", events)
	}
	l.API.Put(clustertest.PersistentVolumes, clustertest.Volume("pvc-1", l.Cluster.Driver))
	marks()
	l.orphans.Reconcile(t.Context())
	expect("known again", false, false, 1)
	if found, looked := l.orphans.Found(); len(found) > 0 || !looked {
		t.Errorf("got the orphans %+v", found)
	}
	l.API.Delete(clustertest.PersistentVolumes, "pvc-1")
	marks()
	l.orphans.Reconcile(t.Context())
	expect("an orphan again", true, true, 1)
	l.orphans.marker.policy = Report
	l.orphans.Reconcile(t.Context())
	expect("policy report", true, false, 1)
	if !slices.Equal(l.Node.Refs(), []meta.Ref{entry.Ref()}) {
		t.Errorf("it is gone")
	}
}
