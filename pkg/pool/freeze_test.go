package pool

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs"
	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs/btrfstest"
	"github.com/btrfs-csi/btrfs-csi/pkg/loop"
	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
)

// TestFreezeIsBounded: a filesystem that nobody thaws is thawed by the watchdog, and the snapshot
// learns of it.
func TestFreezeIsBounded(t *testing.T) {
	host, err := NewHost(btrfstest.Mount(t), btrfs.QuotaNone)
	check(t, err)
	filesystem, err := host.Open(t.Context(), Default)
	check(t, err)
	check(t, filesystem.Prepare(t.Context()))
	d, err := filesystem.Open()
	check(t, err)
	defer d.Close()
	at := Slot{"active", "pvc"}
	check(t, d.Mkdir(at))
	_, err = d.Create(at)
	check(t, err)
	check(t, d.MakeDisk(at, meta.Ext4, 16<<20))

	if frozen, err := d.Freeze(at); frozen || err != nil {
		t.Errorf("one that is not mounted: %v, %v", frozen, err)
	}
	if err := d.Thaw(at); !errors.Is(err, ErrThawed) {
		t.Errorf("one that is not mounted: %v", err)
	}
	f, err := os.OpenFile(filepath.Join(filesystem.SlotPath(at), "disk"), os.O_RDWR, 0)
	check(t, err)
	defer f.Close()
	device, err := loop.Attach(f)
	check(t, err)
	defer device.Close()
	mnt := t.TempDir()
	check(t, unix.Mount(device.Path(), mnt, "ext4", 0, ""))
	defer btrfstest.UnmountAll(t, mnt)
	writes := func() error { return os.WriteFile(filepath.Join(mnt, "file"), []byte("data"), 0o600) }

	freezes := &filesystem.(*disk).freezes
	freezes.longest = time.Hour
	mustFreeze(t, d, at)
	check(t, d.Thaw(at))
	check(t, writes())
	if err := d.Thaw(at); !errors.Is(err, ErrThawed) {
		t.Errorf("thawed twice: %v", err)
	}

	freezes.longest = time.Millisecond
	mustFreeze(t, d, at)
	check(t, writes()) // waits for the watchdog
	if err := d.Thaw(at); !errors.Is(err, ErrThawed) {
		t.Errorf("after the watchdog: %v", err)
	}

	freezes.longest = time.Hour
	if out, err := exec.Command("fsfreeze", "--freeze", mnt).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if frozen, err := d.Freeze(at); frozen || err != nil {
		t.Errorf("one that somebody else has frozen: %v, %v", frozen, err)
	}
	check(t, d.Thaw(at)) // as a start does for what a killed driver has left
	check(t, writes())
}

func mustFreeze(t *testing.T, d Directory, at Slot) {
	t.Helper()
	if frozen, err := d.Freeze(at); !frozen || err != nil {
		t.Fatalf("%v, %v", frozen, err)
	}
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
