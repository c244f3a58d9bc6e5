package mirror

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/btrfs-csi/btrfs-csi/api/v1alpha1"
	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
)

// grace is that of the tests.
const grace = time.Hour

// entryOf returns what was made a day ago in the pool "pool-1".
func entryOf(ref meta.Ref) meta.Entry {
	kind := meta.Active
	if ref.Class == meta.Snapshots {
		kind = meta.Committed
	}
	return meta.Entry{
		Record: meta.Record{ID: ref.ID, Kind: kind, Size: 1 << 30, Created: time.Now().Add(-24 * time.Hour)},
		Pool:   "default", PoolID: "pool-1",
	}
}

// mirrored returns the Subvolume of an entry, with annotations.
func mirrored(e meta.Entry, annotations map[string]string) *v1alpha1.Subvolume {
	return &v1alpha1.Subvolume{
		ObjectMeta: metav1.ObjectMeta{Name: SubvolumeName(e.Ref()), Annotations: annotations},
		Spec:       v1alpha1.SubvolumeSpec{ID: e.ID, Kind: Kinds[e.Kind], NodeName: "node-1", Pool: e.Pool, PoolID: e.PoolID},
	}
}

// condemned returns the annotations of an orphan that this cluster knew, and that
// was to be deleted some time ago.
func condemned(ago time.Duration) map[string]string {
	at := time.Now().Add(-ago).UTC().Format(time.RFC3339)
	return map[string]string{v1alpha1.AnnotationObject: "pv", v1alpha1.AnnotationOrphanedSince: at, v1alpha1.AnnotationCondemnedSince: at}
}

func volumeOf(handle, driver string) *corev1.PersistentVolume {
	return &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: handle},
		Spec: corev1.PersistentVolumeSpec{PersistentVolumeSource: corev1.PersistentVolumeSource{
			CSI: &corev1.CSIPersistentVolumeSource{Driver: driver, VolumeHandle: handle},
		}},
	}
}

func contentOf(handle, driver string) *snapshotv1.VolumeSnapshotContent {
	return &snapshotv1.VolumeSnapshotContent{
		ObjectMeta: metav1.ObjectMeta{Name: handle},
		Spec:       snapshotv1.VolumeSnapshotContentSpec{Driver: driver},
		Status:     &snapshotv1.VolumeSnapshotContentStatus{SnapshotHandle: &handle},
	}
}

