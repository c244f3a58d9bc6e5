package mirror

import (
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/btrfs-csi/btrfs-csi/api/v1alpha1"
	"github.com/btrfs-csi/btrfs-csi/pkg/cluster/clustertest"
	"github.com/btrfs-csi/btrfs-csi/pkg/cluster/node"
	"github.com/btrfs-csi/btrfs-csi/pkg/cluster/ownership"
)

// poolsLab is a lab with the publisher of pools.
type poolsLab struct {
	*clustertest.Lab
	pools *Pools
}

func newPoolsLab(t *testing.T) *poolsLab {
	t.Helper()
	l := clustertest.New(t, clustertest.NewNode())
	l.API.Put(clustertest.Pools, &v1alpha1.Pool{ObjectMeta: metav1.ObjectMeta{Name: "pool-1"}, Spec: v1alpha1.PoolSpec{NodeName: "node-1", Pool: "default"}})
	return &poolsLab{l, NewPools(l.Cluster, l.Node)}
}

// publish publishes the state of a pool that this node owns.
func (l *poolsLab) publish(pool node.Pool) {
	l.Helper()
	have, err := l.Cluster.API.Pools().Get(l.Context(), pool.ID, metav1.GetOptions{})
	l.No(err)
	l.No(l.pools.Publish(l.Context(), []ownership.Pool{{Pool: pool, Object: have}}))
}

// TestRescansHaveEvents: each rescan of the quota has one Event, even if the quota is consistent at
// the next round, or the pool was opened again meanwhile.
func TestRescansHaveEvents(t *testing.T) {
	l := newPoolsLab(t)
	for _, c := range []struct {
		name    string
		rescans uint64
		event   bool
	}{
		{"at first", 0, false}, {"inconsistent", 1, true}, {"no more", 1, false}, {"again", 3, true}, {"in use anew", 0, false}, {"and inconsistent", 1, true},
	} {
		l.publish(node.Pool{Name: "default", ID: "pool-1", State: "Ready", Quota: "full", Rescans: c.rescans})
		events := strings.Join(l.Events(), "\n")
		if strings.Contains(events, "QuotaInconsistent") != c.event {
			t.Errorf("%s: got the Events %q, want an Event: %v", c.name, events, c.event)
		}
	}
}

// TestStateHasEvents: each change of a pool's state has one Event.
func TestStateHasEvents(t *testing.T) {
	l := newPoolsLab(t)
	for _, c := range []struct{ state, want string }{
		{"Ready", ""}, {"Ready", ""}, {"Unusable", "Warning Unusable"}, {"Unusable", ""}, {"ReadOnly", "Warning ReadOnly"}, {"Ready", "Normal Ready"}, {"Ready", ""},
		{"QuotaInconsistent", ""}, {"BackingFull", "Warning BackingFull"}, // each rescan has an Event of its own
	} {
		l.publish(node.Pool{Name: "default", ID: "pool-1", State: c.state, Message: "its disk does not answer"})
		events := strings.Join(l.Events(), "\n")
		if (c.want == "") != (events == "") || !strings.Contains(events, c.want) {
			t.Errorf("%s: got the Events %q, want %q", c.state, events, c.want)
		}
	}
}
