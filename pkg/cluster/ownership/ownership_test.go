package ownership

import (
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/btrfs-csi/btrfs-csi/api/v1alpha1"
	"github.com/btrfs-csi/btrfs-csi/pkg/cluster/client"
	"github.com/btrfs-csi/btrfs-csi/pkg/cluster/clustertest"
	"github.com/btrfs-csi/btrfs-csi/pkg/cluster/node"
)

// lab is a lab with the controller of ownership.
type lab struct {
	*clustertest.Lab
	owner *Controller
}

func newLab(l *clustertest.Lab) *lab { return &lab{l, New(l.Cluster, l.Node)} }

// TestReleasedPoolSaysWhy: the message of a Pool distinguishes a refused pool from an unmounted one.
func TestReleasedPoolSaysWhy(t *testing.T) {
	for name, c := range map[string]struct {
		reports []node.Pool
		want    string
	}{
		"unmounted":               {nil, "node node-1 had it and no longer has it"},
		"refused":                 {[]node.Pool{{Name: "other", Message: "sick"}, {Name: "default", Message: "wanted simple"}}, "node node-1 had it and refuses it: wanted simple"},
		"another is in its place": {[]node.Pool{{Name: "default", ID: "pool-2", Message: "sick"}}, "node node-1 had it and no longer has it"},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLab(clustertest.New(t, clustertest.NewNode()))
			l.Node.Present = []node.Pool{{Name: "default", ID: "pool-1", State: "Ready"}}
			for range 3 { // it is released in the second round
				_, err := l.owner.Reconcile(t.Context())
				l.No(err)
				l.Node.Present = c.reports
			}
			pool, err := l.Cluster.API.Pools().Get(t.Context(), "pool-1", metav1.GetOptions{})
			l.No(err)
			if pool.Spec.NodeName != "" || pool.Status.State != stateAway || pool.Status.Message != c.want {
				t.Errorf("it is %+v and %+v, wanted it away: %s", pool.Spec, pool.Status, c.want)
			}
		})
	}
}

// TestMovedPoolsAreForgotten: a node forgets the pools that another node serves, and no others.
func TestMovedPoolsAreForgotten(t *testing.T) {
	l := newLab(clustertest.New(t, clustertest.NewNode()))
	for id, owner := range map[string]string{"moved": "node-2", "nowhere": "", "back": "node-1"} {
		l.API.Put(clustertest.Pools, &v1alpha1.Pool{ObjectMeta: metav1.ObjectMeta{Name: id}, Spec: v1alpha1.PoolSpec{NodeName: owner, Pool: id}})
	}
	l.Node.Gone = []string{"back", "moved", "nowhere", "unknown"}
	_, err := l.owner.Reconcile(t.Context())
	l.No(err)
	if want := []string{"back", "nowhere", "unknown"}; !slices.Equal(l.Node.Gone, want) {
		t.Errorf("remembered are %q, wanted %q", l.Node.Gone, want)
	}
}

// twoNodes have copies of one disk.
type twoNodes struct {
	*testing.T
	api         *clustertest.API
	clients     *client.Clients
	first, copy *lab
}

func newTwoNodes(t *testing.T) *twoNodes {
	t.Helper()
	n := &twoNodes{T: t}
	n.api, n.clients = clustertest.NewAPI(t)
	for _, name := range []string{"node-1", "node-2"} {
		n.api.Put(clustertest.Nodes, clustertest.ReadyNode(name))
	}
	n.first, n.copy = n.start("node-1"), n.start("node-2")
	return n
}

// start returns a new driver.
func (n *twoNodes) start(name string) *lab {
	l := newLab(clustertest.NewOf(n.T, name, n.api, n.clients, clustertest.NewNode()))
	l.Node.Present = []node.Pool{{Name: "default", ID: "pool-1", State: "Ready"}}
	return l
}

// look runs a round of some drivers.
func (n *twoNodes) look(labs ...*lab) {
	n.Helper()
	for _, l := range labs {
		_, err := l.owner.Reconcile(n.Context())
		l.No(err)
	}
}

// take is an attacker on node-2 who takes the Pool, as far as the admission policy allows.
func (n *twoNodes) take() {
	n.Helper()
	pool, err := n.clients.Pools().Get(n.Context(), "pool-1", metav1.GetOptions{})
	n.copy.No(err)
	pool.Spec.NodeName = "node-2"
	if _, err := n.clients.Pools().Update(n.Context(), pool, metav1.UpdateOptions{}); err == nil {
		n.Error("it may be taken from a node that is not named")
	}
	noteTakenFrom(pool, "node-1")
	_, err = n.clients.Pools().Update(n.Context(), pool, metav1.UpdateOptions{})
	n.copy.No(err)
}

