package driver

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs/btrfstest"
	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
	"github.com/btrfs-csi/btrfs-csi/pkg/mount"
)

// TestVolumeOfAMount: the last components of the path decide, and only on btrfs.
// FuzzVolumeAt covers more.
func TestVolumeOfAMount(t *testing.T) {
	for root, want := range map[string]string{
		"/pools/default/active/outer/fs/pools/default/active/inner/fs": "inner",
		"/active/pvc-1/fs":          "pvc-1",
		"/removing/active-pvc-1/fs": "pvc-1",
		"/active/pvc-1/fs/sub":      "",
		"/":                         "",
	} {
		if id, is := volumeOfMount(mount.Info{Root: root, Type: "btrfs"}, 0); is != (want != "") || is && id != want {
			t.Errorf("%s: want %q, got %q, %v", root, want, id, is)
		}
	}
	if id, is := volumeOfMount(mount.Info{Root: "/active/pvc-1/fs", Type: "ext4"}, 0); is {
		t.Errorf("on ext4: got %q", id)
	}
}

// TestDriversInVolumesOfDrivers runs three drivers. The state directory of each is in a
// volume of the one before. All keep their promises about mounts.
func TestDriversInVolumesOfDrivers(t *testing.T) {
	for name, volumes := range map[string][]string{
		"volumes of their own names": {"outer", "middle", "inner"},
		"volumes of one name":        {"pvc-1", "pvc-1", "pvc-1"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var rigs []*rig
			var targets []string
			state := ""
			for _, volume := range volumes {
				r := newRig(t, rigOptions{state: state})
				target := onlyHere(t, r, volume)
				write(t, filepath.Join(target, "file"), "data")
				rigs, targets, state = append(rigs, r), append(targets, target), target
			}
			for i, r := range rigs {
				wantCode(t, r.delete(volumes[i]), codes.FailedPrecondition, volumes[i], "mounted")
				wantFile(t, filepath.Join(targets[i], "file"), "data")
			}
			// Each volume is in use exactly while one inside it is mounted.
			last := len(rigs) - 1
			for i, r := range rigs {
				if i > 0 {
					wantCode(t, r.delete(volumes[i]), codes.Unavailable) // its pool was in the deleted volume
				}
				wantFile(t, filepath.Join(targets[last], "file"), "data")
				must(t, r.unpublish(volumes[i], targets[i]))
				wantGone(t, targets[i])
				must(t, r.unstage(volumes[i]))
				wantMounts(t, r.stagingPath(volumes[i]), 0)
				if i < last {
					wantCode(t, rigs[0].delete(volumes[0]), codes.FailedPrecondition, rigs[i+1].kubelet)
				}
			}
			must(t, rigs[0].delete(volumes[0]))
		})
	}
}

// onlyHere publishes a new volume at one target, and checks that a second target is
// refused.
func onlyHere(t *testing.T, r *rig, name string) (target string) {
	t.Helper()
	volume, c := r.create(name), capability(singleWriter)
	target = r.targetPath("pod-1", volume)
	must(t, r.stage(volume, c))
	must(t, r.publish(volume, target, c, false))
	other := r.targetPath("pod-2", volume)
	wantCode(t, r.publish(volume, other, c, false), codes.FailedPrecondition, target)
	wantGone(t, other)
	must(t, r.publish(volume, target, c, false)) // the same request again
	return target
}

// onSubvolumes mounts subvolumes of one btrfs as the pools of a state directory, which has
// no pool itself.
func onSubvolumes(t *testing.T, names ...string) (state, top string) {
	t.Helper()
	top, state = btrfstest.Mount(t), filepath.Join(t.TempDir(), "state")
	for _, name := range names {
		command(t, "btrfs", "subvolume", "create", filepath.Join(top, "@"+name))
		at := filepath.Join(state, "pools", name)
		mkdir(t, at)
		bindMount(t, filepath.Join(top, "@"+name), at)
		t.Cleanup(func() { _ = unix.Unmount(at, unix.MNT_DETACH) })
	}
	return state, top
}

// TestPoolsOfOneFilesystem: a volume is not confused with one of the same ID in another
// pool.
func TestPoolsOfOneFilesystem(t *testing.T) {
	state, top := onSubvolumes(t, "default", "other")
	r := newRig(t, rigOptions{state: state})
	target := onlyHere(t, r, "pvc-1")
	must(t, btrfstest.Unmount(filepath.Join(state, "pools", "other")))
	twin := filepath.Join(top, "@other", "active", "pvc-1")
	mkdir(t, twin)
	command(t, "btrfs", "subvolume", "create", filepath.Join(twin, "fs"))
	held := r.targetPath("pod-3", "pvc-1")
	mkdir(t, held)
	bindMount(t, filepath.Join(twin, "fs"), held)

	wantCode(t, r.delete("pvc-1"), codes.FailedPrecondition, "mounted")
	must(t, r.unpublish("pvc-1", target))
	must(t, r.publish("pvc-1", target, capability(singleWriter), false)) // the volume of the other pool is at held
	must(t, r.unpublish("pvc-1", target))
	must(t, r.unstage("pvc-1"))
	must(t, r.delete("pvc-1"))
	wantMounts(t, held, 1)
	if _, err := os.Stat(filepath.Join(twin, "fs")); err != nil {
		t.Errorf("of the other pool: %v", err)
	}
}

