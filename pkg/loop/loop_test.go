package loop_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs/btrfstest"
	"github.com/btrfs-csi/btrfs-csi/pkg/loop"
)

const mib = 1 << 20

func newFile(t *testing.T, dir string, size int64) *os.File {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(dir, "disk"), os.O_CREATE|os.O_RDWR|os.O_EXCL, 0o600)
	must(t, err)
	t.Cleanup(func() { f.Close() })
	must(t, f.Truncate(size))
	return f
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func attach(t *testing.T, f *os.File) *loop.Device {
	t.Helper()
	d, err := loop.Attach(f)
	must(t, err)
	t.Cleanup(d.Close)
	return d
}

// find returns the path of the device of a file, "" for none.
func find(t *testing.T, f *os.File) string {
	t.Helper()
	d, err := loop.Find(f)
	must(t, err)
	if d == nil {
		return ""
	}
	defer d.Close()
	return d.Path()
}

func TestDeviceEndsWithItsLastUser(t *testing.T) {
	f := newFile(t, btrfstest.Mount(t), 64*mib)
	d := attach(t, f)
	if found := find(t, f); found != d.Path() {
		t.Errorf("found %q, want %q", found, d.Path())
	}
	d.Close()
	btrfstest.Eventually(t, "detached", func() bool { return find(t, f) == "" }) // others, such as udev, may look into it
}

func TestKeptDeviceStaysUntilDetach(t *testing.T) {
	f := newFile(t, btrfstest.Mount(t), 64*mib)
	d := attach(t, f)
	must(t, d.Keep())
	d.Close()
	kept, err := loop.Find(f)
	if err != nil || kept == nil || kept.Path() != d.Path() {
		t.Fatalf("found %v, %v, want %s", kept, err, d.Path())
	}
	must(t, kept.Detach())
	btrfstest.Eventually(t, "detached", func() bool { return find(t, f) == "" })
}

// A device is found by its file, whatever the file is called where the device was attached,
// and also when it was renamed or removed. One of the same name is another file.
func TestFoundByFile(t *testing.T) {
	dir := btrfstest.Mount(t)
	must(t, os.Mkdir(filepath.Join(dir, "a"), 0o700))
	must(t, os.Mkdir(filepath.Join(dir, "b"), 0o700))
	one, other := newFile(t, filepath.Join(dir, "a"), mib), newFile(t, filepath.Join(dir, "b"), mib)
	d, e := attach(t, one), attach(t, other)
	if find(t, one) != d.Path() || find(t, other) != e.Path() {
		t.Errorf("found %q and %q, want %q and %q", find(t, one), find(t, other), d.Path(), e.Path())
	}
	must(t, os.Rename(filepath.Join(dir, "a"), filepath.Join(dir, "c")))
	moved, err := os.Open(filepath.Join(dir, "c", "disk"))
	must(t, err)
	defer moved.Close()
	if find(t, moved) != d.Path() {
		t.Errorf("after a rename: found %q, want %q", find(t, moved), d.Path())
	}
	if name := loop.BackingName(d.Number()); !strings.HasSuffix(name, "/c/disk") {
		t.Errorf("name %q, want it to end with /c/disk", name)
	}
	must(t, os.Remove(filepath.Join(dir, "c", "disk")))
	if find(t, moved) != d.Path() {
		t.Errorf("after a removal: found %q, want %q", find(t, moved), d.Path())
	}
	if name := loop.BackingName(d.Number()); !strings.HasSuffix(name, "/c/disk") {
		t.Errorf("name after a removal %q, want it to end with /c/disk", name)
	}
}

func TestTwoDevicesOfAFileAreRefused(t *testing.T) {
	f := newFile(t, btrfstest.Mount(t), mib)
	d, e := attach(t, f), attach(t, f)
	if found, err := loop.Find(f); err == nil || !strings.Contains(err.Error(), d.Path()) || !strings.Contains(err.Error(), e.Path()) {
		t.Errorf("found %v, %v, want an error with both", found, err)
	}
}

func TestDirectDiscardAndSectors(t *testing.T) {
	f := newFile(t, btrfstest.Mount(t), 64*mib)
	d := attach(t, f)
	queue := filepath.Join("/sys/block", filepath.Base(d.Path()))
	for file, want := range map[string]string{"loop/dio": "1", "loop/autoclear": "1", "queue/logical_block_size": "4096", "ro": "0"} {
		if got := read(t, filepath.Join(queue, file)); got != want {
			t.Errorf("%s is %s, want %s", file, got, want)
		}
	}
	device, err := os.OpenFile(d.Path(), os.O_WRONLY, 0)
	must(t, err)
	defer device.Close()
	_, err = device.Write(bytes.Repeat([]byte{1}, 8*mib))
	must(t, err)
	must(t, device.Sync())
	if used := blocks(t, f); used < 8*mib {
		t.Fatalf("%d bytes are allocated, want 8 MiB", used)
	}
	if out, err := exec.Command("blkdiscard", d.Path()).CombinedOutput(); err != nil {
		t.Fatalf("blkdiscard: %v: %s", err, out)
	}
	if used := blocks(t, f); used != 0 {
		t.Errorf("%d bytes are allocated after a discard, want none", used)
	}
}

func TestReadOnly(t *testing.T) {
	f := newFile(t, btrfstest.Mount(t), mib)
	f, err := os.Open(f.Name())
	must(t, err)
	defer f.Close()
	d := attach(t, f)
	if is, err := d.IsReadOnly(); !is || err != nil {
		t.Errorf("read-only: %v, %v", is, err)
	}
	if err := os.WriteFile(d.Path(), []byte("x"), 0); err == nil {
		t.Error("it can be written")
	}
}

func TestRefresh(t *testing.T) {
	f := newFile(t, btrfstest.Mount(t), 16*mib)
	d := attach(t, f)
	must(t, f.Truncate(32*mib))
	must(t, d.Refresh())
	if got := read(t, filepath.Join("/sys/block", filepath.Base(d.Path()), "size")); got != "65536" {
		t.Errorf("it has %s sectors of 512 bytes, want 65536", got)
	}
}

func TestBackingNameOfOthers(t *testing.T) {
	for _, number := range []uint64{0, unix.Mkdev(8, 0), unix.Mkdev(7, 1<<19)} {
		if name := loop.BackingName(number); name != "" {
			t.Errorf("device %d has the file %q", number, name)
		}
	}
}

func read(t *testing.T, file string) string {
	t.Helper()
	text, err := os.ReadFile(file)
	must(t, err)
	return strings.TrimSpace(string(text))
}

// blocks returns how many bytes of a file have space on disk.
func blocks(t *testing.T, f *os.File) int64 {
	t.Helper()
	var st unix.Stat_t
	must(t, unix.Fstat(int(f.Fd()), &st))
	return st.Blocks * 512
}
