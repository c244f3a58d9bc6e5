package pool_test

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
	"github.com/btrfs-csi/btrfs-csi/pkg/pool"
)

// volumePaths are paths of subvolumes with the ID that VolumeAt returns, "" for none.
var volumePaths = map[string]string{
	"/pools/default/active/pvc-1/fs":                      "pvc-1",
	"/@state/pools/default/view/pvc-1/fs":                 "pvc-1",
	"/active/pvc-1/fs":                                    "pvc-1",
	"/removing/active-pvc-1/fs":                           "pvc-1",
	"/removing/view-pvc-1/fs":                             "pvc-1",
	"/active/pvc-1/fs/pools/default/active/pvc-2/fs":      "pvc-2",
	"/active/pvc-1/fs/a\nb/active/pvc-2/fs":               "pvc-2",
	"/active/active/active/fs":                            "active",
	"/active/pvc-1/fs/active/pvc-2/fs/removing/view-x/fs": "x",
	"/active/pvc-1/fs/sub/dir":                            "",
	"/active/pvc-1/fs/":                                   "",
	"/active/pvc-1/fs/fs":                                 "",
	"/committed/s-1/fs":                                   "",
	"/removing/committed-s-1/fs":                          "",
	"/removing/s-1/fs":                                    "",
	"/removing/active-/fs":                                "",
	"/removing/removing-x/fs":                             "",
	"/active/pvc-1":                                       "",
	"/active/pvc-1/fsx":                                   "",
	"/srv/active-pvc-1/fs":                                "",
	"/active/../fs":                                       "",
	"/active/-x/fs":                                       "",
	"/active//fs":                                         "",
	"/active/x\x00/fs":                                    "",
	"/active/x\n/fs":                                      "",
	"active/x/fs":                                         "",
	"/x/fs":                                               "",
	"/fs":                                                 "",
	"/":                                                   "",
	"":                                                    "",
}

func TestVolumeAt(t *testing.T) {
	for path, want := range volumePaths {
		if id, ok := pool.VolumeAt(path); ok != (want != "") || ok && id != want {
			t.Errorf("%q: want %q, got %q, %v", path, want, id, ok)
		}
	}
}

// FuzzVolumeAt proves that VolumeAt accepts only the path of a volume, whatever names surround
// it.
func FuzzVolumeAt(f *testing.F) {
	for path := range volumePaths {
		f.Add(path)
	}
	f.Fuzz(func(t *testing.T, path string) {
		id, ok := pool.VolumeAt(path)
		if !ok {
			return
		}
		if !meta.ValidID(id) || !filepath.IsLocal(id) || filepath.Base(id) != id {
			t.Errorf("%q: %q is no volume", path, id)
		}
		fits := false
		for _, slot := range []string{"/active/", "/view/", "/removing/active-", "/removing/view-"} {
			fits = fits || strings.HasSuffix(path, slot+id+"/fs")
		}
		if !fits {
			t.Errorf("%q: %q is not there", path, id)
		}
	})
}
