package placement

import (
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/btrfs-csi/btrfs-csi/api/v1alpha1"
	"github.com/btrfs-csi/btrfs-csi/pkg/cluster/clustertest"
	"github.com/btrfs-csi/btrfs-csi/pkg/cluster/node"
)

// lab is a lab with the controller of claims that no node can take.
type lab struct {
	*clustertest.Lab
	unschedulable *Unschedulable
}

func newLab(l *clustertest.Lab) *lab { return &lab{l, NewUnschedulable(l.Cluster, l.Node, l.Owner)} }

// classFor returns a StorageClass that names a pool, or none for "".
func classFor(pool string) *storagev1.StorageClass {
	class := &storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: "btrfs"}, Provisioner: "btrfs-csi.github.io"}
	if pool != "" {
		class.Parameters = map[string]string{poolParameter: pool}
	}
	return class
}

// claimFor returns a claim of that class that has waited for a minute already.
func claimFor(from *corev1.TypedLocalObjectReference) *corev1.PersistentVolumeClaim {
	class := "btrfs"
	return &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Namespace: "db", Name: "data", UID: "uid", CreationTimestamp: metav1.NewTime(time.Now().Add(-time.Minute))},
		Spec:       corev1.PersistentVolumeClaimSpec{StorageClassName: &class, DataSource: from},
	}
}

// poolsOf returns Pools, each given as "node/pool".
func poolsOf(names ...string) (pools []v1alpha1.Pool) {
	for _, name := range names {
		node, pool, _ := strings.Cut(name, "/")
		pools = append(pools, v1alpha1.Pool{
			ObjectMeta: metav1.ObjectMeta{Name: "id-" + node + "-" + pool}, Spec: v1alpha1.PoolSpec{NodeName: node, Pool: pool},
		})
	}
	return pools
}

func TestWhyNoPool(t *testing.T) {
	clone := &corev1.TypedLocalObjectReference{Kind: "PersistentVolumeClaim", Name: "other"}
	for _, c := range []struct {
		name   string
		class  string // the pool that it names
		from   *corev1.TypedLocalObjectReference
		pools  []string
		reason string
		says   []string
	}{
		{name: "no pool anywhere", reason: "NoPool", says: []string{"/var/lib/btrfs-csi/pools/default", "loopPoolSize"}},
		{name: "no pool anywhere, one named", class: "fast", reason: "UnknownPool", says: []string{"fast", "[]"}},
		{name: "no pool anywhere, a clone", from: clone},
		{name: "one pool of any name", pools: []string{"a/fast"}},
		{name: "several, one of them default", pools: []string{"a/default", "a/fast"}},
		{name: "several, none of them default", pools: []string{"a/fast", "a/slow", "b/fast", "b/slow"}, reason: "NoDefaultPool", says: []string{`["fast" "slow"]`, `"btrfs"`, `"pool"`}},
		{name: "several, and another node has one", pools: []string{"a/fast", "a/slow", "b/slow"}},
		{name: "several, and another node has default", pools: []string{"a/fast", "a/slow", "b/slow", "b/default"}},
		{name: "several, none of them default, a clone", from: clone, pools: []string{"a/fast", "a/slow"}},
		{name: "several, one named", class: "slow", pools: []string{"a/fast", "a/slow"}},
		{name: "another named", class: "huge", pools: []string{"a/fast", "a/slow"}, reason: "UnknownPool", says: []string{`["fast" "slow"]`, "pools/huge"}},
		{name: "another named, for a clone", from: clone, class: "huge", pools: []string{"a/fast"}, reason: "UnknownPool"},
	} {
		reason, why := whyNoPool(claimFor(c.from), classFor(c.class), poolsOf(c.pools...))
		if reason != c.reason || (why == "") != (reason == "") {
			t.Errorf("%s: want %q, got %q: %s", c.name, c.reason, reason, why)
		}
		for _, part := range c.says {
			if !strings.Contains(why, part) {
				t.Errorf("%s: want %q said, got %q", c.name, part, why)
			}
		}
	}
}

