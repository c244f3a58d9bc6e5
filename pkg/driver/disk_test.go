package driver

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs/btrfstest"
	"github.com/btrfs-csi/btrfs-csi/pkg/loop"
	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
	"github.com/btrfs-csi/btrfs-csi/pkg/mount"
	"github.com/btrfs-csi/btrfs-csi/pkg/snapshot"
)

// diskSize is a size that every kind of disk can have.
const diskSize = 300 * mib

// kinds are the kinds of disks.
var kinds = map[string]*csi.VolumeCapability{"ext4": formatted("ext4"), "xfs": formatted("xfs"), "block": device(nodeWriter)}

// eachKind runs a test with each kind of disk.
func eachKind(t *testing.T, test func(t *testing.T, r *rig, c *csi.VolumeCapability)) {
	for name, c := range kinds {
		t.Run(name, func(t *testing.T) { test(t, newDiskRig(t, rigOptions{}), c) })
	}
}

// newDiskRig returns a rig that leaves no device behind, even after a failed test.
func newDiskRig(t *testing.T, o rigOptions) *rig {
	r := newRig(t, o)
	t.Cleanup(func() {
		unmountBelow(t, r.kubelet)
		files, _ := filepath.Glob(filepath.Join(r.state, "pools", "*", "active", "*", "fs", "disk"))
		for _, file := range files {
			if is, err := os.Lstat(file); err != nil || !is.Mode().IsRegular() {
				continue
			}
			if d := deviceOf(t, file); d != nil {
				must(t, d.Detach())
			}
		}
	})
	return r
}

// deviceOf returns the device of a file, nil for none.
func deviceOf(t *testing.T, file string) *loop.Device {
	t.Helper()
	f, err := os.Open(file)
	must(t, err)
	defer f.Close()
	d, err := loop.Find(f)
	must(t, err)
	return d
}

func (r *rig) diskFile(volume string) string { return filepath.Join(r.source(volume), "disk") }

func (r *rig) createDisk(name string, c *csi.VolumeCapability) string {
	r.t.Helper()
	return r.createAs(&csi.CreateVolumeRequest{Name: name, CapacityRange: sized(diskSize), VolumeCapabilities: []*csi.VolumeCapability{c}}).GetVolumeId()
}

// wantDevice fails unless a volume has a device or not.
func (r *rig) wantDevice(volume string, want bool) {
	r.t.Helper()
	is := func() bool {
		d := deviceOf(r.t, r.diskFile(volume))
		if d != nil {
			d.Close()
		}
		return d != nil
	}
	if want && !is() {
		r.t.Errorf("%s has no device", volume)
	}
	if !want { // others, such as udev, may have it open for a moment
		waitFor(r.t, "end of the device of "+volume, func() bool { return !is() })
	}
}

// file returns the file that the tests write in a published volume.
func file(c *csi.VolumeCapability, target string) string {
	if c.GetBlock() != nil {
		return target
	}
	return filepath.Join(target, "file")
}

// put writes data into a published volume, durably.
func put(t *testing.T, c *csi.VolumeCapability, target string, data []byte) {
	t.Helper()
	f, err := os.OpenFile(file(c, target), os.O_CREATE|os.O_WRONLY, 0o600)
	must(t, err)
	defer f.Close()
	_, err = f.Write(data)
	must(t, err)
	must(t, f.Sync())
}

func wantData(t *testing.T, c *csi.VolumeCapability, target string, data []byte) {
	t.Helper()
	f, err := os.Open(file(c, target))
	must(t, err)
	defer f.Close()
	got := make([]byte, len(data))
	if _, err := f.ReadAt(got, 0); err != nil || !bytes.Equal(got, data) {
		t.Errorf("%s has other data, %v", target, err)
	}
}

// noise returns random data, which no filesystem makes by itself.
func noise(size int) []byte {
	data := make([]byte, size)
	for i := range data {
		data[i] = byte(rand.Uint32())
	}
	return data
}

