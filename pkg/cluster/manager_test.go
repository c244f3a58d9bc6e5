package cluster

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"github.com/btrfs-csi/btrfs-csi/api/v1alpha1"
	"github.com/btrfs-csi/btrfs-csi/pkg/cluster/client"
	"github.com/btrfs-csi/btrfs-csi/pkg/cluster/clustertest"
	"github.com/btrfs-csi/btrfs-csi/pkg/cluster/node"
	"github.com/btrfs-csi/btrfs-csi/pkg/cluster/orphans"
	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
)

// lab is a lab with the manager of a node. Its controllers run only when a test says so.
type lab struct {
	*clustertest.Lab
	*Manager
}

func newLab(t *testing.T, node *clustertest.Node) *lab {
	t.Helper()
	l := clustertest.New(t, node)
	return &lab{l, newManager(l.Cluster, l.Node, Options{Orphans: orphans.Delete, OrphanGrace: time.Hour})}
}

// resync runs the comparison of all objects to its end.
func (l *lab) resync() {
	l.Helper()
	_, err := l.syncPools(l.Context())
	l.No(err)
	l.See()
	l.syncAll(l.Context())
	refs := map[meta.Ref]bool{}
	for _, class := range []meta.Class{meta.Volumes, meta.Snapshots} {
		l.No(l.Node.Walk(l.Context(), class, func(e meta.Entry) bool {
			refs[e.Ref()] = true
			return true
		}))
	}
	for _, s := range l.Cluster.Subvolumes.List() {
		refs[client.RefOf(s)] = true
	}
	for ref := range refs {
		l.No(l.subvolumes.Publish(l.Context(), ref))
	}
	l.See()
	l.No(l.labels.Reconcile(l.Context()))
	l.orphans.Reconcile(l.Context())
	l.See()
}

// TestRunEnds: a manager that ends before the API server has answered leaves no goroutine behind.
func TestRunEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		clients, err := client.Connect(&rest.Config{Transport: unreachable{}})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		New(clients, client.Identity{NodeName: "node-1"}, clustertest.NewNode(), Options{}).Run(ctx)
	})
}

type unreachable struct{}

func (unreachable) RoundTrip(*http.Request) (*http.Response, error) {
	return nil, errors.New("no route to host")
}

// TestQuiet: a comparison of all objects writes nothing if nothing has changed. Else each node would
// repeat the write with each resync.
func TestQuiet(t *testing.T) {
	volume, snapshot, orphan := clustertest.Entry(meta.Volume("pvc-1")), clustertest.Entry(meta.Snapshot("snapshot-1")), clustertest.Entry(meta.Volume("pvc-3"))
	volume.Labels = map[string]string{"pvc/name": "data", "pvc/namespace": "db"}
	volume.Lineage = meta.Lineage{SubvolumeID: 257, UUID: "u-1", CreatedTransid: 9}
	snapshot.Source, snapshot.Lineage = volume.Ref(), meta.Lineage{SubvolumeID: 258, UUID: "u-2", ParentUUID: "u-1", CreatedTransid: 10}
	view := clustertest.Entry(meta.Volume("pvc-2"))
	view.Kind, view.Source, view.ReceivedUUID = meta.View, snapshot.Ref(), "u-9"

	l := newLab(t, clustertest.NewNode(volume, snapshot, view, orphan))
	l.Node.Present = []node.Pool{{Name: "default", ID: "pool-1", State: "Ready", Quota: "full", Size: 10 << 30, Available: 7777777777}}
	l.API.Put(clustertest.Nodes, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "node-1", Labels: map[string]string{l.Cluster.TopologyPrefix + "gone": "here"}}})
	for _, handle := range []string{"pvc-1", "pvc-2"} {
		bound := clustertest.Volume(handle, l.Cluster.Driver)
		bound.Spec.ClaimRef, bound.Status.Phase = &corev1.ObjectReference{Name: "data"}, corev1.VolumeBound
		l.API.Put(clustertest.PersistentVolumes, bound)
	}
	l.API.Put(clustertest.Contents, clustertest.Content("snapshot-1", l.Cluster.Driver))
	l.See()

	expect := func(when string, parts ...string) {
		t.Helper()
		l.resync()
		written := strings.Join(l.API.Written(), "\n")
		if len(parts) == 0 && written != "" {
			t.Errorf("%s: got\n%s", when, written)
		}
		for _, part := range parts {
			if !strings.Contains(written, part) {
				t.Errorf("%s: want %s, got\n%s", when, part, written)
			}
		}
	}
	expect("at first", "POST "+clustertest.Pools, "PUT "+clustertest.Pools+"/pool-1/status",
		"POST "+clustertest.Subvolumes, "PUT "+clustertest.Subvolumes+"/pvc-1/status", "PUT "+clustertest.Subvolumes+"/pvc-2/status", "PUT "+clustertest.Subvolumes+"/snapshot-1/status",
		"PATCH "+clustertest.Subvolumes+"/pvc-3", "PATCH "+clustertest.PersistentVolumes+"/pvc-1", "PATCH "+clustertest.PersistentVolumes+"/pvc-2", "PATCH "+clustertest.Contents+"/snapshot-1", "PATCH "+clustertest.Nodes+"/node-1")
	expect("nothing has changed")
	expect("nothing has changed again")

	l.Node.Present[0].Available += 1 << 10
	expect("a write that is no news")
	l.Node.Present[0].Available -= 1 << 30
	expect("a write that is", "PUT "+clustertest.Pools+"/pool-1/status")
	volume.Size *= 2
	l.Node.Entries[volume.Ref()] = volume
	expect("expanded", "PUT "+clustertest.Subvolumes+"/pvc-1/status", "PUT "+clustertest.Subvolumes+"/pvc-1")
	l.No(l.Node.Remove(t.Context(), view.Ref()))
	expect("removed", "DELETE "+clustertest.Subvolumes+"/pvc-2")
	expect("nothing has changed since")
}

