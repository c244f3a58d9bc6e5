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

// TestSnapshotsAtOnce takes many snapshots at the same time. Some must fail. Each caller
// gets its own result, and threads are used again.
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
	// Go threads would reach the kernel GOMAXPROCS at a time.
	most, few := 0, 2*runtime.GOMAXPROCS(0)
	for round := 0; round < 3 || most <= few && round < 20; round++ { // a busy machine may start fewer threads
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
		most = max(most, threads(t)) // idle threads wait for more snapshots
	}
	if most <= few {
		t.Errorf("%d threads took a hundred snapshots", most)
	}
	if n := descriptors(t); n > before+3 { // the pipe of the threads and the runtime's poller
		t.Errorf("%d descriptors are open, %d were", n, before)
	}
	btrfstest.Eventually(t, "all threads end", func() bool { return threads(t) == 0 })
}

// threads returns the number of snapshot threads.
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