func TestLifeOfADisk(t *testing.T) {
	eachKind(t, func(t *testing.T, r *rig, c *csi.VolumeCapability) {
		volume := r.createDisk("pvc-1", c)
		one, two := r.targetPath("pod-1", volume), r.targetPath("pod-2", volume)
		data := noise(mib)
		wantCode(t, r.publish(volume, one, c, false), codes.FailedPrecondition, "stage it first")
		r.wantDevice(volume, false)
		for range 2 {
			must(t, r.stage(volume, c))
		}
		r.wantDevice(volume, true)
		for range 2 {
			must(t, r.publish(volume, one, c, false))
			must(t, r.publish(volume, two, c, false))
		}
		put(t, c, one, data)
		wantData(t, c, two, data)
		wantMounts(t, one, 1)
		wantCode(t, r.delete(volume), codes.FailedPrecondition, "mounted at")
		for range 2 {
			must(t, r.unpublish(volume, one))
		}
		wantGone(t, one)
		must(t, r.unpublish(volume, two))
		wantCode(t, r.delete(volume), codes.FailedPrecondition)
		for range 2 {
			must(t, r.unstage(volume))
		}
		r.wantDevice(volume, false)
		if names, err := os.ReadDir(r.stagingPath(volume)); err != nil || len(names) > 0 {
			t.Errorf("in the staging directory: %v, %v", names, err)
		}
		must(t, r.stage(volume, c))
		must(t, r.publish(volume, one, c, false))
		wantData(t, c, one, data)
		must(t, r.unpublish(volume, one))
		must(t, r.unstage(volume))
		r.wantDevice(volume, false)
		must(t, r.delete(volume))
	})
}

// A pod that has a filesystem of its own sees its size.
func TestSizeOfADisk(t *testing.T) {
	eachKind(t, func(t *testing.T, r *rig, c *csi.VolumeCapability) {
		volume := r.createDisk("pvc-1", c)
		target := r.targetPath("pod-1", volume)
		must(t, r.stage(volume, c))
		must(t, r.publish(volume, target, c, false))
		if c.GetBlock() != nil {
			f, err := os.Open(target)
			must(t, err)
			defer f.Close()
			if end, err := f.Seek(0, 2); end != diskSize || err != nil {
				t.Errorf("the device has %d bytes, %v", end, err)
			}
		} else {
			var st unix.Statfs_t
			must(t, unix.Statfs(target, &st))
			if size := int64(st.Blocks) * st.Bsize; size > diskSize || size < diskSize*3/4 || st.Bavail < st.Bfree/10*9 {
				t.Errorf("the filesystem has %d bytes: %+v", size, st)
			}
		}
		put(t, c, target, noise(8*mib))
		response, err := r.NodeGetVolumeStats(t.Context(), &csi.NodeGetVolumeStatsRequest{VolumeId: volume, VolumePath: target})
		must(t, err)
		if u := response.GetUsage()[0]; u.GetUsed() < 8*mib || u.GetTotal() > diskSize || u.GetAvailable() > u.GetTotal()-u.GetUsed() {
			t.Errorf("usage %v", u)
		}
		_, err = r.NodeGetVolumeStats(t.Context(), &csi.NodeGetVolumeStatsRequest{VolumeId: volume, VolumePath: r.kubelet + "/pods"})
		wantCode(t, err, codes.NotFound)
		limit, err := r.engine.Usage(t.Context(), meta.Volume(volume))
		if err != nil || limit.Limit != 2*diskSize+64*mib {
			t.Errorf("limit %d, %v", limit.Limit, err)
		}
	})
}

// What a pod deletes is given back to the pool.
func TestDiskDiscards(t *testing.T) {
	for _, c := range []*csi.VolumeCapability{formatted("ext4"), formatted("xfs")} {
		t.Run(c.GetMount().GetFsType(), func(t *testing.T) {
			r := newDiskRig(t, rigOptions{})
			volume := r.createDisk("pvc-1", c)
			target := r.targetPath("pod-1", volume)
			must(t, r.stage(volume, c))
			must(t, r.publish(volume, target, c, false))
			blocks := func() int64 {
				var st unix.Stat_t
				must(t, unix.Stat(r.diskFile(volume), &st))
				return st.Blocks * 512
			}
			before := blocks()
			put(t, c, target, noise(32*mib))
			if full := blocks(); full < before+31*mib {
				t.Fatalf("%d bytes, %d before", full, before)
			}
			must(t, os.Remove(file(c, target)))
			waitFor(t, "discard", func() bool {
				unix.Sync()
				return blocks() < before+8*mib
			})
		})
	}
}

