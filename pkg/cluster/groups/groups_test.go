package groups

import (
	"slices"
	"strings"
	"testing"

	groupv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumegroupsnapshot/v1"
	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/cache"

	"github.com/btrfs-csi/btrfs-csi/pkg/cluster/client"
	"github.com/btrfs-csi/btrfs-csi/pkg/cluster/clustertest"
	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
)

// content returns the content of a group of volumes, as the snapshot-controller makes it.
func content(volumes ...string) *groupv1.VolumeGroupSnapshotContent {
	class := "nightly"
	return &groupv1.VolumeGroupSnapshotContent{
		ObjectMeta: metav1.ObjectMeta{Name: "content", Finalizers: []string{client.FinalizerGroup, "other"}},
		Spec: groupv1.VolumeGroupSnapshotContentSpec{
			Driver: "btrfs-csi.github.io", DeletionPolicy: snapshotv1.VolumeSnapshotContentDelete, VolumeGroupSnapshotClassName: &class,
			VolumeGroupSnapshotRef: corev1.ObjectReference{Namespace: "db", Name: "group", UID: "uid"},
			Source:                 groupv1.VolumeGroupSnapshotContentSource{VolumeHandles: volumes},
		},
	}
}

func deleted(c *groupv1.VolumeGroupSnapshotContent) *groupv1.VolumeGroupSnapshotContent {
	now := metav1.Now()
	c.DeletionTimestamp, c.Annotations = &now, map[string]string{client.AnnotationGroupBeingDeleted: "yes"}
	return c
}

// newLab returns a node with the volumes "a" and "b", and the content of a group.
func newLab(t *testing.T, c *groupv1.VolumeGroupSnapshotContent) (*clustertest.Lab, *Controller) {
	l := clustertest.New(t, clustertest.NewNode(clustertest.Entry(meta.Volume("a")), clustertest.Entry(meta.Volume("b"))))
	controller := New(l.Cluster, l.Node, l.Owner)
	l.API.Put(clustertest.GroupClasses, &groupv1.VolumeGroupSnapshotClass{
		ObjectMeta: metav1.ObjectMeta{Name: "nightly"}, Parameters: map[string]string{"nestedSubvolumes": "skip"},
	})
	l.API.Put(clustertest.GroupContents, c)
	l.See()
	return l, controller
}

func (c *Controller) now(t *testing.T) *groupv1.VolumeGroupSnapshotContent {
	t.Helper()
	now, err := c.cluster.API.GroupContents().Get(t.Context(), "content", metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		t.Fatal(err)
	}
	return now
}

func TestGroupIsTaken(t *testing.T) {
	l, c := newLab(t, content("b", "a"))
	l.No(c.reconcile(t.Context(), "content"))
	now := c.now(t)
	if now.Labels[client.LabelManagedBy] != "node-1" || !*now.Status.ReadyToUse || *now.Status.VolumeGroupSnapshotHandle != "groupsnapshot-uid" || now.Status.CreationTime == nil {
		t.Errorf("got %+v", now)
	}
	infos := now.Status.VolumeSnapshotInfoList
	if len(infos) != 2 || infos[0].VolumeHandle != "a" || infos[1].SnapshotHandle != "groupsnapshot-uid-1" || *infos[1].RestoreSize != 1<<30 || !*infos[0].ReadyToUse {
		t.Errorf("got %+v", infos)
	}
	if l.Node.Parameters["nestedSubvolumes"] != "skip" || l.Node.Parameters["csi.storage.k8s.io/volumegroupsnapshot/name"] != "group" {
		t.Errorf("got the parameters %v", l.Node.Parameters)
	}
	l.See()
	l.API.Written()
	l.No(c.reconcile(t.Context(), "content"))
	if written := l.API.Written(); len(written) > 0 {
		t.Errorf("what is ready is written again: %q", written)
	}
}

func TestGroupIsTheTaskOfTheNodeOfItsFirstVolume(t *testing.T) {
	for _, c := range []struct {
		name    string
		volumes []string
		owned   []string
		takes   bool
	}{
		{"here", []string{"b", "a"}, []string{"pool-1"}, true},
		{"the first is elsewhere", []string{"b", "Z"}, []string{"pool-1"}, false},
		{"the pool is not owned", []string{"a", "b"}, nil, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			l, controller := newLab(t, content(c.volumes...))
			l.Owner.IDs = c.owned
			l.No(controller.reconcile(t.Context(), "content"))
			if took := controller.now(t).Status != nil; took != c.takes {
				t.Errorf("taken: %v, wanted %v", took, c.takes)
			}
		})
	}
	l, controller := newLab(t, content("a"))
	foreign := content("a")
	foreign.Spec.Driver = "other"
	l.API.Put(clustertest.GroupContents, foreign)
	l.See()
	controller.Resync()
	if n := controller.queue.Len(); n != 0 {
		t.Errorf("%d contents of another driver are queued", n)
	}
}