// TestVolumeInTwoPools: a volume that is in two pools cannot be deleted, but can be
// unmounted.
func TestVolumeInTwoPools(t *testing.T) {
	state, top := onSubvolumes(t, "default", "other")
	r := newRig(t, rigOptions{state: state})
	target := onlyHere(t, r, "pvc-1")
	twin := filepath.Join(top, "@other", "active", "pvc-1")
	mkdir(t, twin)
	record := make([]byte, meta.MaxRecordSize)
	n, err := unix.Getxattr(filepath.Join(top, "@default", "active", "pvc-1"), meta.LedgerXattr, record)
	must(t, err)
	must(t, unix.Setxattr(twin, meta.LedgerXattr, record[:n], 0))
	command(t, "btrfs", "subvolume", "create", filepath.Join(twin, "fs"))
	wantCode(t, r.delete("pvc-1"), codes.FailedPrecondition, "more than one pool")
	must(t, r.unpublish("pvc-1", target))
	must(t, r.unstage("pvc-1"))
}

// TestMountsOfPoolsThatGo: a volume is unmounted although its pool is absent. Until then a
// look at its target shows that it is mounted.
func TestMountsOfPoolsThatGo(t *testing.T) {
	state, _ := onSubvolumes(t, "default", "fast")
	r := newRig(t, rigOptions{state: state})
	volume := r.createAs(&csi.CreateVolumeRequest{
		Name: "pvc-1", CapacityRange: sized(100 * mib), Parameters: map[string]string{"pool": "fast"},
	}).GetVolumeId()
	target := r.targetPath("pod-1", volume)
	must(t, r.stage(volume, writer()))
	must(t, r.publish(volume, target, writer(), false))
	write(t, filepath.Join(target, "file"), "data")
	must(t, btrfstest.Unmount(filepath.Join(state, "pools", "fast")))
	wantCode(t, r.delete(volume), codes.Unavailable)
	wantFile(t, filepath.Join(target, "file"), "data")
	must(t, r.unpublish(volume, target))
	must(t, r.unstage(volume))
	wantMounts(t, r.stagingPath(volume), 0)
}

// TestRenamedDirectories: a directory above a mount's root is renamed, as in a rollback of
// the root filesystem. The kernel does not report that. The driver still knows the mounts,
// and does not confuse them with a copy of the directory under its old name.
func TestRenamedDirectories(t *testing.T) {
	top, state := btrfstest.Mount(t), filepath.Join(t.TempDir(), "state")
	root, broken := filepath.Join(top, "@"), filepath.Join(top, "@broken")
	command(t, "btrfs", "subvolume", "create", root)
	mkdir(t, filepath.Join(root, "sub"))
	mkdir(t, state)
	bindMount(t, filepath.Join(root, "sub"), state)
	t.Cleanup(func() { _ = unix.Unmount(state, unix.MNT_DETACH) })
	r := newRig(t, rigOptions{state: state})
	target := onlyHere(t, r, "pvc-1")
	inUse := func() {
		t.Helper()
		wantCode(t, r.delete("pvc-1"), codes.FailedPrecondition, "pvc-1")
		other := r.targetPath("pod-3", "pvc-1")
		wantCode(t, r.publish("pvc-1", other, capability(singleWriter), false), codes.FailedPrecondition, target)
	}
	inUse()
	must(t, os.Rename(filepath.Join(root, "sub"), filepath.Join(root, "renamed")))
	inUse()
	must(t, os.Rename(root, broken))
	inUse()
	command(t, "btrfs", "subvolume", "snapshot", broken, root)
	inUse()
	must(t, os.Rename(filepath.Join(root, "renamed"), filepath.Join(root, "sub")))
	inUse()
	must(t, r.unpublish("pvc-1", target))
	must(t, r.unstage("pvc-1"))
	must(t, r.delete("pvc-1"))
}

// TestMountsInTheWay: a mount that only looks like the volume is not unmounted. A mount of
// the volume is, even after its pool has lost the volume.
func TestMountsInTheWay(t *testing.T) {
	r := newRig(t, rigOptions{})
	volume, target := r.published("pvc-1")
	inside := filepath.Join(target, "active", "pvc-2", "sub")
	mkdir(t, inside)
	at := r.targetPath("pod-2", "pvc-2")
	mkdir(t, at)
	bindMount(t, inside, at)
	wantCode(t, r.unpublish("pvc-2", at), codes.FailedPrecondition, at)
	wantMounts(t, at, 1)
	must(t, r.engine.Remove(t.Context(), meta.Volume(volume))) // bypasses the driver
	must(t, r.unpublish(volume, target))
}