// The driver finds what an earlier one has staged, by the file alone.
func TestDiskOutlivesTheDriver(t *testing.T) {
	eachKind(t, func(t *testing.T, r *rig, c *csi.VolumeCapability) {
		volume := r.createDisk("pvc-1", c)
		one, two := r.targetPath("pod-1", volume), r.targetPath("pod-2", volume)
		data := noise(mib)
		must(t, r.stage(volume, c))
		must(t, r.publish(volume, one, c, false))
		put(t, c, one, data)
		device := deviceOf(t, r.diskFile(volume))
		device.Close()
		driver, err := New(r.engine, r.driver.options)
		must(t, err)
		r.driver = driver
		r.serve()
		must(t, r.stage(volume, c))
		must(t, r.publish(volume, two, c, false))
		wantData(t, c, two, data)
		again := deviceOf(t, r.diskFile(volume))
		again.Close()
		if again.Path() != device.Path() {
			t.Errorf("%s, was %s", again.Path(), device.Path())
		}
		wantCode(t, r.delete(volume), codes.FailedPrecondition, "mounted at")
		must(t, r.unpublish(volume, one))
		must(t, r.unpublish(volume, two))
		must(t, r.unstage(volume))
		r.wantDevice(volume, false)
	})
}

// A device keeps the filesystem of its pool busy, but not the mount of the pool: an
// administrator can mount it anew.
func TestDiskLetsThePoolGo(t *testing.T) {
	eachKind(t, func(t *testing.T, _ *rig, c *csi.VolumeCapability) {
		r := newDiskRig(t, rigOptions{pools: []string{"fast"}})
		volume := r.createAs(&csi.CreateVolumeRequest{
			Name: "pvc-1", CapacityRange: sized(diskSize), VolumeCapabilities: []*csi.VolumeCapability{c}, Parameters: map[string]string{"pool": "fast"},
		}).GetVolumeId()
		target := r.targetPath("pod-1", volume)
		must(t, r.stage(volume, c))
		must(t, r.publish(volume, target, c, false))
		data := noise(mib)
		put(t, c, target, data)
		at := filepath.Join(r.state, "pools", "fast")
		waitFor(t, "unmount of the pool", func() bool { return unix.Unmount(at, 0) == nil })
		wantData(t, c, target, data)
		must(t, r.unpublish(volume, target))
		must(t, r.unstage(volume))
		wantGone(t, target)
	})
}

func TestFailedStageLeavesNoDevice(t *testing.T) {
	eachKind(t, func(t *testing.T, r *rig, c *csi.VolumeCapability) {
		volume := r.createDisk("pvc-1", c)
		r.driver.attach = broken(mount.Attach)
		wantCode(t, r.stage(volume, c), codes.Aborted, "broken mount")
		r.wantDevice(volume, false)
		r.driver.attach = func(mount.Source, mount.Flags, mount.Target) error { return fmt.Errorf("nothing was mounted") }
		wantCode(t, r.stage(volume, c), codes.Aborted, "nothing was mounted")
		r.wantDevice(volume, false)
		r.driver.attach = mount.Attach
		must(t, r.stage(volume, c))
		must(t, r.unstage(volume))
		must(t, r.delete(volume))
	})
}

// After a crash or a reboot the mount in the staging directory may show a device that nobody, or
// another volume, has by now.
func TestStaleDeviceIsReplaced(t *testing.T) {
	r := newDiskRig(t, rigOptions{})
	c := device(nodeWriter)
	volume, other := r.createDisk("pvc-1", c), r.createDisk("pvc-2", c)
	for _, stale := range []string{"nobody's", "another's"} {
		must(t, r.stage(volume, c))
		must(t, deviceOf(t, r.diskFile(volume)).Detach())
		r.wantDevice(volume, false)
		if stale == "another's" {
			must(t, r.stage(other, c)) // gets the device, if no other test is faster
		}
		must(t, r.stage(volume, c))
		r.wantDevice(volume, true)
		wantMounts(t, filepath.Join(r.stagingPath(volume), "device"), 1)
		must(t, r.unstage(volume))
		r.wantDevice(volume, false)
	}
	r.wantDevice(other, true)
	must(t, r.stage(volume, c))
	must(t, deviceOf(t, r.diskFile(volume)).Detach())
	must(t, r.unstage(volume))
	must(t, r.unstage(other))
}