// TestOrphans: one volume or snapshot that the caches know nothing of, and all
// that holds its removal back.
func TestOrphans(t *testing.T) {
	volume, snapshot := meta.Volume("pvc-1"), meta.Snapshot("snapshot-1")
	over := condemned(2 * grace)
	without := func(key string) map[string]string {
		annotations := condemned(2 * grace)
		delete(annotations, key)
		return annotations
	}
	for _, c := range []struct {
		name        string
		ref         meta.Ref
		policy      OrphanPolicy
		annotations map[string]string               // of its Subvolume; none there without
		setup       func(l *lab, entry *meta.Entry) // what else there is
		told        string                          // part of its Event
		removed     bool                            // else it is kept,
		noOrphan    bool                            // as an orphan or as none
	}{
		{name: "beyond its grace", ref: volume, annotations: over, removed: true},
		{name: "a snapshot beyond its grace", ref: snapshot, annotations: over, removed: true},
		{name: "within its grace", ref: volume, annotations: condemned(grace / 2)},
		{name: "seen for the first time", ref: volume, annotations: map[string]string{v1alpha1.AnnotationObject: "pv"}, told: "deleted after 1h"},
		{name: "policy report", ref: volume, policy: ReportOrphans, annotations: over, told: "kept until somebody deletes it"},
		{name: "policy report until now", ref: volume, annotations: without(v1alpha1.AnnotationCondemnedSince), told: "deleted after 1h"},
		{name: "this cluster never knew it", ref: volume, annotations: without(v1alpha1.AnnotationObject), told: "kept until somebody deletes it"},
		{name: "not mirrored yet", ref: volume},
		{name: "its mark cannot be written", ref: volume, annotations: map[string]string{v1alpha1.AnnotationObject: "pv"}, told: "deleted after 1h", setup: func(l *lab, _ *meta.Entry) {
			l.api.refuses[subvolumeObjects] = true
		}},
		{name: "the mark is no time", ref: volume, annotations: map[string]string{v1alpha1.AnnotationObject: "pv", v1alpha1.AnnotationOrphanedSince: "long ago", v1alpha1.AnnotationCondemnedSince: "long ago"}, told: "deleted after 1h"},
		{name: "the API server has its volume, the cache misses it", ref: volume, annotations: over, setup: func(l *lab, _ *meta.Entry) {
			l.api.put(persistentVolumes, volumeOf("pvc-1", l.cluster.Driver))
		}},
		{name: "the API server has its content, the cache misses it", ref: snapshot, annotations: over, setup: func(l *lab, _ *meta.Entry) {
			l.api.put(contentObjects, contentOf("snapshot-1", l.cluster.Driver))
		}},
		{name: "the volume of another driver has its handle", ref: volume, annotations: over, removed: true, setup: func(l *lab, _ *meta.Entry) {
			l.api.put(persistentVolumes, volumeOf("pvc-1", "example.com"))
		}},
		{name: "the API server does not tell of volumes", ref: volume, annotations: over, setup: func(l *lab, _ *meta.Entry) {
			l.api.refuses[persistentVolumes] = true
		}},
		{name: "the API server does not tell of contents", ref: volume, annotations: over, setup: func(l *lab, _ *meta.Entry) {
			l.api.refuses[contentObjects] = true
		}},
		{name: "the cluster knows no snapshots", ref: snapshot, annotations: over, noOrphan: true, setup: func(l *lab, _ *meta.Entry) {
			l.cluster.SnapshotsSynced.Store(false)
		}},
		{name: "young", ref: volume, annotations: over, noOrphan: true, setup: func(_ *lab, e *meta.Entry) {
			e.Created = time.Now().Add(-minAge / 2)
		}},
		{name: "its pool is not claimed", ref: volume, annotations: over, noOrphan: true, setup: func(_ *lab, e *meta.Entry) { e.PoolID = "pool-2" }},
		{name: "its claim is there", ref: volume, annotations: over, noOrphan: true, setup: func(l *lab, e *meta.Entry) {
			e.Name = "pvc-uid"
			l.no(l.cluster.Claims.GetStore().Add(&corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Name: "data", UID: types.UID("uid")}}))
		}},
		{name: "its content is there, without a handle", ref: snapshot, annotations: over, noOrphan: true, setup: func(l *lab, e *meta.Entry) {
			e.Name = "snapshot-uid"
			l.no(l.cluster.Contents.GetStore().Add(&snapshotv1.VolumeSnapshotContent{ObjectMeta: metav1.ObjectMeta{Name: "snapcontent-uid"}}))
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			entry, node := entryOf(c.ref), newFakeNode()
			l := newLab(t, node, Options{Orphans: DeleteOrphans, OrphanGrace: grace})
			if c.policy != "" {
				l.orphans.marker.policy = c.policy
			}
			if c.annotations != nil {
				l.api.put(subvolumeObjects, mirrored(entry, c.annotations))
			}
			l.see()
			if c.setup != nil {
				c.setup(l, &entry)
			}
			node.entries[c.ref] = entry

			l.orphans.Reconcile(t.Context())
			if kept := len(node.refs()) == 1; kept == c.removed {
				t.Errorf("want it removed: %v, got the opposite", c.removed)
			}
			found, _ := l.Orphans()
			if told := len(found) == 1; told == (c.removed || c.noOrphan) {
				t.Errorf("got the orphans %+v", found)
			}
			if told := strings.Join(l.told(), "\n"); (told == "") != (c.told == "") || !strings.Contains(told, c.told) {
				t.Errorf("want an Event with %q, got %q", c.told, told)
			}
		})
	}
}