func TestIsReporter(t *testing.T) {
	for _, c := range []struct {
		name           string
		pools          []string
		ready          []string // ready nodes; the others do not exist
		refuses        bool
		reports, alone bool
	}{
		{name: "no pool anywhere", reports: true},
		{name: "the only one", pools: []string{"node-1/a"}, reports: true, alone: true},
		{name: "the first", pools: []string{"node-2/a", "node-1/a", "node-1/b"}, ready: []string{"node-2"}, reports: true, alone: true},
		{name: "the second", pools: []string{"node-0/a", "node-1/a"}, ready: []string{"node-0"}},
		{name: "the second, and the first is lost", pools: []string{"node-0/a", "node-1/a"}, reports: true, alone: true},
		{name: "without a pool", pools: []string{"node-2/a"}, ready: []string{"node-2"}},
		{name: "without a pool, as all that live", pools: []string{"node-0/a", "node-2/a"}, reports: true},
		{name: "nobody knows of the first", pools: []string{"node-0/a", "node-1/a"}, refuses: true},
	} {
		l := newLab(clustertest.New(t, clustertest.NewNode()))
		for _, name := range c.ready {
			l.API.Put(clustertest.Nodes, clustertest.ReadyNode(name))
		}
		l.API.Refuse(clustertest.Nodes, c.refuses)
		if reports, alone := l.unschedulable.isReporter(t.Context(), poolsOf(c.pools...)); reports != c.reports || alone != c.alone {
			t.Errorf("%s: want %v, %v, got %v, %v", c.name, c.reports, c.alone, reports, alone)
		}
	}
}

// TestUnschedulable: two nodes check one claim.
func TestUnschedulable(t *testing.T) {
	for _, c := range []struct {
		name    string
		pools   []string // in the cluster
		pending bool     // the owners of the pools of node-1 are not decided yet
		young   bool     // the claim is new
		class   string   // the pool that its class names
		events  []string // recorded by both nodes
		written int      // Events under the shared name
	}{
		{name: "no pool anywhere", written: 1},
		{name: "no pool anywhere, and nobody knows it yet", pending: true},
		{name: "the claim is young", young: true},
		{name: "a pool for it", pools: []string{"node-1/default"}},
		{name: "none for it", pools: []string{"node-1/fast", "node-1/slow"}, events: []string{"NoDefaultPool"}},
		{name: "one is away", pools: []string{"/default"}, written: 1},
		{name: "the one named", pools: []string{"node-1/fast"}, class: "fast"},
		{name: "another named", pools: []string{"node-1/fast"}, class: "slow", events: []string{"UnknownPool"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			api, clients := clustertest.NewAPI(t)
			for _, pool := range poolsOf(c.pools...) {
				api.Put(clustertest.Pools, &pool)
			}
			claim := claimFor(nil)
			if c.young {
				claim.CreationTimestamp = metav1.Now()
			}
			var recorded []string
			for _, name := range []string{"node-1", "node-2"} {
				api.Put(clustertest.Nodes, clustertest.ReadyNode(name))
				l := newLab(clustertest.NewOf(t, name, api, clients, clustertest.NewNode()))
				l.Owner.Pending = c.pending
				l.No(l.Cluster.Claims.GetStore().Add(claim))
				l.No(l.Cluster.Classes.GetStore().Add(classFor(c.class)))
				l.unschedulable.Reconcile(t.Context())
				reads := api.Reads()
				l.unschedulable.Reconcile(t.Context()) // too early for another Event or list
				if api.Reads() > reads {
					t.Errorf("%s asks again at once", name)
				}
				recorded = append(recorded, l.Events()...)
			}
			if len(recorded) != len(c.events) || len(recorded) > 0 && !strings.Contains(recorded[0], c.events[0]) {
				t.Errorf("want the Events %q, got %q", c.events, recorded)
			}
			written := api.Under("/api/v1/namespaces/db/events")
			if len(written) != c.written {
				t.Fatalf("want %d Events that all write, got %v", c.written, written)
			}
			for _, event := range written {
				if about := clustertest.Child(event, "involvedObject"); about["name"] != "data" || about["uid"] != "uid" || event["reason"] != "NoPool" {
					t.Errorf("got the Event %v", event)
				}
			}
			if posts := len(api.Written()); posts != 2*c.written {
				t.Errorf("want one attempt of each node, got %d in all", posts)
			}
		})
	}
}

