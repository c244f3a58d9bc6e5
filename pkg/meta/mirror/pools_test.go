package mirror

import (
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/btrfs-csi/btrfs-csi/api/v1alpha1"
)

// TestRescansAreTold: once for each time that the quota was inconsistent, also when
// that is over at the next look, and when the pool was in use anew meanwhile.
func TestRescansAreTold(t *testing.T) {
	l := newLab(t, newFakeNode(), Options{})
	for _, c := range []struct {
		name    string
		rescans uint64
		told    bool
	}{
		{"at first", 0, false}, {"inconsistent", 1, true}, {"no more", 1, false}, {"again", 3, true}, {"in use anew", 0, false}, {"and inconsistent", 1, true},
	} {
		l.node.pools = []PoolReport{{Name: "default", ID: "pool-1", State: "Ready", Quota: "full", Rescans: c.rescans}}
		_, err := l.syncPools(t.Context())
		l.no(err)
		told := strings.Join(l.told(), "\n")
		if strings.Contains(told, "QuotaInconsistent") != c.told {
			t.Errorf("%s: told %q, want an Event: %v", c.name, told, c.told)
		}
	}
}

// TestStateIsTold: an Event tells when something becomes wrong with a pool, and when that
// is over, once each.
func TestStateIsTold(t *testing.T) {
	l := newLab(t, newFakeNode(), Options{})
	for _, c := range []struct{ state, want string }{
		{"Ready", ""}, {"Ready", ""}, {"Unusable", "Warning Unusable"}, {"Unusable", ""}, {"ReadOnly", "Warning ReadOnly"}, {"Ready", "Normal Ready"}, {"Ready", ""},
		{"QuotaInconsistent", ""}, {"BackingFull", "Warning BackingFull"}, // each rescan has an Event of its own
	} {
		l.node.pools = []PoolReport{{Name: "default", ID: "pool-1", State: c.state, Message: "its disk does not answer"}}
		_, err := l.syncPools(t.Context())
		l.no(err)
		told := strings.Join(l.told(), "\n")
		if (c.want == "") != (told == "") || !strings.Contains(told, c.want) {
			t.Errorf("%s: told %q, want %q", c.state, told, c.want)
		}
	}
}

// TestReleasedPoolSaysWhy: a pool that is refused is not one that was unmounted.
func TestReleasedPoolSaysWhy(t *testing.T) {
	for name, c := range map[string]struct {
		reports []PoolReport
		want    string
	}{
		"unmounted":               {nil, "node node-1 had it and has it no more"},
		"refused":                 {[]PoolReport{{Name: "other", Message: "sick"}, {Name: "default", Message: "wanted simple"}}, "node node-1 had it and refuses it: wanted simple"},
		"another is in its place": {[]PoolReport{{Name: "default", ID: "pool-2", Message: "sick"}}, "node node-1 had it and has it no more"},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t, newFakeNode(), Options{})
			l.node.pools = []PoolReport{{Name: "default", ID: "pool-1", State: "Ready"}}
			for range 3 { // it is given up at the second look
				_, err := l.syncPools(t.Context())
				l.no(err)
				l.node.pools = c.reports
			}
			pool, err := l.cluster.API.Pools().Get(t.Context(), "pool-1", metav1.GetOptions{})
			l.no(err)
			if pool.Spec.NodeName != "" || pool.Status.State != statePoolAway || pool.Status.Message != c.want {
				t.Errorf("it is %+v and %+v, wanted it away: %s", pool.Spec, pool.Status, c.want)
			}
		})
	}
}

// TestMovedPoolsAreForgotten: those that another node serves, and no others.
func TestMovedPoolsAreForgotten(t *testing.T) {
	l := newLab(t, newFakeNode(), Options{})
	for id, owner := range map[string]string{"moved": "node-2", "nowhere": "", "back": "node-1"} {
		l.api.put(poolObjects, &v1alpha1.Pool{ObjectMeta: metav1.ObjectMeta{Name: id}, Spec: v1alpha1.PoolSpec{NodeName: owner, Pool: id}})
	}
	l.node.away = []string{"back", "moved", "nowhere", "unknown"}
	_, err := l.syncPools(t.Context())
	l.no(err)
	if want := []string{"back", "nowhere", "unknown"}; !slices.Equal(l.node.away, want) {
		t.Errorf("remembered are %q, wanted %q", l.node.away, want)
	}
}

// twoNodes have copies of one disk.
type twoNodes struct {
	*testing.T
	api         *fakeAPI
	clients     *Clients
	first, copy *lab
}

func newTwoNodes(t *testing.T) *twoNodes {
	t.Helper()
	n := &twoNodes{T: t}
	n.api, n.clients = newFakeAPI(t)
	for _, name := range []string{"node-1", "node-2"} {
		n.api.put(nodeObjects, readyNode(name))
	}
	n.first, n.copy = n.start("node-1"), n.start("node-2")
	return n
}

