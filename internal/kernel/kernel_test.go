package kernel

import "testing"

func TestVersion(t *testing.T) {
	for release, want := range map[string][2]int{
		"6.1.0-57-cloud-amd64": {6, 1}, "6.12.90+deb13-cloud-arm64": {6, 12}, "7.2-cloud-amd64": {7, 2}, "5.15.0-1100-kvm": {5, 15}, "6.18.44": {6, 18},
	} {
		if major, minor := version(release); [2]int{major, minor} != want {
			t.Errorf("%s: %d.%d", release, major, minor)
		}
	}
}
