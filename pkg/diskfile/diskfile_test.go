package diskfile_test

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs"
	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs/btrfstest"
	"github.com/btrfs-csi/btrfs-csi/pkg/diskfile"
	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
)

const mib = 1 << 20

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wants(t *testing.T, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("got %v, want %v", err, want)
	}
}

// Every kind can be made in its smallest size, and is sparse.
func TestMake(t *testing.T) {
	dir := btrfstest.Mount(t)
	for _, content := range []meta.Content{meta.Block, meta.Ext4, meta.XFS} {
		must(t, diskfile.Make(dir, content, content.MinSize()))
		must(t, diskfile.Sync(dir))
		path := filepath.Join(dir, diskfile.Name)
		var st unix.Stat_t
		must(t, unix.Stat(path, &st))
		if st.Size != content.MinSize() || st.Blocks*512 > st.Size/2 && content != meta.Ext4 {
			t.Errorf("%s: %d bytes, %d of them have space", content, st.Size, st.Blocks*512)
		}
		out, err := exec.Command("blkid", "-p", "-o", "value", "-s", "TYPE", path).Output()
		if found := strings.TrimSpace(string(out)); content == meta.Block && found != "" || content != meta.Block && found != content.Filesystem() {
			t.Errorf("%s: found %q, %v", content, found, err)
		}
	}
}

func TestInheritsNoDataCow(t *testing.T) {
	dir := filepath.Join(btrfstest.Mount(t), "subvolume")
	must(t, btrfs.Create(dir))
	must(t, btrfs.SetNoDataCow(dir, true))
	must(t, diskfile.Make(dir, meta.Ext4, 16*mib))
	out, err := exec.Command("lsattr", filepath.Join(dir, diskfile.Name)).Output()
	if err != nil || !strings.Contains(strings.Fields(string(out))[0], "C") {
		t.Errorf("%s, %v", out, err)
	}
}

// A file gets its name when it is whole.
func TestFailedMakeLeavesNothing(t *testing.T) {
	dir := btrfstest.Mount(t)
	if err := diskfile.Make(dir, meta.XFS, 200*mib); err == nil || !strings.Contains(err.Error(), "300MB") {
		t.Errorf("got %v", err)
	}
	t.Setenv("PATH", "")
	wants(t, diskfile.Make(dir, meta.Ext4, 16*mib), exec.ErrNotFound)
	if names, err := os.ReadDir(dir); err != nil || len(names) > 0 {
		t.Errorf("left behind: %v, %v", names, err)
	}
}

func TestFullPool(t *testing.T) {
	dir := btrfstest.Mount(t, btrfstest.Size(256*mib))
	must(t, btrfstest.FillFile(filepath.Join(dir, "filler")))
	wants(t, diskfile.Make(dir, meta.XFS, 1024*mib), unix.ENOSPC)
	if _, err := os.Stat(filepath.Join(dir, diskfile.Name)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("left behind: %v", err)
	}
}

func TestGrow(t *testing.T) {
	dir := btrfstest.Mount(t)
	wants(t, diskfile.Grow(dir, mib), fs.ErrNotExist)
	must(t, diskfile.Make(dir, meta.Ext4, 16*mib))
	before, err := os.ReadFile(filepath.Join(dir, diskfile.Name))
	must(t, err)
	for _, size := range []int64{32 * mib, 24 * mib} { // never smaller
		must(t, diskfile.Grow(dir, size))
		got, err := diskfile.Size(dir)
		if got != 32*mib || err != nil {
			t.Errorf("grown to %d: %d, %v", size, got, err)
		}
	}
	after, err := os.ReadFile(filepath.Join(dir, diskfile.Name))
	if err != nil || !bytes.Equal(before, after[:16*mib]) {
		t.Errorf("other content, %v", err)
	}
}

func TestNotRegular(t *testing.T) {
	path := filepath.Join(t.TempDir(), diskfile.Name)
	for name, plant := range map[string]func() error{
		"directory": func() error { return os.Mkdir(path, 0o700) },
		"FIFO":      func() error { return unix.Mkfifo(path, 0o600) },
		"link":      func() error { return os.Symlink("/dev/zero", path) },
		"device":    func() error { return unix.Mknod(path, unix.S_IFCHR|0o600, int(unix.Mkdev(1, 5))) },
		"socket":    func() error { return unix.Mknod(path, unix.S_IFSOCK|0o600, 0) },
	} {
		must(t, plant())
		for _, write := range []bool{false, true} {
			if _, err := diskfile.Open(filepath.Dir(path), write); !errors.Is(err, diskfile.ErrNotRegular) {
				t.Errorf("%s, write %v: %v", name, write, err)
			}
		}
		must(t, os.Remove(path))
	}
	_, err := diskfile.Open(filepath.Dir(path), false)
	wants(t, err, fs.ErrNotExist)
}
