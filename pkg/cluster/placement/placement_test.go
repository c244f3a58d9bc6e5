package placement

import (
	"errors"
	"slices"
	"strings"
	"testing"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/btrfs-csi/btrfs-csi/pkg/cluster/client"
	"github.com/btrfs-csi/btrfs-csi/pkg/cluster/clustertest"
	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
)

// TestCloneIsPlaced: the node of its source is selected for a claim, unless another live node is
// selected.
func TestCloneIsPlaced(t *testing.T) {
	const claims = "/api/v1/namespaces/db/persistentvolumeclaims"
	for _, c := range []struct {
		name      string
		selected  string // the selected node
		elsewhere bool   // the source is on another node
		unbound   bool   // the source claim is not bound
		placed    bool
		again     bool
	}{
		{name: "its source is here", placed: true},
		{name: "its source is on another node", elsewhere: true},
		{name: "its source is not bound yet", unbound: true, again: true},
		{name: "this node is selected", selected: "node-1"},
		{name: "a live node is selected", selected: "node-2"},
		{name: "a node that is gone is selected", selected: "node-3", placed: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := clustertest.New(t, clustertest.NewNode(clustertest.Entry(meta.Volume("pvc-1"))))
			controller := NewClaims(l.Cluster, l.Node)
			t.Cleanup(controller.queue.ShutDown)
			if c.elsewhere {
				l.Node.Entries = nil
			}
			l.API.Put(clustertest.Nodes, clustertest.ReadyNode("node-2"))
			l.API.Put(clustertest.PersistentVolumes, clustertest.Volume("pvc-1", l.Cluster.Driver))
			l.See()
			source := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "db", Name: "source"}}
			if !c.unbound {
				source.Spec.VolumeName = "pvc-1"
			}
			clone := claimFor(&corev1.TypedLocalObjectReference{Kind: client.KindClaim, Name: "source"})
			if c.selected != "" {
				clone.Annotations = map[string]string{client.AnnotationSelectedNode: c.selected}
			}
			l.API.Put(claims, clone)
			l.No(errors.Join(l.Cluster.Claims.GetStore().Add(source), l.Cluster.Claims.GetStore().Add(clone), l.Cluster.Classes.GetStore().Add(classFor(""))))

			if err := controller.reconcile(t.Context(), types.NamespacedName{Namespace: "db", Name: "data"}); (err != nil) != c.again {
				t.Errorf("want it tried again: %v, got %v", c.again, err)
			}
			if placed := slices.Contains(l.API.Written(), "PATCH "+claims+"/data"); placed != c.placed {
				t.Fatalf("want it placed: %v, got the opposite", c.placed)
			}
			got, err := l.Cluster.API.Claims("db").Get(t.Context(), "data", metav1.GetOptions{})
			l.No(err)
			want := c.selected
			if c.placed {
				want = "node-1"
			}
			if selected := got.Annotations[client.AnnotationSelectedNode]; selected != want {
				t.Errorf("want the node %q selected, got %q", want, selected)
			}
		})
	}
}

// TestSnapshotIsAssigned: an unassigned snapshot is assigned to the node of its volume. A snapshot with
// the wrong class has an Event.
func TestSnapshotIsAssigned(t *testing.T) {
	for _, c := range []struct {
		name     string
		driver   string // "" for this driver
		managed  string // the assigned node
		foreign  bool   // another node owns the pool of its volume
		volume   string // "" for pvc-1
		assigned bool
		warned   bool
	}{
		{name: "of no node", assigned: true},
		{name: "of another node", managed: "node-2"},
		{name: "of no node, the pool is another one's", foreign: true},
		{name: "of no node, of a volume elsewhere", volume: "pvc-2"},
		{name: "of another driver", driver: "example.com", warned: true},
		{name: "of another driver, of a volume that is its own", driver: "example.com", volume: "pvc-2"},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := clustertest.New(t, clustertest.NewNode(clustertest.Entry(meta.Volume("pvc-1"))))
			controller := NewSnapshots(l.Cluster, l.Node, l.Owner)
			t.Cleanup(controller.queue.ShutDown)
			if c.foreign {
				l.Owner.IDs = nil
			}
			volume := "pvc-1"
			if c.volume != "" {
				volume = c.volume
			}
			content := &snapshotv1.VolumeSnapshotContent{ObjectMeta: metav1.ObjectMeta{Name: "content"}}
			content.Spec.Driver, content.Spec.Source.VolumeHandle = l.Cluster.Driver, &volume
			if c.driver != "" {
				content.Spec.Driver = c.driver
			}
			if c.managed != "" {
				content.Labels = map[string]string{client.LabelManagedBy: c.managed}
			}
			l.API.Put(clustertest.Contents, content)
			l.See()
			controller.Resync()
			for controller.queue.Len() > 0 {
				name, _ := controller.queue.Get()
				l.No(controller.reconcile(t.Context(), name))
				controller.queue.Done(name)
			}
			got, err := l.Cluster.API.Contents().Get(t.Context(), "content", metav1.GetOptions{})
			l.No(err)
			want := c.managed
			if c.assigned {
				want = "node-1"
			}
			if managed := got.Labels[client.LabelManagedBy]; managed != want {
				t.Errorf("want it made by the node %q, got %q", want, managed)
			}
			if warned := strings.Contains(strings.Join(l.Events(), "\n"), "WrongSnapshotClass"); warned != c.warned {
				t.Errorf("want an Event: %v, got the opposite", c.warned)
			}
		})
	}
}