// TestRefusalIsWrittenOnce: the reason is in the status, and the request is repeated. A busy volume
// is no error of the user.
func TestRefusalIsWrittenOnce(t *testing.T) {
	l, c := newLab(t, content("a", "b"))
	l.Node.Refuses = status.Error(codes.FailedPrecondition, "volumes in two pools")
	for range 2 {
		if err := c.reconcile(t.Context(), "content"); err == nil {
			t.Error("the request is not repeated")
		}
		l.See()
	}
	if now := c.now(t); *now.Status.ReadyToUse || !strings.Contains(*now.Status.Error.Message, "two pools") {
		t.Errorf("got %+v", now.Status)
	}
	if written := l.API.Written(); len(written) != 2 { // the label and the status
		t.Errorf("got the writes %q", written)
	}
	l.Node.Refuses = nil
	l.No(c.reconcile(t.Context(), "content"))
	if now := c.now(t); !*now.Status.ReadyToUse || now.Status.Error != nil {
		t.Errorf("got %+v", now.Status)
	}

	l, c = newLab(t, content("a", "b"))
	l.Node.Refuses = status.Error(codes.Aborted, "busy")
	if err := c.reconcile(t.Context(), "content"); err == nil || c.now(t).Status != nil {
		t.Errorf("got %v, %+v", err, c.now(t).Status)
	}
}

func TestUnknownClassIsReported(t *testing.T) {
	l, c := newLab(t, content("a"))
	l.API.Delete(clustertest.GroupClasses, "nightly")
	if err := c.reconcile(t.Context(), "content"); err == nil {
		t.Error("no error")
	}
	if now := c.now(t); now.Status == nil || !strings.Contains(*now.Status.Error.Message, `"nightly"`) {
		t.Errorf("got %+v", now.Status)
	}
}

func TestGroupThatExistsIsLookedUp(t *testing.T) {
	static := content()
	static.Spec.Source = groupv1.VolumeGroupSnapshotContentSource{GroupSnapshotHandles: &groupv1.GroupSnapshotHandles{VolumeGroupSnapshotHandle: "old"}}
	l, c := newLab(t, static)
	l.No(c.reconcile(t.Context(), "content"))
	if now := c.now(t); now.Status != nil {
		t.Errorf("got %+v of a group that is not here", now.Status)
	}
	_, err := l.Node.CommitGroup(t.Context(), "old", []string{"a", "b"}, nil)
	l.No(err)
	l.No(c.reconcile(t.Context(), "content"))
	if now := c.now(t); !*now.Status.ReadyToUse || *now.Status.VolumeGroupSnapshotHandle != "old" || len(now.Status.VolumeSnapshotInfoList) != 2 {
		t.Errorf("got %+v", now.Status)
	}
}

// TestGroupIsDeleted: a content goes after its group, and only when the snapshot-controller says so.
func TestGroupIsDeleted(t *testing.T) {
	for _, c := range []struct {
		name         string
		change       func(*groupv1.VolumeGroupSnapshotContent)
		prepare      func(*clustertest.Lab)
		stays, keeps bool // the content, the snapshots
		again        bool
	}{
		{name: "delete"},
		{name: "retain", change: func(c *groupv1.VolumeGroupSnapshotContent) {
			c.Spec.DeletionPolicy = snapshotv1.VolumeSnapshotContentRetain
		}, keeps: true},
		{name: "not by its VolumeGroupSnapshot", change: func(c *groupv1.VolumeGroupSnapshotContent) { c.Annotations = nil }, stays: true, keeps: true},
		{name: "refused", prepare: func(l *clustertest.Lab) { l.Node.Refuses = status.Error(codes.FailedPrecondition, "in use") }, stays: true, keeps: true, again: true},
		{name: "in a pool of another node", prepare: func(l *clustertest.Lab) { l.Owner.IDs = nil }, stays: true, keeps: true},
		{name: "never taken", prepare: func(l *clustertest.Lab) { l.No(l.Node.DeleteGroup(l.Context(), "groupsnapshot-uid", nil)) }},
		{name: "never taken, on another node", prepare: func(l *clustertest.Lab) {
			l.No(l.Node.DeleteGroup(l.Context(), "groupsnapshot-uid", nil))
			l.No(l.Node.Remove(l.Context(), meta.Volume("a")))
			there := clustertest.Subvolume(clustertest.Entry(meta.Volume("a")), nil)
			there.Spec.NodeName = "node-2"
			l.API.Put(clustertest.Subvolumes, there)
		}, stays: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			ending := deleted(content("a", "b"))
			if c.change != nil {
				c.change(ending)
			}
			l, controller := newLab(t, ending)
			_, err := l.Node.CommitGroup(t.Context(), "groupsnapshot-uid", []string{"a", "b"}, nil)
			l.No(err)
			if c.prepare != nil {
				c.prepare(l)
			}
			go l.Cluster.PersistentVolumes.RunWithContext(t.Context())
			if !cache.WaitForCacheSync(t.Context().Done(), l.Cluster.PersistentVolumes.HasSynced) {
				t.Fatal("the cache is not filled")
			}
			l.API.Written()
			if err := controller.reconcile(t.Context(), "content"); (err != nil) != c.again {
				t.Errorf("got %v", err)
			}
			if stays := slices.Contains(controller.now(t).Finalizers, client.FinalizerGroup); stays != c.stays {
				t.Errorf("the finalizer stays: %v, wanted %v", stays, c.stays)
			}
			if !slices.Contains(controller.now(t).Finalizers, "other") {
				t.Error("the finalizer of somebody else is gone")
			}
			if keeps := slices.ContainsFunc(l.Node.Refs(), func(r meta.Ref) bool { return r.Class == meta.Snapshots }); keeps != c.keeps {
				t.Errorf("the snapshots are there: %v, wanted %v", keeps, c.keeps)
			}
		})
	}
}
