package cluster

import (
	"context"
	"slices"
	"sync"
	"testing"
	"time"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/btrfs-csi/btrfs-csi/api/v1alpha1"
	"github.com/btrfs-csi/btrfs-csi/pkg/cluster/client"
	"github.com/btrfs-csi/btrfs-csi/pkg/cluster/clustertest"
	"github.com/btrfs-csi/btrfs-csi/pkg/cluster/node"
	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
)

// running is a manager that runs until the end of its test.
type running struct {
	*testing.T
	*Manager
	api     *clustertest.API
	clients *client.Clients
	node    *clustertest.Node
}

func run(t *testing.T, api *clustertest.API, clients *client.Clients, name string, n *clustertest.Node) *running {
	t.Helper()
	id := client.Identity{NodeName: name, Driver: "btrfs-csi.github.io", TopologyPrefix: "topology.btrfs-csi.github.io/", TopologyValue: "here"}
	m := New(clients, id, n, Options{})
	ctx, cancel := context.WithCancel(context.Background())
	var all sync.WaitGroup
	all.Go(func() { m.Run(ctx) })
	t.Cleanup(func() { cancel(); all.Wait() })
	return &running{t, m, api, clients, n}
}

// await waits until a condition is true.
func (r *running) await(what string, so func() bool) {
	r.Helper()
	for end := time.Now().Add(2 * time.Minute); !so(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			r.Fatalf("it does not %s", what)
		}
	}
}

// subvolume returns a Subvolume, an empty one if it does not exist.
func (r *running) subvolume(name string) *v1alpha1.Subvolume {
	r.Helper()
	s, err := r.clients.Subvolumes().Get(r.Context(), name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return &v1alpha1.Subvolume{}
	}
	if err != nil {
		r.Fatal(err)
	}
	return s
}

// TestRun: two nodes in a cluster, from their start.
func TestRun(t *testing.T) {
	const driver = "btrfs-csi.github.io"
	api, clients := clustertest.NewAPI(t)
	for _, name := range []string{"node-1", "node-2"} {
		api.Put(clustertest.Nodes, clustertest.ReadyNode(name))
	}
	api.Put(clustertest.Classes, &storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: "btrfs"}, Provisioner: driver})
	bound := clustertest.Volume("pvc-1", driver)
	bound.Status.Phase = corev1.VolumeBound
	api.Put(clustertest.PersistentVolumes, bound)

	volume := clustertest.Entry(meta.Volume("pvc-1"))
	volume.UUID = "u-1"
	n := clustertest.NewNode(volume)
	n.Present = []node.Pool{{Name: "default", ID: "pool-1", State: "Ready"}}
	first, second := run(t, api, clients, "node-1", n), run(t, api, clients, "node-2", clustertest.NewNode())

	first.await("publish its volume", func() bool { return first.subvolume("pvc-1").Status.State == "Ready" })
	first.await("publish its pool", func() bool {
		pool, err := clients.Pools().Get(t.Context(), "pool-1", metav1.GetOptions{})
		return err == nil && pool.Spec.NodeName == "node-1" && pool.Status.State == "Ready"
	})
	first.await("write the lineage", func() bool {
		v, err := clients.PersistentVolumes().Get(t.Context(), "pvc-1", metav1.GetOptions{})
		return err == nil && v.Annotations[v1alpha1.AnnotationUUID] == "u-1"
	})
	first.await("label its node", func() bool {
		o, err := clients.Nodes().Get(t.Context(), "node-1", metav1.GetOptions{})
		return err == nil && o.Labels["topology.btrfs-csi.github.io/pool-1"] == "here"
	})

	api.Delete(clustertest.Subvolumes, "pvc-1")
	first.await("publish again what somebody deleted", func() bool { return first.subvolume("pvc-1").Status.State == "Ready" })

	second.await("locate a volume of another node", func() bool {
		owner, poolID, err := second.Owner(t.Context(), volume.Ref())
		return err == nil && owner == "node-1" && poolID == "pool-1"
	})
	const larger = 2 << 30
	if size, err := second.Expand(t.Context(), "pvc-1", larger); err != nil || size != larger {
		t.Errorf("want it expanded from another node, got %d, %v", size, err)
	}
	if _, err := second.Expand(t.Context(), "pvc-9", larger); status.Code(err) != codes.NotFound {
		t.Errorf("want what nobody has not to be found, got %v", err)
	}

	testPlacement(first)

	if err := n.Remove(t.Context(), volume.Ref()); err != nil {
		t.Fatal(err)
	}
	first.Changed(volume.Ref())
	first.await("remove the object of what is gone", func() bool { return first.subvolume("pvc-1").Name == "" })
}

// testPlacement requests a clone and a snapshot of "pvc-1".
func testPlacement(r *running) {
	class, source := "btrfs", "pvc-1"
	r.api.Put(clustertest.Claims, &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Namespace: "db", Name: "source"}, Spec: corev1.PersistentVolumeClaimSpec{VolumeName: "pvc-1"},
	})
	r.api.Put(clustertest.Claims, &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Namespace: "db", Name: "clone"},
		Spec:       corev1.PersistentVolumeClaimSpec{StorageClassName: &class, DataSource: &corev1.TypedLocalObjectReference{Kind: client.KindClaim, Name: "source"}},
	})
	r.await("select the node of a clone's source", func() bool {
		claim, err := r.clients.Claims("db").Get(r.Context(), "clone", metav1.GetOptions{})
		return err == nil && claim.Annotations[client.AnnotationSelectedNode] == "node-1"
	})
	content := &snapshotv1.VolumeSnapshotContent{ObjectMeta: metav1.ObjectMeta{Name: "content"}}
	content.Spec.Driver, content.Spec.Source.VolumeHandle = "btrfs-csi.github.io", &source
	r.api.Put(clustertest.Contents, content)
	r.await("assign a snapshot to the node of its volume", func() bool {
		content, err := r.clients.Contents().Get(r.Context(), "content", metav1.GetOptions{})
		return err == nil && content.Labels[client.LabelManagedBy] == "node-1"
	})
}

// TestRunRefusesExpansion: a request from another node gets the error code of the owner.
func TestRunRefusesExpansion(t *testing.T) {
	api, clients := clustertest.NewAPI(t)
	api.Put(clustertest.Nodes, clustertest.ReadyNode("node-1"))
	volume := clustertest.Entry(meta.Volume("pvc-1"))
	n := clustertest.NewNode(volume)
	n.Present = []node.Pool{{Name: "default", ID: "pool-1", State: "Ready"}}
	n.Refuses = status.Error(codes.OutOfRange, "the pool is smaller")
	r := run(t, api, clients, "node-1", n)
	r.await("publish its volume", func() bool { return r.subvolume("pvc-1").Status.State == "Ready" })
	var err error
	r.await("answer", func() bool { // before the pool is owned there is no answer in time
		_, err = r.Expand(t.Context(), "pvc-1", 4<<30)
		return status.Code(err) != codes.Aborted
	})
	if status.Code(err) != codes.OutOfRange || status.Convert(err).Message() != "the pool is smaller" {
		t.Errorf("want the owner's answer, got %v", err)
	}
	if written := api.Written(); !slices.Contains(written, "PATCH "+clustertest.Subvolumes+"/pvc-1/status") {
		t.Errorf("got the writes %q", written)
	}
}