// start returns a driver that has just been started.
func (n *twoNodes) start(name string) *lab {
	node := newFakeNode()
	node.pools = []PoolReport{{Name: "default", ID: "pool-1", State: "Ready"}}
	return newLabOf(n.T, name, n.api, n.clients, node, Options{})
}

// look has each of some drivers look at its pools.
func (n *twoNodes) look(labs ...*lab) {
	n.Helper()
	for _, l := range labs {
		_, err := l.syncPools(n.Context())
		l.no(err)
	}
}

// take has somebody who is on node-2 claim the Pool, as far as the policy lets him.
func (n *twoNodes) take() {
	n.Helper()
	pool, err := n.clients.Pools().Get(n.Context(), "pool-1", metav1.GetOptions{})
	n.copy.no(err)
	pool.Spec.NodeName = "node-2"
	if _, err := n.clients.Pools().Update(n.Context(), pool, metav1.UpdateOptions{}); err == nil {
		n.Error("it may be taken from a node that is not named")
	}
	noteTakenFrom(pool, "node-1")
	_, err = n.clients.Pools().Update(n.Context(), pool, metav1.UpdateOptions{})
	n.copy.no(err)
}

// TestTakenPoolIsTakenBack: whoever is on another node cannot take a pool out of
// service, nor have it forgotten, when the driver restarts either.
func TestTakenPoolIsTakenBack(t *testing.T) {
	n := newTwoNodes(t)
	n.look(n.first, n.first)
	for _, l := range []*lab{n.first, n.start("node-1")} {
		n.take()
		l.node.away = []string{"pool-1"} // as one that is denied is
		n.look(l)
		if !l.owner.Owns("pool-1") || len(l.node.denied) > 0 || len(l.node.away) == 0 {
			t.Errorf("held: %v, denied: %v, remembered: %q", l.owner.Owns("pool-1"), l.node.denied, l.node.away)
		}
	}
}

// TestDeniedPoolIsRemembered: it is here, though another node serves it.
func TestDeniedPoolIsRemembered(t *testing.T) {
	n := newTwoNodes(t)
	n.look(n.first)
	n.copy.node.away = []string{"pool-1"}
	n.look(n.copy, n.copy)
	if len(n.copy.node.denied) != 1 || len(n.copy.node.away) != 1 {
		t.Errorf("denied: %v, remembered: %q, wanted both", n.copy.node.denied, n.copy.node.away)
	}
}

// stumble has a node be not ready.
func (n *twoNodes) stumble(name string) {
	n.api.put(nodeObjects, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}})
}

// TestOneOfTwoCopies: whatever happens, one of two live nodes that have copies of a
// disk serves it in the end, the one that did first, and it stays so.
func TestOneOfTwoCopies(t *testing.T) {
	taken := func(n *twoNodes) {
		n.look(n.first, n.copy, n.first) // a node is not ready for longer than it takes to look again
		n.stumble("node-1")
		n.look(n.copy, n.copy)
		if !n.copy.owner.Owns("pool-1") {
			n.Error("the pool is not taken over")
		}
		n.api.put(nodeObjects, readyNode("node-1"))
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
			pools := n.copy.node.pools
			n.copy.node.pools = nil
			n.look(n.copy, n.copy)
			n.copy.node.pools = pools
			n.look(n.copy)
		}},
		{"the Pool is deleted", func(n *twoNodes) {
			n.look(n.first, n.copy, n.first)
			delete(n.api.objects, poolObjects+"/pool-1")
			n.look(n.copy, n.copy)
		}},
		{"the Pool is deleted, and the other is restarted", func(n *twoNodes) {
			n.look(n.first, n.copy, n.first)
			delete(n.api.objects, poolObjects+"/pool-1")
			n.look(n.copy)
			n.copy = n.start("node-2")
			n.look(n.copy)
		}},
		{"the Pool is deleted while the other does not run", func(n *twoNodes) {
			n.look(n.first, n.first)
			delete(n.api.objects, poolObjects+"/pool-1")
			n.look(n.copy)
		}},
		{"somebody changes the Pool", func(n *twoNodes) {
			n.look(n.first, n.copy, n.first)
			n.api.put(poolObjects, &v1alpha1.Pool{ObjectMeta: metav1.ObjectMeta{Name: "pool-1"}, Spec: v1alpha1.PoolSpec{NodeName: "node-2", Pool: "default"}})
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := newTwoNodes(t)
			c.happens(n)
			for range 2 {
				n.look(n.first, n.copy)
			}
			n.api.written()
			for range 3 {
				n.look(n.copy, n.first)
				if first, other := n.first.owner.Owns("pool-1"), n.copy.owner.Owns("pool-1"); !first || other {
					t.Errorf("the first serves it: %v, the other: %v", first, other)
				}
			}
			if written := n.api.written(); len(written) > 0 {
				t.Errorf("it does not stay so: %q", written)
			}
		})
	}
}
