package driver

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs"
)

// healthOf fails the test unless the health of a volume has exactly these reasons.
func (r *rig) healthOf(volume string, want ...string) {
	r.t.Helper()
	health, err := r.ControllerGetVolumeHealth(r.t.Context(), &csi.ControllerGetVolumeHealthRequest{VolumeId: volume})
	must(r.t, err)
	var got []string
	for _, status := range health.GetVolumeHealth().GetHealthStatuses() {
		got = append(got, status.GetReason())
	}
	if !slices.Equal(got, want) {
		r.t.Errorf("health of %s is %q, wanted %q", volume, got, want)
	}
}

// TestMadeReadOnly: the owner of a volume's root directory can make it read-only. Then no
// pod gets it read-write. Pods that only read, and all other operations, still work.
func TestMadeReadOnly(t *testing.T) {
	t.Parallel()
	r := newRig(t, rigOptions{})
	volume, target := r.published("pvc")
	must(t, btrfs.SetReadOnly(r.source(volume), true))
	r.healthOf(volume, "SubvolumeReadOnly")
	must(t, r.publish(volume, target, writer(), false)) // already published
	other := r.targetPath("pod-2", volume)
	wantCode(t, r.publish(volume, other, writer(), false), codes.FailedPrecondition, "property set "+r.source(volume)+" ro false")
	must(t, r.publish(volume, other, writer(), true))
	must(t, r.unpublish(volume, other))
	must(t, r.unstage(volume))
	must(t, r.stage(volume, writer()))
	r.snapshot("snap", volume)
	clone := r.createAs(&csi.CreateVolumeRequest{Name: "clone", VolumeContentSource: fromVolume(volume)}).GetVolumeId()
	r.healthOf(clone)

	must(t, btrfs.SetReadOnly(r.source(volume), false))
	r.healthOf(volume)
	must(t, r.publish(volume, other, writer(), false))
	must(t, btrfs.SetReadOnly(r.source(volume), true))
	for _, at := range []string{other, target} {
		must(t, r.unpublish(volume, at))
	}
	must(t, r.unstage(volume))
	must(t, r.delete(volume))
}

// swapOn makes an active swap file. off, or the end of the test before the unmount,
// deactivates it, even after a rename of the file.
func swapOn(t *testing.T, path string) (off func()) {
	t.Helper()
	f, err := os.Create(path)
	must(t, err)
	must(t, unix.Fallocate(int(f.Fd()), 0, 0, 16*mib))
	must(t, f.Chmod(0o600))
	command(t, "mkswap", path)
	command(t, "swapon", path)
	off = sync.OnceFunc(func() {
		command(t, "swapoff", fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), f.Fd()))
		must(t, f.Close())
	})
	t.Cleanup(off)
	return off
}

// TestActiveSwapFile: the kernel does not snapshot a subvolume with an active swap file.
// The error says what to do.
func TestActiveSwapFile(t *testing.T) {
	t.Parallel()
	r := newRig(t, rigOptions{})
	volume := r.createAs(&csi.CreateVolumeRequest{Name: "pvc", Parameters: map[string]string{"nodatacow": "true"}}).GetVolumeId()
	off := swapOn(t, filepath.Join(r.source(volume), "swap file"))
	r.healthOf(volume, "SwapFile")
	r.healthOf(r.create("other"))
	clone := &csi.CreateVolumeRequest{Name: "clone", VolumeContentSource: fromVolume(volume), VolumeCapabilities: []*csi.VolumeCapability{writer()}}
	snap := &csi.CreateSnapshotRequest{Name: "snap", SourceVolumeId: volume}
	_, err := r.CreateVolume(t.Context(), clone)
	wantCode(t, err, codes.FailedPrecondition, "swapoff")
	_, err = r.CreateSnapshot(t.Context(), snap)
	wantCode(t, err, codes.FailedPrecondition, "swapoff")
	off()
	r.healthOf(volume)
	_, err = r.CreateVolume(t.Context(), clone)
	must(t, err)
	_, err = r.CreateSnapshot(t.Context(), snap)
	must(t, err)
}

// TestCompressionOverruled: mount options of the pool override the parameters of the class.
func TestCompressionOverruled(t *testing.T) {
	t.Parallel()
	for option, want := range map[string]map[string]string{ // compression to reason
		"compress-force=zstd": {"none": "CompressionOverruled", "zstd": "", "": ""},
		"compress=zstd":       {"none": "", "lzo": ""},
		"nodatacow":           {"zstd": "CompressionOverruled", "none": "", "": ""},
	} {
		t.Run(option, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, rigOptions{mount: []string{option}})
			for compression, reason := range want {
				parameters := map[string]string{}
				if compression != "" {
					parameters["compression"] = compression
				}
				volume := r.createAs(&csi.CreateVolumeRequest{Name: "pvc-" + compression, Parameters: parameters}).GetVolumeId()
				var reasons []string
				if reason != "" {
					reasons = append(reasons, reason)
				}
				r.healthOf(volume, reasons...)
			}
		})
	}
}

// TestSwapFileBelowADeadFilesystem: a swap file is hidden below a filesystem that does not
// answer. The health of a volume must not wait for that filesystem.
func TestSwapFileBelowADeadFilesystem(t *testing.T) {
	t.Parallel()
	r := newRig(t, rigOptions{})
	volume := r.createAs(&csi.CreateVolumeRequest{Name: "pvc", Parameters: map[string]string{"nodatacow": "true"}}).GetVolumeId()
	at := t.TempDir()
	bindMount(t, r.source(volume), at)
	must(t, unix.Mount("", at, "", unix.MS_PRIVATE, "")) // mounts here must not propagate to the source
	t.Cleanup(func() { must(t, unix.Unmount(at, unix.MNT_DETACH)) })
	swapOn(t, filepath.Join(at, "swap file"))
	deadFilesystem(t, at)
	r.healthOf(volume, "SwapFile")
	r.healthOf(r.create("other"))
}

// deadFilesystem mounts a filesystem that does not answer until the test ends.
func deadFilesystem(t *testing.T, at string) {
	t.Helper()
	fuse, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	must(t, err)
	must(t, unix.Mount("dead", at, "fuse", 0, fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0", fuse.Fd())))
	t.Cleanup(func() {
		must(t, fuse.Close()) // pending calls fail
		must(t, unix.Unmount(at, unix.MNT_DETACH))
	})
}