// TestTakenPoolIsTakenBack: an attacker on another node can neither keep a pool out of service nor have
// it forgotten, also if the driver restarts.
func TestTakenPoolIsTakenBack(t *testing.T) {
	n := newTwoNodes(t)
	n.look(n.first, n.first)
	for _, l := range []*lab{n.first, n.start("node-1")} {
		n.take()
		l.Node.Gone = []string{"pool-1"} // as an excluded pool is
		n.look(l)
		if !l.owner.Owns("pool-1") || len(l.Node.Excluded) > 0 || len(l.Node.Gone) == 0 {
			t.Errorf("owned: %v, excluded: %v, remembered: %q", l.owner.Owns("pool-1"), l.Node.Excluded, l.Node.Gone)
		}
	}
}

// TestExcludedPoolIsRemembered: an excluded pool is not forgotten, because it is on this node.
func TestExcludedPoolIsRemembered(t *testing.T) {
	n := newTwoNodes(t)
	n.look(n.first)
	n.copy.Node.Gone = []string{"pool-1"}
	n.look(n.copy, n.copy)
	if len(n.copy.Node.Excluded) != 1 || len(n.copy.Node.Gone) != 1 {
		t.Errorf("excluded: %v, remembered: %q, wanted both", n.copy.Node.Excluded, n.copy.Node.Gone)
	}
}

// stumble makes a node not ready.
func (n *twoNodes) stumble(name string) {
	n.api.Put(clustertest.Nodes, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}})
}

// TestOneOfTwoCopies: of two live nodes with copies of a disk, the one that served it first serves it
// in the end, whatever happens meanwhile.
func TestOneOfTwoCopies(t *testing.T) {
	taken := func(n *twoNodes) {
		n.look(n.first, n.copy, n.first) // a node stays not ready for longer than a round takes
		n.stumble("node-1")
		n.look(n.copy, n.copy)
		if !n.copy.owner.Owns("pool-1") {
			n.Error("the pool is not taken over")
		}
		n.api.Put(clustertest.Nodes, clustertest.ReadyNode("node-1"))
	}
	for _, c := range []struct {
		name    string
		happens func(n *twoNodes)
	}{
		{"nothing", func(n *twoNodes) { n.look(n.first) }},
		{"the first is away for a while", taken},
		{"and is restarted", func(n *twoNodes) {
			taken(n)
			n.first = n.start("node-1")
		}},
		{"and the other is", func(n *twoNodes) {
			taken(n)
			n.copy = n.start("node-2")
			n.look(n.copy)
		}},
		{"and the other unmounts it in between", func(n *twoNodes) {
			taken(n)
			pools := n.copy.Node.Present
			n.copy.Node.Present = nil
			n.look(n.copy, n.copy)
			n.copy.Node.Present = pools
			n.look(n.copy)
		}},
		{"the Pool is deleted", func(n *twoNodes) {
			n.look(n.first, n.copy, n.first)
			n.api.Delete(clustertest.Pools, "pool-1")
			n.look(n.copy, n.copy)
		}},
		{"the Pool is deleted, and the other is restarted", func(n *twoNodes) {
			n.look(n.first, n.copy, n.first)
			n.api.Delete(clustertest.Pools, "pool-1")
			n.look(n.copy)
			n.copy = n.start("node-2")
			n.look(n.copy)
		}},
		{"the Pool is deleted while the other does not run", func(n *twoNodes) {
			n.look(n.first, n.first)
			n.api.Delete(clustertest.Pools, "pool-1")
			n.look(n.copy)
		}},
		{"somebody changes the Pool", func(n *twoNodes) {
			n.look(n.first, n.copy, n.first)
			n.api.Put(clustertest.Pools, &v1alpha1.Pool{ObjectMeta: metav1.ObjectMeta{Name: "pool-1"}, Spec: v1alpha1.PoolSpec{NodeName: "node-2", Pool: "default"}})
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := newTwoNodes(t)
			c.happens(n)
			for range 2 {
				n.look(n.first, n.copy)
			}
			n.api.Written()
			for range 3 {
				n.look(n.copy, n.first)
				if first, other := n.first.owner.Owns("pool-1"), n.copy.owner.Owns("pool-1"); !first || other {
					t.Errorf("the first serves it: %v, the other: %v", first, other)
				}
			}
			if written := n.api.Written(); len(written) > 0 {
				t.Errorf("it does not stay so: %q", written)
			}
		})
	}
}
