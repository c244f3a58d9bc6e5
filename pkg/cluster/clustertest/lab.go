package clustertest

import (
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"

	"github.com/btrfs-csi/btrfs-csi/pkg/cluster/client"
)

// Lab is a node in a cluster. The test decides when its caches are updated.
type Lab struct {
	*testing.T
	API     *API
	Cluster *client.Cluster
	Node    *Node
	Owner   *Owner

	events *record.FakeRecorder
}

// New returns a node "node-1" that owns the pool "pool-1", in a cluster of its own.
func New(t *testing.T, node *Node) *Lab {
	t.Helper()
	api, clients := NewAPI(t)
	l := NewOf(t, "node-1", api, clients, node)
	l.Owner.IDs = []string{"pool-1"}
	return l
}

// NewOf returns a node in a cluster that it may share with others.
func NewOf(t *testing.T, name string, api *API, clients *client.Clients, node *Node) *Lab {
	t.Helper()
	cluster := client.New(clients, client.Identity{NodeName: name, Driver: "btrfs-csi.github.io", TopologyPrefix: "topology.btrfs-csi.github.io/", TopologyValue: "here"})
	t.Cleanup(cluster.Close)
	events := record.NewFakeRecorder(100)
	cluster.Events = events
	cluster.SnapshotsSynced.Store(true)
	cluster.GroupsSynced.Store(true)
	return &Lab{T: t, API: api, Cluster: cluster, Node: node, Owner: &Owner{}, events: events}
}

// See updates the caches from the API server.
func (l *Lab) See() {
	l.Helper()
	subvolumes, err := l.Cluster.API.Subvolumes().List(l.Context(), metav1.ListOptions{FieldSelector: "spec.nodeName=" + l.Cluster.NodeName})
	l.No(err)
	fill(l, l.Cluster.Subvolumes, subvolumes.Items)
	volumes, err := l.Cluster.API.PersistentVolumes().List(l.Context(), metav1.ListOptions{})
	l.No(err)
	fill(l, l.Cluster.PersistentVolumes, volumes.Items)
	contents, err := l.Cluster.API.Contents().List(l.Context(), metav1.ListOptions{})
	l.No(err)
	fill(l, l.Cluster.Contents, contents.Items)
	groups, err := l.Cluster.API.GroupContents().List(l.Context(), metav1.ListOptions{})
	l.No(err)
	fill(l, l.Cluster.GroupContents, groups.Items)
}

func fill[O any](l *Lab, informer cache.SharedIndexInformer, items []O) {
	l.Helper()
	objects := make([]any, 0, len(items))
	for i := range items {
		o, err := client.Slim(&items[i])
		l.No(err)
		objects = append(objects, o)
	}
	l.No(informer.GetStore().Replace(objects, ""))
}

// No fails the test if there is an error.
func (l *Lab) No(err error) {
	l.Helper()
	if err != nil {
		l.Fatal(err)
	}
}

// Events returns the Events since the last call.
func (l *Lab) Events() []string {
	var events []string
	for len(l.events.Events) > 0 {
		events = append(events, <-l.events.Events)
	}
	return events
}
