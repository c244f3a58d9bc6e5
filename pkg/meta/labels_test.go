package meta

import "testing"

func TestRequestedBy(t *testing.T) {
	labels := map[string]string{"pvc/name": "data", "pvc/namespace": "shop", "volumesnapshot/name": "daily"}
	for want, r := range map[string]Record{
		"shop/data": {Kind: Active, Labels: labels},
		"daily":     {Kind: Committed, Labels: labels},
		"":          {Kind: Active},
	} {
		if got := r.RequestedBy(); got != want {
			t.Errorf("%v: got %q, want %q", r.Kind, got, want)
		}
	}
}
