package mirror

import (
	"slices"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/btrfs-csi/btrfs-csi/pkg/meta/mirror/v1alpha1"
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
