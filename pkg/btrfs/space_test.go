package btrfs

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs/btrfstest"
)

func TestSpace(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name   string
		mkfs   []string
		copies int64 // of metadata
	}{
		{"single", []string{"-m", "single", "-d", "single"}, 1},
		{"dup", []string{"-m", "dup", "-d", "single"}, 2},
		{"mixed", []string{"--mixed", "-m", "single", "-d", "single"}, 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			const size, written = 1 << 30, 20 << 20
			mnt := btrfstest.Mount(t, btrfstest.Size(size), btrfstest.MkfsArgs(test.mkfs...))
			before := value(SpaceOf(mnt))(t)
			must(t, writeFile(filepath.Join(mnt, "file"), written))
			unix.Sync()
			s := value(SpaceOf(mnt))(t)

			if s.Size != size || s.Available <= 0 || s.Available >= s.Size || s.ReadOnly {
				t.Errorf("size: %+v", s)
			}
			if used := s.DataUsed - before.DataUsed; used < written || used > written+1<<20 {
				t.Errorf("%d bytes of data used, wanted %d", used, written)
			}
			if s.DataTotal < s.DataUsed || s.MetadataTotal < s.MetadataUsed || s.SystemTotal < s.SystemUsed {
				t.Errorf("more used than there is: %+v", s)
			}
			if s.GlobalReserveTotal <= 0 || s.GlobalReserveUsed != 0 {
				t.Errorf("global reserve: %+v", s)
			}
			raw := s.DataTotal + test.copies*(s.MetadataTotal+s.SystemTotal)
			if s.Unallocated != size-raw {
				t.Errorf("unallocated %d, wanted %d: %+v", s.Unallocated, size-raw, s)
			}
		})
	}
}

func TestSpaceTellsReadOnly(t *testing.T) {
	t.Parallel()
	mnt := btrfstest.Mount(t)
	must(t, btrfstest.RemountReadOnly(mnt))
	if !value(SpaceOf(mnt))(t).ReadOnly {
		t.Error("not read-only")
	}
}

func TestFilesystemAndDevices(t *testing.T) {
	t.Parallel()
	// A new ID in each run: the kernel gives another ID to the second filesystem with the
	// same one.
	fsid := strings.TrimSpace(string(value(os.ReadFile("/proc/sys/kernel/random/uuid"))(t)))
	args := []string{"-n", "32768", "-U", fsid}
	mnt := btrfstest.Mount(t, btrfstest.MkfsArgs(args...))
	info := value(Filesystem(mnt))(t)
	if info.FSID.String() != fsid || info.NodeSize != 32768 || info.SectorSize != 4096 || info.NumDevices != 1 {
		t.Errorf("got %+v", info)
	}
	for _, name := range []string{"a", "b"} { // the first one may belong to the running transaction
		create(t, mnt, name)
		must(t, Sync(mnt))
	}
	if after := value(Filesystem(mnt))(t).Generation; after <= info.Generation {
		t.Errorf("generation %d after commits, %d before", after, info.Generation)
	}

	devices := value(Devices(mnt))(t)
	if len(devices) != 1 {
		t.Fatalf("got %+v", devices)
	}
	d := devices[0]
	if d.ID != 1 || d.UUID.IsZero() || d.Path == "" || d.Size != 2<<30 || d.Used <= 0 || d.Used >= d.Size || d.Missing {
		t.Errorf("got %+v", d)
	}
	if d.WriteErrors+d.ReadErrors+d.FlushErrors+d.CorruptionErrors+d.GenerationErrors != 0 {
		t.Errorf("errors on a new device: %+v", d)
	}
}

func TestDevicesMissing(t *testing.T) {
	t.Parallel()
	mnt, loop := mountPair(t)
	devices := value(Devices(mnt))(t)
	if len(devices) != 2 || devices[0].Missing || devices[1].Missing {
		t.Fatalf("got %+v", devices)
	}
	must(t, btrfstest.Unmount(mnt))
	must(t, exec.Command("btrfs", "device", "scan", "--forget", loop[1]).Run())
	must(t, unix.Mount(loop[0], mnt, "btrfs", 0, "degraded"))
	degraded := value(Devices(mnt))(t)
	if len(degraded) != 2 || degraded[0].Missing || !degraded[1].Missing {
		t.Errorf("got %+v", degraded)
	}
	s := value(SpaceOf(mnt))(t)
	if want := degraded[0].Size - degraded[0].Used; s.Unallocated != want {
		t.Errorf("unallocated %d counts the missing device, wanted %d", s.Unallocated, want)
	}
	must(t, GrowToDevice(mnt, 1))
}

// mountPair mounts a filesystem with two mirrored devices and returns both.
func mountPair(t *testing.T) (string, [2]string) {
	t.Helper()
	btrfstest.RequireRoot(t)
	var loop [2]string
	for i := range loop {
		loop[i] = btrfstest.Loop(t, 512<<20)
	}
	out, err := exec.Command("mkfs.btrfs", "-q", "-f", "-K", "-d", "raid1", "-m", "raid1", loop[0], loop[1]).CombinedOutput()
	if err != nil {
		t.Fatalf("mkfs.btrfs: %v: %s", err, out)
	}
	mnt := mkdir(t, t.TempDir(), "mnt")
	must(t, exec.Command("btrfs", "device", "scan", loop[0], loop[1]).Run())
	must(t, unix.Mount(loop[0], mnt, "btrfs", 0, ""))
	t.Cleanup(func() { btrfstest.UnmountAll(t, mnt) })
	return mnt, loop
}

func TestGrowToDevice(t *testing.T) {
	t.Parallel()
	const before, after = 512 << 20, 1 << 30
	mnt := btrfstest.Mount(t, btrfstest.Size(before))
	must(t, GrowToDevice(mnt, 1)) // nothing to do
	if got := value(SpaceOf(mnt))(t).Size; got != before {
		t.Errorf("size %d before", got)
	}
	btrfstest.Grow(t, mnt, after)
	must(t, GrowToDevice(mnt, 1))
	if s, d := value(SpaceOf(mnt))(t), value(Devices(mnt))(t); s.Size != after || d[0].Size != after {
		t.Errorf("size %d after, %d of the device, wanted %d", s.Size, d[0].Size, after)
	}
}
