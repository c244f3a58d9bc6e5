package mirror

import (
	"strings"
	"testing"
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
