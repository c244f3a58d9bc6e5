package client

import (
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
)

func TestSubvolumeName(t *testing.T) {
	hash := strings.Repeat("0123456789abcdef", 4)
	names := map[string]meta.Ref{}
	for _, c := range []struct {
		ref   meta.Ref
		plain bool
	}{
		{meta.Volume("pvc-83ff0d38-ef35-4132-bea1-7bc6e85125c8"), true},
		{meta.Snapshot("snapshot-83ff0d38-ef35-4132-bea1-7bc6e85125c8"), true},
		{meta.Volume("sha256-" + hash), true},
		{meta.Snapshot("pvc-1"), false},
		{meta.Volume("pvc-1"), true},
		{meta.Volume("snapshot-1"), false},
		{meta.Snapshot("snapshot-1"), true},
		{meta.Volume("Upper_Case"), false},
		{meta.Snapshot("Upper_Case"), false},
		{meta.Volume("subvolume-" + hash), false},
		{meta.Volume("ends-with-"), false},
		{meta.Volume(strings.Repeat("a", 128)), true},
	} {
		name := SubvolumeName(c.ref)
		if (name == c.ref.ID) != c.plain {
			t.Errorf("%s: got the name %q, as it is: want %v", c.ref, name, c.plain)
		}
		if wrong := validation.IsDNS1123Subdomain(name); len(wrong) > 0 {
			t.Errorf("%s: %q: %v", c.ref, name, wrong)
		}
		if other, taken := names[name]; taken {
			t.Errorf("%s and %s have one name %q", c.ref, other, name)
		}
		names[name] = c.ref
	}
}
