package prune

import (
	"slices"
	"strings"
	"testing"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/btrfs-csi/btrfs-csi/api/v1alpha1"
	"github.com/btrfs-csi/btrfs-csi/pkg/cluster/client"
	"github.com/btrfs-csi/btrfs-csi/pkg/cluster/clustertest"
	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
)

var identity = client.Identity{Driver: "btrfs-csi.github.io", TopologyPrefix: "topology.btrfs-csi.github.io/"}

// newCluster returns a cluster with a node "live", a removed node "gone" and a pool "away" that no node
// owns. Each pool contains a volume, and that of "gone" also a snapshot.
func newCluster(t *testing.T, bound bool) (*clustertest.API, *client.Clients) {
	t.Helper()
	api, clients := clustertest.NewAPI(t)
	api.Put(clustertest.Nodes, clustertest.ReadyNode("live"))
	for pool, owner := range map[string]string{"pool-live": "live", "pool-gone": "gone", "pool-away": ""} {
		api.Put(clustertest.Pools, &v1alpha1.Pool{ObjectMeta: metav1.ObjectMeta{Name: pool}, Spec: v1alpha1.PoolSpec{NodeName: owner}})
		name := "pvc-" + strings.TrimPrefix(pool, "pool-")
		entry := clustertest.Entry(meta.Volume(name))
		entry.PoolID = pool
		api.Put(clustertest.Subvolumes, clustertest.Subvolume(entry, nil))
		v := clustertest.Volume(name, identity.Driver)
		v.Spec.NodeAffinity = &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
			MatchExpressions: []corev1.NodeSelectorRequirement{{Key: identity.TopologyPrefix + pool}},
		}}}}
		v.Spec.ClaimRef, v.Status.Phase = &corev1.ObjectReference{Namespace: "db", Name: "data"}, corev1.VolumeReleased
		if bound {
			v.Status.Phase = corev1.VolumeBound
		}
		api.Put(clustertest.PersistentVolumes, v)
	}
	entry := clustertest.Entry(meta.Snapshot("snapshot-gone"))
	entry.PoolID = "pool-gone"
	api.Put(clustertest.Subvolumes, clustertest.Subvolume(entry, nil))
	api.Put(clustertest.Contents, clustertest.Content("snapshot-gone", identity.Driver))
	return api, clients
}

// find returns the kind and name of each object, with a star if it is kept.
func find(t *testing.T, clients *client.Clients, filter Filter) (names []string, found []Object) {
	t.Helper()
	found, err := Find(t.Context(), clients, identity, filter)
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range found {
		name := o.Kind + " " + o.Name
		if o.Kept != "" {
			name += " *"
		}
		names = append(names, name)
	}
	return names, found
}

func TestFind(t *testing.T) {
	gone := []string{"PersistentVolume pvc-gone", "VolumeSnapshotContent snapshot-gone", "Subvolume pvc-gone", "Subvolume snapshot-gone", "Pool pool-gone"}
	kept := []string{"PersistentVolume pvc-gone *", "VolumeSnapshotContent snapshot-gone", "Subvolume pvc-gone *", "Subvolume snapshot-gone *", "Pool pool-gone *"}
	for _, c := range []struct {
		name   string
		bound  bool
		filter Filter
		want   []string
	}{
		{name: "of all removed nodes", want: gone},
		{name: "of one", filter: Filter{Node: "gone"}, want: gone},
		{name: "of a node that is there", filter: Filter{Node: "live"}},
		{name: "in use", bound: true, want: kept},
		{name: "of a pool that is away", filter: Filter{Pool: "pool-away"}, want: []string{"PersistentVolume pvc-away", "Subvolume pvc-away", "Pool pool-away"}},
	} {
		_, clients := newCluster(t, c.bound)
		if names, _ := find(t, clients, c.filter); !slices.Equal(names, c.want) {
			t.Errorf("%s: want %q, got %q", c.name, c.want, names)
		}
	}
	_, clients := newCluster(t, false)
	for _, pool := range []string{"pool-live", "pool-unknown"} {
		if _, err := Find(t.Context(), clients, identity, Filter{Pool: pool}); err == nil {
			t.Errorf("%s: want an error", pool)
		}
	}
}

// TestFindKeepsSnapshots: a content is kept as long as its VolumeSnapshot exists.
func TestFindKeepsSnapshots(t *testing.T) {
	api, clients := newCluster(t, false)
	content := "snapshot-gone"
	api.Put(clustertest.Snapshots, &snapshotv1.VolumeSnapshot{
		ObjectMeta: metav1.ObjectMeta{Name: "backup"}, Status: &snapshotv1.VolumeSnapshotStatus{BoundVolumeSnapshotContentName: &content},
	})
	if names, _ := find(t, clients, Filter{}); !slices.Contains(names, "VolumeSnapshotContent snapshot-gone *") {
		t.Errorf("want it kept, got %q", names)
	}
}

// TestRemove: all objects of a removed node are deleted, unless another node has its pool now.
func TestRemove(t *testing.T) {
	for _, moved := range []bool{false, true} {
		api, clients := newCluster(t, false)
		_, found := find(t, clients, Filter{})
		if moved {
			api.Put(clustertest.Pools, &v1alpha1.Pool{ObjectMeta: metav1.ObjectMeta{Name: "pool-gone"}, Spec: v1alpha1.PoolSpec{NodeName: "live"}})
		}
		for _, o := range found {
			if err := o.Remove(t.Context()); (err != nil) != moved {
				t.Errorf("moved: %v: %s %s: %v", moved, o.Kind, o.Name, err)
			}
		}
		if written := api.Written(); (len(written) == 0) != moved {
			t.Errorf("moved: %v: got the writes %q", moved, written)
		}
	}
	_, clients := newCluster(t, true)
	_, found := find(t, clients, Filter{})
	if err := found[0].Remove(t.Context()); err == nil {
		t.Error("what is kept was removed")
	}
}