func TestPublishedDeviceIsNotUnstaged(t *testing.T) {
	r := newDiskRig(t, rigOptions{})
	c := device(nodeWriter)
	volume := r.createDisk("pvc-1", c)
	target := r.targetPath("pod-1", volume)
	must(t, r.stage(volume, c))
	must(t, r.publish(volume, target, c, false))
	wantCode(t, r.unstage(volume), codes.FailedPrecondition, target)
	r.wantDevice(volume, true)
}

// A staged filesystem may have a file with the name of the mount of a device.
func TestUnstageKeepsAFileOfThePod(t *testing.T) {
	r := newDiskRig(t, rigOptions{})
	c := formatted("ext4")
	volume := r.createDisk("pvc-1", c)
	must(t, r.stage(volume, c))
	write(t, filepath.Join(r.stagingPath(volume), "device"), "")
	must(t, r.unstage(volume))
	must(t, r.stage(volume, c))
	wantFile(t, filepath.Join(r.stagingPath(volume), "device"), "")
	must(t, r.unstage(volume))
}

func TestDeviceOfReaders(t *testing.T) {
	r := newDiskRig(t, rigOptions{})
	volume := r.createDisk("pvc-1", device(nodeWriter))
	target := r.targetPath("pod-1", volume)
	must(t, r.stage(volume, device(nodeWriter)))
	wantCode(t, r.publish(volume, target, device(nodeWriter), true), codes.InvalidArgument, "read-only")
	wantCode(t, r.stage(volume, device(nodeReader)), codes.AlreadyExists, "read-only: false, wanted: true")
	must(t, r.unstage(volume))
	must(t, r.stage(volume, device(nodeReader)))
	must(t, r.publish(volume, target, device(nodeReader), true))
	if err := os.WriteFile(target, make([]byte, 4096), 0); err == nil {
		t.Error("a read-only device can be written")
	}
}

func TestFilesystemOfReaders(t *testing.T) {
	for _, c := range []*csi.VolumeCapability{formatted("ext4"), formatted("xfs")} {
		r := newDiskRig(t, rigOptions{})
		volume := r.createDisk("pvc-1", c)
		one, two := r.targetPath("pod-1", volume), r.targetPath("pod-2", volume)
		must(t, r.stage(volume, c))
		must(t, r.publish(volume, one, c, true))
		must(t, r.publish(volume, two, c, false))
		put(t, c, two, []byte("data"))
		wantData(t, c, one, []byte("data"))
		if err := os.WriteFile(filepath.Join(one, "other"), nil, 0o600); err == nil {
			t.Error("a read-only mount can be written")
		}
	}
}

func TestDiskHasOneTarget(t *testing.T) {
	eachKind(t, func(t *testing.T, r *rig, c *csi.VolumeCapability) {
		c.AccessMode = &csi.VolumeCapability_AccessMode{Mode: csi.VolumeCapability_AccessMode_SINGLE_NODE_SINGLE_WRITER}
		defer func() { c.AccessMode = writer().GetAccessMode() }()
		volume := r.createDisk("pvc-1", c)
		one, two := r.targetPath("pod-1", volume), r.targetPath("pod-2", volume)
		must(t, r.stage(volume, c))
		must(t, r.publish(volume, one, c, false))
		wantCode(t, r.publish(volume, two, c, false), codes.FailedPrecondition, one)
		must(t, r.unpublish(volume, one))
		must(t, r.publish(volume, two, c, false))
	})
}

