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

// TestSnapshotTogether takes groups until the snapshots of one share a transaction. What fails is
// named, and no descriptor stays open.
func TestSnapshotTogether(t *testing.T) {
	btrfstest.SnapshotsShare.Need(t)
	btrfstest.SnapshotsShare.Need(t)
	mount := btrfstest.Mount(t)
	var pairs []Pair
	for i := range 8 {
		source, dir := filepath.Join(mount, fmt.Sprint("source", i)), filepath.Join(mount, fmt.Sprint("dir", i))
		must(t, Create(source))
		must(t, os.WriteFile(filepath.Join(source, "file"), []byte("data"), 0o600))
		must(t, os.Mkdir(dir, 0o700))
		pairs = append(pairs, Pair{Dst: filepath.Join(dir, "copy"), Src: source})
	}
	root, err := os.Open(mount)
	must(t, err)
	defer root.Close()
	before := descriptors(t)
	for !takeTogether(t, root, pairs) {
	}
	for i, p := range pairs {
		if data, err := os.ReadFile(filepath.Join(p.Dst, "file")); err != nil || string(data) != "data" {
			t.Errorf("%d contains %q (%v)", i, data, err)
		}
		if err := os.WriteFile(filepath.Join(p.Dst, "new"), nil, 0o600); !errors.Is(err, unix.EROFS) {
			t.Errorf("%d is not read-only: %v", i, err)
		}
	}
	for _, refused := range []struct {
		pair Pair
		want error
	}{
		{Pair{Dst: pairs[0].Dst, Src: pairs[0].Src}, fs.ErrExist},
		{Pair{Dst: filepath.Join(mount, "missing", "x"), Src: pairs[0].Src}, fs.ErrNotExist},
		{Pair{Dst: filepath.Join(mount, "x"), Src: filepath.Join(mount, "missing")}, fs.ErrNotExist},
		{Pair{Dst: filepath.Join(mount, "x"), Src: filepath.Join(mount, "dir0")}, ErrNotSubvolume},
	} {
		if err := SnapshotTogether(root, refused.pair); !errors.Is(err, refused.want) {
			t.Errorf("%+v: got %v, want %v", refused.pair, err, refused.want)
		}
	}
	if n := descriptors(t); n != before {
		t.Errorf("%d descriptors are open, %d were", n, before)
	}
}

// takeTogether reports whether the snapshots of one try share a transaction. Otherwise it destroys
// them.
func takeTogether(t *testing.T, root *os.File, pairs []Pair) bool {
	t.Helper()
	must(t, SnapshotTogether(root, pairs...))
	transactions := map[uint64]bool{}
	for _, p := range pairs {
		info, err := Info(p.Dst)
		must(t, err)
		transactions[info.CreatedTransid] = true
	}
	if len(transactions) == 1 {
		return true
	}
	for _, p := range pairs {
		must(t, Destroy(p.Dst))
	}
	return false
}
