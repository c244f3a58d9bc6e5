package btrfs

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs/btrfstest"
)

// TestSnapshotsAtOnce takes many snapshots at the same time. Some must fail. Each caller gets
// its own result, and no descriptor stays open.
func TestSnapshotsAtOnce(t *testing.T) {
	mount := btrfstest.Mount(t)
	source := filepath.Join(mount, "source")
	must(t, Create(source))
	must(t, os.WriteFile(filepath.Join(source, "file"), []byte("data"), 0o600))
	for _, dir := range []string{"plain", "taken"} {
		must(t, os.Mkdir(filepath.Join(mount, dir), 0o700))
	}
	refused := []struct {
		dst, src string
		want     error
	}{
		{"x", "missing", fs.ErrNotExist},
		{"missing/x", "source", fs.ErrNotExist},
		{"taken", "source", fs.ErrExist},
		{"x", "plain", ErrNotSubvolume},
		{"..", "source", unix.EINVAL},
	}
	before := descriptors(t)
	var all sync.WaitGroup
	for i := range 100 {
		dir := filepath.Join(mount, fmt.Sprint(i))
		must(t, os.Mkdir(dir, 0o700))
		all.Go(func() { takeOne(t, filepath.Join(dir, "copy"), source, i%2 == 0) })
		r := refused[i%len(refused)]
		all.Go(func() {
			if err := Snapshot(mount+"/"+r.dst, filepath.Join(mount, r.src), true); !errors.Is(err, r.want) {
				t.Errorf("%s to %s: got %v, want %v", r.src, r.dst, err, r.want)
			}
		})
	}
	all.Wait()
	if n := descriptors(t); n != before {
		t.Errorf("%d descriptors are open, %d were", n, before)
	}
}

func takeOne(t *testing.T, dst, src string, readOnly bool) {
	if err := Snapshot(dst, src, readOnly); err != nil {
		t.Error(err)
		return
	}
	if data, err := os.ReadFile(filepath.Join(dst, "file")); err != nil || string(data) != "data" {
		t.Errorf("%s contains %q (%v)", dst, data, err)
	}
	if info, err := Info(dst); err != nil || info.ReadOnly != readOnly {
		t.Errorf("%s is read-only: %v (%v)", dst, info.ReadOnly, err)
	}
}

func descriptors(t *testing.T) int {
	t.Helper()
	all, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	return len(all)
}