// Nobody gets a volume as another kind than it was made.
func TestDiskOfAnotherKind(t *testing.T) {
	r := newDiskRig(t, rigOptions{})
	all := map[string]*csi.VolumeCapability{"btrfs": formatted("btrfs"), "ext4": formatted("ext4"), "xfs": formatted("xfs"), "block": device(nodeWriter)}
	for made, c := range all {
		volume := r.createDisk("pvc-"+made, c)
		for asked, other := range all {
			if asked == made {
				continue
			}
			wantCode(t, r.stage(volume, other), codes.FailedPrecondition, "use the volume mode and the fsType")
			response, err := r.ValidateVolumeCapabilities(t.Context(), &csi.ValidateVolumeCapabilitiesRequest{
				VolumeId: volume, VolumeCapabilities: []*csi.VolumeCapability{other},
			})
			if err != nil || response.GetConfirmed() != nil || !strings.Contains(response.GetMessage(), "is wanted") {
				t.Errorf("%s as %s: %v, %v", made, asked, response, err)
			}
			_, err = r.CreateVolume(t.Context(), &csi.CreateVolumeRequest{
				Name: "pvc-" + made, CapacityRange: sized(diskSize), VolumeCapabilities: []*csi.VolumeCapability{other},
			})
			wantCode(t, err, codes.AlreadyExists, "in it, not")
		}
		if response, err := r.ValidateVolumeCapabilities(t.Context(), &csi.ValidateVolumeCapabilitiesRequest{
			VolumeId: volume, VolumeCapabilities: []*csi.VolumeCapability{c},
		}); err != nil || response.GetConfirmed() == nil {
			t.Errorf("%s: %v, %v", made, response, err)
		}
		err := r.stage(volume, writer()) // any filesystem
		if made == "block" {
			wantCode(t, err, codes.FailedPrecondition)
		} else {
			must(t, err)
			must(t, r.unstage(volume))
		}
		must(t, r.delete(volume))
	}
}

func TestSizeOfADiskIsRefused(t *testing.T) {
	r := newDiskRig(t, rigOptions{})
	for name, c := range map[string]struct {
		capability *csi.VolumeCapability
		size       *csi.CapacityRange
		says       string
	}{
		"small ext4":    {formatted("ext4"), sized(15 * mib), "16777216"},
		"small xfs":     {formatted("xfs"), sized(299 * mib), "314572800"},
		"limited xfs":   {formatted("xfs"), &csi.CapacityRange{LimitBytes: 100 * mib}, "314572800"},
		"half a sector": {device(nodeWriter), &csi.CapacityRange{RequiredBytes: 2*mib + 1, LimitBytes: 2*mib + 2048}, "4096"},
	} {
		_, err := r.CreateVolume(t.Context(), &csi.CreateVolumeRequest{Name: name, CapacityRange: c.size, VolumeCapabilities: []*csi.VolumeCapability{c.capability}})
		wantCode(t, err, codes.OutOfRange, c.says)
	}
	if names, err := os.ReadDir(filepath.Join(r.state, "pools", "default", "active")); err != nil || len(names) > 0 {
		t.Errorf("left behind: %v, %v", names, err)
	}
	for name, c := range map[string]struct {
		capability *csi.VolumeCapability
		size       int64
	}{"ext4": {formatted("ext4"), 16 * mib}, "xfs": {formatted("xfs"), 300 * mib}, "block": {device(nodeWriter), mib}} {
		volume := r.createAs(&csi.CreateVolumeRequest{Name: name, CapacityRange: sized(c.size), VolumeCapabilities: []*csi.VolumeCapability{c.capability}}).GetVolumeId()
		must(t, r.stage(volume, c.capability))
		must(t, r.unstage(volume))
	}
}

