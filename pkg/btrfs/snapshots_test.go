package btrfs

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs/btrfstest"
)

// TestSnapshots takes many at once, some of which cannot be had.
func TestSnapshots(t *testing.T) {
	t.Parallel()
	mount := btrfstest.Mount(t)
	source := filepath.Join(mount, "source")
	must(t, Create(source))
	must(t, os.WriteFile(filepath.Join(source, "file"), []byte("data"), 0o600))
	must(t, os.Mkdir(filepath.Join(mount, "plain"), 0o700))
	must(t, os.Mkdir(filepath.Join(mount, "taken"), 0o700))
	copies := []Copy{
		{Dst: filepath.Join(mount, "x"), Src: filepath.Join(mount, "missing")},
		{Dst: filepath.Join(mount, "missing", "x"), Src: source},
		{Dst: filepath.Join(mount, "taken"), Src: source},
		{Dst: filepath.Join(mount, "x"), Src: filepath.Join(mount, "plain")},
		{Dst: mount + "/..", Src: source},
	}
	wants := []error{fs.ErrNotExist, fs.ErrNotExist, fs.ErrExist, ErrNotSubvolume, unix.EINVAL}
	const good = 100
	for i := range good {
		dir := filepath.Join(mount, fmt.Sprint(i))
		must(t, os.Mkdir(dir, 0o700))
		copies = append(copies, Copy{Dst: filepath.Join(dir, "copy"), Src: source, ReadOnly: i%2 == 0})
		wants = append(wants, nil)
	}
	told := make([]int, len(copies))
	Snapshots(copies, func(i int, err error) {
		told[i]++
		if !errors.Is(err, wants[i]) {
			t.Errorf("%+v: got %v, want %v", copies[i], err, wants[i])
		}
		if err != nil || wants[i] != nil {
			return
		}
		if data, err := os.ReadFile(filepath.Join(copies[i].Dst, "file")); err != nil || string(data) != "data" {
			t.Errorf("%s holds %q (%v)", copies[i].Dst, data, err)
		}
		if info, err := Info(copies[i].Dst); err != nil || info.ReadOnly != copies[i].ReadOnly {
			t.Errorf("%s is read-only: %v (%v)", copies[i].Dst, info.ReadOnly, err)
		}
	})
	for i, n := range told {
		if n != 1 {
			t.Errorf("%+v was told %d times", copies[i], n)
		}
	}
	Snapshots(nil, func(int, error) { t.Error("told of none") })
	Snapshots(copies[:2], func(i int, err error) {
		if !errors.Is(err, wants[i]) {
			t.Errorf("where none can be had: got %v, want %v", err, wants[i])
		}
	})
	descriptors, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	if len(descriptors) > good {
		t.Errorf("%d descriptors are open", len(descriptors))
	}
}