// TestTooManyOrphans: where much of all there is should go, nothing does, also not
// bit by bit.
func TestTooManyOrphans(t *testing.T) {
	for _, c := range []struct {
		expired, condemned, all int
		removed                 bool
	}{
		{expired: 10, condemned: 10, all: 10, removed: true},
		{expired: 11, condemned: 11, all: 11},
		{expired: 11, condemned: 11, all: 20},
		{expired: 11, condemned: 11, all: 109},
		{expired: 11, condemned: 11, all: 110, removed: true},
		{expired: 12, condemned: 12, all: 110},
		{expired: 8, condemned: 200, all: 250},
		{expired: 1, condemned: 11, all: 109},
		{expired: 1, condemned: 11, all: 110, removed: true},
	} {
		t.Run(fmt.Sprintf("%d and %d more of %d", c.expired, c.condemned-c.expired, c.all), func(t *testing.T) {
			l := newLab(t, newFakeNode(), Options{Orphans: DeleteOrphans, OrphanGrace: grace})
			for i := range c.all {
				entry := entryOf(meta.Volume(fmt.Sprintf("pvc-%d", i)))
				l.node.entries[entry.Ref()] = entry
				switch {
				case i < c.expired:
					l.api.put(subvolumeObjects, mirrored(entry, condemned(2*grace)))
				case i < c.condemned:
					l.api.put(subvolumeObjects, mirrored(entry, condemned(grace/2)))
				default:
					l.api.put(persistentVolumes, volumeOf(entry.ID, l.cluster.Driver))
				}
			}
			l.see()
			l.orphans.Reconcile(t.Context())
			left, found := c.all, c.condemned
			if c.removed {
				left, found = c.all-c.expired, c.condemned-c.expired
			}
			if got := len(l.node.refs()); got != left {
				t.Errorf("want %d left, got %d", left, got)
			}
			if orphans, _ := l.Orphans(); len(orphans) != found {
				t.Errorf("want %d orphans told, got %d", found, len(orphans))
			}
		})
	}
}

// TestOrphanMarks: the marks of an orphan stay as they are from one look to the
// next, so that its time runs, and go when the cluster knows it again.
func TestOrphanMarks(t *testing.T) {
	entry := entryOf(meta.Volume("pvc-1"))
	l := newLab(t, newFakeNode(entry), Options{Orphans: DeleteOrphans, OrphanGrace: grace})
	l.api.put(subvolumeObjects, mirrored(entry, map[string]string{v1alpha1.AnnotationObject: "pv"}))
	marks := func() (orphaned, condemned string) {
		l.see()
		s, _ := l.cluster.Subvolumes.Get("pvc-1")
		return s.Annotations[v1alpha1.AnnotationOrphanedSince], s.Annotations[v1alpha1.AnnotationCondemnedSince]
	}
	expect := func(when string, orphaned, condemned bool, writes int) {
		t.Helper()
		if o, c := marks(); (o != "") != orphaned || (c != "") != condemned {
			t.Errorf("%s: got the marks %q and %q", when, o, c)
		}
		if written := l.api.written(); len(written) != writes {
			t.Errorf("%s: want %d writes, got %q", when, writes, written)
		}
	}
	marks()
	l.orphans.Reconcile(t.Context())
	expect("first seen", true, true, 1)
	l.orphans.Reconcile(t.Context())
	expect("seen again", true, true, 0)
	if told := l.told(); len(told) != 1 {
		t.Errorf("want it told once, got %q", told)
	}
	l.api.put(persistentVolumes, volumeOf("pvc-1", l.cluster.Driver))
	marks()
	l.orphans.Reconcile(t.Context())
	expect("known again", false, false, 1)
	if found, looked := l.Orphans(); len(found) > 0 || !looked {
		t.Errorf("got the orphans %+v", found)
	}
	delete(l.api.objects, persistentVolumes+"/pvc-1")
	marks()
	l.orphans.Reconcile(t.Context())
	expect("an orphan again", true, true, 1)
	l.orphans.marker.policy = ReportOrphans
	l.orphans.Reconcile(t.Context())
	expect("policy report", true, false, 1)
	if !slices.Equal(l.node.refs(), []meta.Ref{entry.Ref()}) {
		t.Errorf("it is gone")
	}
}