// A disk file that is damaged, foreign or gone is refused, and nothing is formatted.
func TestForeignDiskFile(t *testing.T) {
	r := newDiskRig(t, rigOptions{})
	c := formatted("ext4")
	for name, test := range map[string]struct {
		spoil func(file string) error
		code  codes.Code
		says  string
	}{
		"gone":      {os.Remove, codes.DataLoss, "disk file"},
		"empty":     {func(file string) error { return os.WriteFile(file, nil, 0o600) }, codes.FailedPrecondition, "has 0 bytes"},
		"noise":     {func(file string) error { return os.WriteFile(file, noise(diskSize), 0o600) }, codes.FailedPrecondition, "ext4"},
		"xfs":       {func(file string) error { return exec.Command("mkfs.xfs", "-q", "-f", file).Run() }, codes.FailedPrecondition, "ext4"},
		"directory": {func(file string) error { return os.Mkdir(file, 0o700) }, codes.FailedPrecondition, "regular file"},
		"FIFO":      {func(file string) error { return unix.Mkfifo(file, 0o600) }, codes.FailedPrecondition, "regular file"},
		"link":      {func(file string) error { return os.Symlink("/dev/zero", file) }, codes.FailedPrecondition, "regular file"},
	} {
		t.Run(name, func(t *testing.T) {
			volume := r.createDisk("pvc-"+name, c)
			path := r.diskFile(volume)
			if name != "gone" && name != "empty" && name != "noise" && name != "xfs" {
				must(t, os.Remove(path))
			}
			must(t, test.spoil(path))
			is, err := os.Lstat(path)
			regular := err == nil && is.Mode().IsRegular()
			var before []byte
			if regular {
				before, err = os.ReadFile(path)
				must(t, err)
			}
			wantCode(t, r.stage(volume, c), test.code, test.says)
			if regular {
				r.wantDevice(volume, false)
				if after, err := os.ReadFile(path); err != nil || !bytes.Equal(before, after) {
					t.Errorf("the file was changed: %v", err)
				}
			}
			wantMounts(t, r.stagingPath(volume), 0)
			if err := r.delete(volume); name == "gone" || name == "noise" {
				must(t, err)
			}
		})
	}
}

// A snapshot is of a clean filesystem, and contains what was written before, also what was not
// synced. Its copies are used beside their source on one node.
func TestCopiesOfADisk(t *testing.T) {
	eachKind(t, func(t *testing.T, r *rig, c *csi.VolumeCapability) {
		volume := r.createDisk("pvc-1", c)
		target := r.targetPath("pod-1", volume)
		must(t, r.stage(volume, c))
		must(t, r.publish(volume, target, c, false))
		old, fresh := noise(mib), noise(mib)
		put(t, c, target, old)
		if c.GetBlock() == nil {
			must(t, os.WriteFile(filepath.Join(target, "unsynced"), old, 0o600))
		}
		snap := r.snapshot("snap", volume)
		put(t, c, target, fresh) // it is thawed
		restored := r.createAs(&csi.CreateVolumeRequest{Name: "restored", VolumeContentSource: fromSnapshot(snap), VolumeCapabilities: []*csi.VolumeCapability{c}})
		cloned := r.createAs(&csi.CreateVolumeRequest{Name: "cloned", VolumeContentSource: fromVolume(volume), VolumeCapabilities: []*csi.VolumeCapability{c}})
		for _, copied := range []struct {
			volume *csi.Volume
			data   []byte
		}{{restored, old}, {cloned, fresh}} {
			id := copied.volume.GetVolumeId()
			if copied.volume.GetCapacityBytes() != diskSize {
				t.Errorf("%s has %d bytes", id, copied.volume.GetCapacityBytes())
			}
			if fsType := c.GetMount().GetFsType(); fsType != "" {
				wantClean(t, fsType, r.diskFile(id))
			}
			at := r.targetPath("pod-2", id)
			must(t, r.stage(id, c))
			must(t, r.publish(id, at, c, false))
			wantData(t, c, at, copied.data)
			if c.GetBlock() == nil {
				unsynced, err := os.ReadFile(filepath.Join(at, "unsynced"))
				if err != nil || !bytes.Equal(unsynced, old) {
					t.Errorf("%s: what was not synced: %d bytes, %v", id, len(unsynced), err)
				}
			}
			put(t, c, at, noise(mib))
			must(t, r.unpublish(id, at))
			must(t, r.unstage(id))
		}
		wantData(t, c, target, fresh)
		must(t, r.unpublish(volume, target))
		must(t, r.unstage(volume))
		must(t, r.delete(volume))
		must(t, r.delete("restored"))
		must(t, r.delete("cloned"))
	})
}