// TestUnschedulableCostsLittle: a node does not list all Pools for each of several claims that need an
// Event.
func TestUnschedulableCostsLittle(t *testing.T) {
	for _, c := range []struct {
		name   string
		pools  []string
		rested time.Duration // until the next list
	}{
		{"the reporter", []string{"node-1/fast", "node-2/fast"}, lookAgain},
		{"another node", []string{"node-0/fast", "node-1/fast"}, lookSeldom},
		{"no pool anywhere", nil, lookAgain},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := newLab(clustertest.New(t, clustertest.NewNode()))
			l.API.Put(clustertest.Nodes, clustertest.ReadyNode("node-0"))
			for _, pool := range poolsOf(c.pools...) {
				l.API.Put(clustertest.Pools, &pool)
			}
			l.No(l.Cluster.Classes.GetStore().Add(classFor("slow")))
			h := l.unschedulable
			looks := func() (lists int) {
				for i := range 12 {
					claim := claimFor(nil)
					claim.Name, claim.UID = fmt.Sprint("data-", i, h.listed), types.UID(fmt.Sprint("uid-", i, h.listed))
					l.No(l.Cluster.Claims.GetStore().Add(claim))
					before := l.API.Reads()
					listed := h.listed
					l.unschedulable.Reconcile(t.Context())
					if h.listed != listed {
						lists++
					} else if len(c.pools) > 0 && c.rested == lookSeldom && l.API.Reads() != before {
						t.Error("a node that is not the reporter asks for each claim")
					}
				}
				return lists
			}
			if lists := looks(); lists != 1 {
				t.Errorf("the Pools were listed %d times, want once", lists)
			}
			h.listed, h.next = h.listed.Add(-c.rested), h.next.Add(-c.rested)
			if lists := looks(); lists != 1 {
				t.Errorf("after %v the Pools were listed %d times, want once", c.rested, lists)
			}
		})
	}
}

// TestTakesUnconstrained: a node does not list Pools for claims that it can take itself.
func TestTakesUnconstrained(t *testing.T) {
	here := func(names ...string) (reports []node.Pool) {
		for _, name := range names {
			reports = append(reports, node.Pool{Name: name, ID: "pool-" + name})
		}
		return reports
	}
	for _, c := range []struct {
		name    string
		reports []node.Pool
		owned   []string // IDs
		asked   bool     // the Pools are listed
	}{
		{name: "no pool", asked: true},
		{name: "one", reports: here("fast"), owned: []string{"pool-fast"}},
		{name: "one, another node's", reports: here("fast"), asked: true},
		{name: "one that cannot be used", reports: []node.Pool{{Name: "default"}}, owned: []string{""}, asked: true},
		{name: "several", reports: here("fast", "slow"), owned: []string{"pool-fast", "pool-slow"}, asked: true},
		{name: "several, one of them default", reports: here("fast", "default"), owned: []string{"pool-fast", "pool-default"}},
	} {
		l := newLab(clustertest.New(t, clustertest.NewNode()))
		l.Node.Present = c.reports
		l.Owner.IDs = c.owned
		l.No(l.Cluster.Claims.GetStore().Add(claimFor(nil)))
		l.No(l.Cluster.Classes.GetStore().Add(classFor("")))
		if asked := len(l.unschedulable.waiting(t.Context())) == 1; asked != c.asked {
			t.Errorf("%s: want it looked at: %v, got the opposite", c.name, c.asked)
		}
	}
}