// TestTakeOver: all Subvolumes of a pool that has moved here are published as it is on this node, also
// those of volumes that are gone or lost.
func TestTakeOver(t *testing.T) {
	here, lost, deleted, elsewhere := clustertest.Entry(meta.Volume("here")), clustertest.Entry(meta.Volume("lost")), clustertest.Entry(meta.Volume("deleted")), clustertest.Entry(meta.Volume("elsewhere"))
	elsewhere.PoolID = "pool-2"
	l := newLab(t, clustertest.NewNode(here, lost))
	l.Node.Lost = map[meta.Ref]bool{lost.Ref(): true}
	l.Node.Present = []node.Pool{{Name: "fast", ID: "pool-1", State: "Ready"}}
	for _, entry := range []meta.Entry{here, lost, deleted, elsewhere} {
		s := clustertest.Subvolume(entry, map[string]string{v1alpha1.AnnotationOrphanedSince: "then", v1alpha1.AnnotationMarkedForDeletionSince: "then", v1alpha1.AnnotationObject: "pv", v1alpha1.AnnotationUUID: "u"})
		s.Spec.NodeName, s.Status.State = "node-2", string(node.Ready)
		l.API.Put(clustertest.Subvolumes, s)
	}
	for range 2 {
		l.resync()
	}
	written, object := l.API.Written(), clustertest.Subvolumes+"/deleted"
	if update, removal := slices.Index(written, "PUT "+object), slices.Index(written, "DELETE "+object); update < 0 || removal < update {
		t.Errorf("want it taken over before it is deleted, which is refused for what is another node's; got %q", written)
	}
	for _, c := range []struct{ name, node, pool, state string }{
		{"here", "node-1", "default", "Ready"}, // with the pool name of the entry
		{"lost", "node-1", "fast", "Lost"},
		{"deleted", "", "", ""},
		{"elsewhere", "node-2", "default", "Ready"},
	} {
		s, err := l.Cluster.API.Subvolumes().Get(t.Context(), c.name, metav1.GetOptions{})
		if c.node == "" {
			if !apierrors.IsNotFound(err) {
				t.Errorf("%s is still there", c.name)
			}
			continue
		}
		l.No(err)
		if s.Spec.NodeName != c.node || s.Spec.Pool != c.pool || s.Status.State != c.state {
			t.Errorf("%s: got %q of node %q, pool %q", c.name, s.Status.State, s.Spec.NodeName, s.Spec.Pool)
		}
		// No annotation of another node may cause a deletion here.
		if own := c.node == "node-1"; own == (s.Annotations[v1alpha1.AnnotationMarkedForDeletionSince] != "" || s.Annotations[v1alpha1.AnnotationObject] != "") {
			t.Errorf("%s: got the annotations %v", c.name, s.Annotations)
		}
	}
}
