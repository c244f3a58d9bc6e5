package main

import (
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

// TestStateDirIsClosed: a state directory that the driver or a kubelet has just created is
// for root only. A mode that an administrator has chosen stays.
func TestStateDirIsClosed(t *testing.T) {
	for name, c := range map[string]struct {
		mode, want fs.FileMode // mode 0: absent
		file       bool
	}{
		"absent":                {want: 0o700},
		"of a kubelet":          {mode: 0o755, want: 0o700},
		"of a kubelet, in use":  {mode: 0o755, want: 0o755, file: true},
		"of an administrator":   {mode: 0o750, want: 0o750},
		"closed more than ours": {mode: 0o500, want: 0o500},
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "state")
			if c.mode != 0 {
				if err := os.Mkdir(dir, c.mode); err != nil {
					t.Fatal(err)
				}
			}
			if c.file {
				if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if err := makeStateDir(dir); err != nil {
				t.Fatal(err)
			}
			if is, err := os.Stat(dir); err != nil || is.Mode().Perm() != c.want {
				t.Errorf("got %v, %v, want mode %o", is.Mode(), err, c.want)
			}
		})
	}
}