// wantClean fails unless the filesystem in a disk file is one without faults. That of ext4 has
// an empty journal. Of xfs the log is replayed at the first mount.
func wantClean(t *testing.T, fsType, file string) {
	t.Helper()
	args := []string{"e2fsck", "-n", "-f", file}
	if fsType == "xfs" {
		at := filepath.Join(t.TempDir(), "mnt")
		mkdir(t, at)
		copied := filepath.Join(t.TempDir(), "copy")
		run(t, "cp", "--sparse=always", file, copied)
		run(t, "mount", "-t", "xfs", "-o", "loop,nouuid", copied, at)
		btrfstest.UnmountAll(t, at)
		args = []string{"xfs_repair", "-n", "-f", copied}
	} else {
		out, err := exec.Command("dumpe2fs", "-h", file).Output()
		if err != nil || strings.Contains(string(out), "needs_recovery") {
			t.Errorf("its journal is not empty: %v", err)
		}
	}
	run(t, args[0], args[1:]...)
}

func run(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Errorf("%s %q: %v: %s", name, args, err, out)
	}
}

// A snapshot of one kind may be restored as another, but not as what it cannot be.
func TestCopyOfAnotherKind(t *testing.T) {
	r := newDiskRig(t, rigOptions{})
	all := map[string]*csi.VolumeCapability{"btrfs": formatted("btrfs"), "ext4": formatted("ext4"), "xfs": formatted("xfs"), "block": device(nodeWriter)}
	for made, c := range all {
		snap := r.snapshot("snap-"+made, r.createDisk("pvc-"+made, c))
		for asked, other := range all {
			request := &csi.CreateVolumeRequest{Name: made + "-as-" + asked, VolumeContentSource: fromSnapshot(snap), VolumeCapabilities: []*csi.VolumeCapability{other}}
			if made != asked && (made == "btrfs" || asked == "btrfs" || made != "block" && asked != "block") {
				_, err := r.CreateVolume(t.Context(), request)
				wantCode(t, err, codes.InvalidArgument, "volume mode and the fsType of the source")
				continue
			}
			volume := r.createAs(request).GetVolumeId()
			err := r.stage(volume, other)
			if made == "block" && asked != "block" { // an empty device has no filesystem, and gets none
				wantCode(t, err, codes.FailedPrecondition, "no whole filesystem")
				continue
			}
			must(t, err)
			must(t, r.unstage(volume))
		}
		_, err := r.CreateVolume(t.Context(), &csi.CreateVolumeRequest{Name: "view-" + made, VolumeContentSource: fromSnapshot(snap), VolumeCapabilities: []*csi.VolumeCapability{readerOf(c)}})
		if made == "btrfs" {
			must(t, err)
		} else {
			wantCode(t, err, codes.InvalidArgument, "not there yet")
		}
	}
}

// readerOf returns a capability of the same kind for readers.
func readerOf(c *csi.VolumeCapability) *csi.VolumeCapability {
	return &csi.VolumeCapability{AccessMode: reader().GetAccessMode(), AccessType: c.GetAccessType()}
}

// What is not there yet says so, and leaves nothing behind.
func TestDisksDoNotGrowYet(t *testing.T) {
	eachKind(t, func(t *testing.T, r *rig, c *csi.VolumeCapability) {
		volume := r.createDisk("pvc-1", c)
		_, err := r.CreateVolume(t.Context(), &csi.CreateVolumeRequest{
			Name: "clone", CapacityRange: sized(2 * diskSize), VolumeContentSource: fromVolume(volume), VolumeCapabilities: []*csi.VolumeCapability{c},
		})
		wantCode(t, err, codes.OutOfRange, "not there yet")
		wantGone(t, filepath.Join(r.state, "pools", "default", "active", "clone"))
		_, err = r.ControllerExpandVolume(t.Context(), &csi.ControllerExpandVolumeRequest{VolumeId: volume, CapacityRange: sized(2 * diskSize)})
		wantCode(t, err, codes.InvalidArgument, "cannot be expanded yet")
	})
}

// Who froze the filesystem before, such as a backup hook, thaws it.
func TestFrozenByAHook(t *testing.T) {
	r := newDiskRig(t, rigOptions{})
	c := formatted("ext4")
	volume := r.createDisk("pvc-1", c)
	target := r.targetPath("pod-1", volume)
	must(t, r.stage(volume, c))
	must(t, r.publish(volume, target, c, false))
	run(t, "fsfreeze", "--freeze", target)
	thaw := sync.OnceFunc(func() { run(t, "fsfreeze", "--unfreeze", target) })
	defer thaw()
	r.snapshot("snap", volume)
	thaw() // fails if it is not frozen
	put(t, c, target, []byte("data"))
}

