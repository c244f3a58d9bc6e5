package btrfs

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs/btrfstest"
)

// TestSnapshotsAtOnce takes many at the same time, some of which cannot be had: each
// answer is that of its own, more often than there are threads.
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
	// Threads of Go come as far as the kernel two at a time, on two processors.
	most, few := 0, 2*runtime.GOMAXPROCS(0)
	for round := 0; round < 3 || most <= few && round < 20; round++ { // on a busy machine a few may do
		var all sync.WaitGroup
		for i := range 100 {
			dir := filepath.Join(mount, fmt.Sprintf("%d-%d", round, i))
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
		most = max(most, threads(t)) // they wait for more
	}
	if most <= few {
		t.Errorf("%d threads took a hundred snapshots", most)
	}
	if n := descriptors(t); n > before+3 { // the pipe of the threads, and what waits for it
		t.Errorf("%d descriptors are open, %d were", n, before)
	}
	btrfstest.Eventually(t, "all threads end", func() bool { return threads(t) == 0 })
}

// threads is how many there are to take snapshots.
func threads(t *testing.T) (n int) {
	t.Helper()
	names, err := filepath.Glob("/proc/self/task/*/comm")
	must(t, err)
	for _, name := range names {
		if text, err := os.ReadFile(name); err == nil && strings.TrimSpace(string(text)) == "btrfs-snapshot" {
			n++
		}
	}
	return n
}

func takeOne(t *testing.T, dst, src string, readOnly bool) {
	if err := Snapshot(dst, src, readOnly); err != nil {
		t.Error(err)
		return
	}
	if data, err := os.ReadFile(filepath.Join(dst, "file")); err != nil || string(data) != "data" {
		t.Errorf("%s holds %q (%v)", dst, data, err)
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