// A driver that was killed while it took a snapshot has left the filesystem frozen. The next one
// thaws it before it serves.
func TestThawedAtTheStart(t *testing.T) {
	for _, c := range []*csi.VolumeCapability{formatted("ext4"), formatted("xfs")} {
		r := newDiskRig(t, rigOptions{})
		volume := r.createDisk("pvc-1", c)
		target := r.targetPath("pod-1", volume)
		must(t, r.stage(volume, c))
		must(t, r.publish(volume, target, c, false))
		slot := filepath.Join(r.state, "pools", "default", "committed", "snap")
		must(t, os.Mkdir(slot, 0o700))
		record, err := meta.Record{ID: "snap", Name: "snap", Kind: meta.Committed, Content: meta.Content(c.GetMount().GetFsType()), State: meta.Creating, Size: diskSize, Source: meta.Volume(volume)}.Encode()
		must(t, err)
		must(t, unix.Setxattr(slot, meta.LedgerXattr, record, 0))
		run(t, "fsfreeze", "--freeze", target)
		_, err = r.engine.Reconcile(t.Context())
		must(t, err)
		put(t, c, target, []byte("data"))
		wantGone(t, slot)
	}
}

// The disks of one name in two pools of two drivers are two.
func TestDiskOfAnotherPoolIsNotInUse(t *testing.T) {
	c := device(nodeWriter)
	one, two := newDiskRig(t, rigOptions{}), newDiskRig(t, rigOptions{})
	volume := one.createDisk("pvc-1", c)
	two.createDisk("pvc-1", c)
	must(t, one.stage(volume, c))
	two.wantDevice(volume, false)
	must(t, two.delete(volume))
	one.wantDevice(volume, true)
}

// A mount of the device that was not made by the driver counts, too.
func TestDeviceIsMountedElsewhere(t *testing.T) {
	r := newDiskRig(t, rigOptions{})
	c := formatted("ext4")
	volume := r.createDisk("pvc-1", c)
	must(t, r.stage(volume, c))
	elsewhere := t.TempDir()
	bindMount(t, r.stagingPath(volume), elsewhere)
	defer btrfstest.UnmountAll(t, elsewhere)
	must(t, r.unstage(volume))
	r.wantDevice(volume, true)
	wantCode(t, r.delete(volume), codes.FailedPrecondition, elsewhere)
	must(t, unix.Unmount(elsewhere, 0))
	r.wantDevice(volume, false)
	must(t, r.delete(volume))
}

// The health of a volume says when its disk file takes nearly all that it may.
func TestDiskFileHoldsMore(t *testing.T) {
	r := newDiskRig(t, rigOptions{})
	c := device(nodeWriter)
	volume := r.createAs(&csi.CreateVolumeRequest{Name: "pvc-1", CapacityRange: sized(64 * mib), VolumeCapabilities: []*csi.VolumeCapability{c}}).GetVolumeId()
	target := r.targetPath("pod-1", volume)
	must(t, r.stage(volume, c))
	must(t, r.publish(volume, target, c, false))
	r.healthOf(volume)
	put(t, c, target, noise(64*mib))
	r.sync()
	r.healthOf(volume)
	// A limit just above what is used stands for random writes.
	limit := func(bytes int64) {
		out, err := exec.Command("btrfs", "qgroup", "limit", fmt.Sprint(bytes), r.source(volume)).CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	limit(70 * mib)
	r.healthOf(volume, "DiskFileHoldsMore")
	limit(2*64*mib + 64*mib)
	r.healthOf(volume)
}

func TestGroupOfDisksIsRefused(t *testing.T) {
	r := newDiskRig(t, rigOptions{})
	files, disk := r.create("files"), r.createDisk("disk", formatted("ext4"))
	_, err := r.engine.CommitGroup(t.Context(), snapshot.Spec{Name: "group"}, []string{files, disk})
	wantCode(t, statusOf(err), codes.InvalidArgument, "disk", "not there yet")
	if names, err := os.ReadDir(filepath.Join(r.state, "pools", "default", "committed")); err != nil || len(names) > 0 {
		t.Errorf("left behind: %v, %v", names, err)
	}
}
