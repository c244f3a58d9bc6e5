package driver

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs"
	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs/btrfstest"
	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
	"github.com/btrfs-csi/btrfs-csi/pkg/mount"
)

const (
	singleWriter = csi.VolumeCapability_AccessMode_SINGLE_NODE_SINGLE_WRITER
	multiWriter  = csi.VolumeCapability_AccessMode_SINGLE_NODE_MULTI_WRITER
	nodeWriter   = csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER
	nodeReader   = csi.VolumeCapability_AccessMode_SINGLE_NODE_READER_ONLY
)

// The functions below add faults to real mounts.

type attacher = func(source mount.Source, flags mount.Flags, at mount.Target) error

// broken returns an error after the mount.
func broken(real attacher) attacher {
	return func(source mount.Source, flags mount.Flags, at mount.Target) error {
		if err := real(source, flags, at); err != nil {
			return err
		}
		return errors.New("broken mount")
	}
}

func brokenDetach(mount.Target) error { return errors.New("broken unmount") }

// lyingDetach succeeds without an unmount.
func lyingDetach(mount.Target) error { return nil }

// attachOf mounts the directory other instead of the source.
func attachOf(other string) attacher {
	return func(_ mount.Source, flags mount.Flags, at mount.Target) error {
		return mount.Attach(mount.Path(other), flags, at)
	}
}

func TestLifeOfAMount(t *testing.T) {
	r := newRig(t, rigOptions{})
	volume, target := r.published("pvc-1")
	write(t, filepath.Join(target, "file"), "data")
	wantFile(t, filepath.Join(r.source(volume), "file"), "data")
	info, err := os.Stat(filepath.Dir(target))
	must(t, err)
	if info.Mode().Perm() != 0o750 {
		t.Errorf("parent of the target: %v", info.Mode())
	}

	must(t, r.unpublish(volume, target))
	wantGone(t, target)
	must(t, r.unpublish(volume, target))
	must(t, r.unstage(volume))
	must(t, r.unstage(volume))
	wantMounts(t, r.stagingPath(volume), 0)
	wantFile(t, filepath.Join(r.source(volume), "file"), "data")
	must(t, r.delete(volume))
	must(t, r.unpublish(volume, target))
}

func TestPublishTwiceDoesNotStackMounts(t *testing.T) {
	r := newRig(t, rigOptions{})
	volume, target := r.published("pvc-1")
	for range 3 {
		must(t, r.stage(volume, writer()))
		must(t, r.publish(volume, target, writer(), false))
	}
	wantMounts(t, r.stagingPath(volume), 1)
	wantMounts(t, target, 1)
}

func TestFlagsHold(t *testing.T) {
	for name, test := range map[string]struct {
		pool     []string // mount options of the pool
		mode     csi.VolumeCapability_AccessMode_Mode
		flags    []string
		readOnly bool
		want     string
	}{
		"none":             {mode: nodeWriter, want: "relatime,rw"},
		"all":              {mode: nodeWriter, flags: []string{"nodev", "nosuid", "noexec", "noatime", "nodiratime"}, want: "noatime,nodev,nodiratime,noexec,nosuid,rw"},
		"rw is no flag":    {mode: nodeWriter, flags: []string{"rw"}, want: "relatime,rw"},
		"ro by flag":       {mode: nodeWriter, flags: []string{"ro"}, want: "relatime,ro"},
		"ro by request":    {mode: nodeWriter, readOnly: true, want: "relatime,ro"},
		"ro beats rw":      {mode: nodeWriter, flags: []string{"rw"}, readOnly: true, want: "relatime,ro"},
		"ro by mode":       {mode: nodeReader, want: "relatime,ro"},
		"pool's are kept":  {pool: []string{"nodev", "noatime"}, mode: nodeWriter, flags: []string{"nosuid"}, want: "noatime,nodev,nosuid,rw"},
		"relatime instead": {pool: []string{"noatime"}, mode: nodeWriter, flags: []string{"relatime"}, want: "relatime,rw"},
		"noatime instead":  {pool: []string{"relatime"}, mode: nodeWriter, flags: []string{"noatime"}, want: "noatime,rw"},
		"strictatime pool": {pool: []string{"strictatime"}, mode: nodeWriter, want: "rw"},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, rigOptions{mount: test.pool})
			volume := r.create("pvc-1")
			target := r.targetPath("pod-1", volume)
			c := capability(test.mode, test.flags...)
			must(t, r.stage(volume, c))
			must(t, r.publish(volume, target, c, test.readOnly))
			at, err := mount.PlaceAt(target)
			must(t, err)
			if at.Flags.String() != test.want {
				t.Errorf("want %s, got %s", test.want, at.Flags)
			}
			err = os.WriteFile(filepath.Join(target, "f"), nil, 0o600)
			if at.Flags.ReadOnly() != errors.Is(err, unix.EROFS) {
				t.Errorf("mounted %s, a write gives %v", at.Flags, err)
			}
			must(t, r.publish(volume, target, c, test.readOnly)) // the same request again
		})
	}
}

func TestFlagsThatDoNotHoldAreAFailure(t *testing.T) {
	r := newRig(t, rigOptions{})
	volume := r.create("pvc-1")
	r.driver.attach = func(source mount.Source, flags mount.Flags, at mount.Target) error { // the pool turns read-only after the mount
		return errors.Join(mount.Attach(source, flags, at), btrfstest.RemountReadOnly(r.state))
	}
	wantCode(t, r.stage(volume, writer()), codes.Aborted, "relatime,ro", "relatime,rw")
	wantMounts(t, r.stagingPath(volume), 0)
}

// The kubelet sees a copy of the mount in another namespace.
func TestFlagsHoldInOtherNamespaces(t *testing.T) {
	r := newRig(t, rigOptions{})
	r.share()
	node := exec.Command("unshare", "--mount", "--propagation", "slave", "cat")
	hold, err := node.StdinPipe()
	must(t, err)
	must(t, node.Start())
	t.Cleanup(func() { _ = hold.Close(); _ = node.Wait() })
	table := fmt.Sprintf("/proc/%d/mountinfo", node.Process.Pid)
	waitFor(t, "a namespace of its own", func() bool {
		own, _ := os.Readlink("/proc/self/ns/mnt")
		theirs, _ := os.Readlink(fmt.Sprintf("/proc/%d/ns/mnt", node.Process.Pid))
		return theirs != "" && theirs != own
	})
	volume := r.create("pvc-1")
	c := capability(nodeWriter, "nosuid", "nodev", "noatime")
	must(t, r.stage(volume, c))
	for _, test := range []struct {
		pod      string
		readOnly bool
		want     string
	}{{"pod-1", false, "rw,nosuid,nodev,noatime"}, {"pod-2", true, "ro,nosuid,nodev,noatime"}} {
		target := r.targetPath(test.pod, volume)
		must(t, r.publish(volume, target, c, test.readOnly))
		lines, err := os.ReadFile(table)
		must(t, err)
		if !strings.Contains(string(lines), " "+target+" "+test.want+" ") {
			t.Errorf("%s: want %s, got\n%s", target, test.want, lines)
		}
	}
}

// TestMountInsideAVolumeIsSeenThereOnly: a pod with mountPropagation Bidirectional, or an
// administrator, mounts something inside a published volume. That mount must not appear in
// the pool, where it would block a delete, or at other targets, where it would hide data of
// other pods.
func TestMountInsideAVolumeIsSeenThereOnly(t *testing.T) {
	r := newRig(t, rigOptions{})
	r.share()
	volume, target := r.published("pvc-1")
	other := r.targetPath("pod-2", volume)
	must(t, r.publish(volume, other, writer(), false))
	mkdir(t, filepath.Join(target, "sub"))
	for _, place := range []string{"sub", "."} {
		at := filepath.Join(target, place)
		before := mountsAt(t, at)
		must(t, unix.Mount("none", at, "tmpfs", 0, ""))
		wantMounts(t, at, before+1)
		for name, root := range map[string]string{"pool": r.source(volume), "staging path": r.stagingPath(volume), "other target": other} {
			var st unix.Statfs_t
			must(t, unix.Statfs(filepath.Join(root, place), &st))
			if st.Type != unix.BTRFS_SUPER_MAGIC {
				t.Errorf("what is mounted at %q of the target is seen in the %s", place, name)
			}
		}
		must(t, btrfstest.Unmount(at))
	}
}

func TestPublishOtherwiseIsAlreadyExists(t *testing.T) {
	r := newRig(t, rigOptions{})
	volume, target := r.published("pvc-1")
	wantCode(t, r.publish(volume, target, writer(), true), codes.AlreadyExists, target, "relatime,ro")
	wantCode(t, r.publish(volume, target, capability(nodeWriter, "nodev"), false), codes.AlreadyExists, "nodev")
	wantCode(t, r.stage(volume, reader()), codes.AlreadyExists)
	wantMounts(t, target, 1)
	write(t, filepath.Join(target, "file"), "still writable")
}

// TestPoolRemountedOtherwise: flags that a mount has from its pool, and not from the
// request, are no reason to refuse the same request.
func TestPoolRemountedOtherwise(t *testing.T) {
	r := newRig(t, rigOptions{})
	volume, target := r.published("pvc-1")
	must(t, unix.Mount("", r.state, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_NOATIME|unix.MS_NODEV, ""))
	must(t, r.stage(volume, writer()))
	must(t, r.publish(volume, target, writer(), false))
	wantMounts(t, target, 1)
	wantCode(t, r.publish(volume, target, capability(nodeWriter, "noatime"), false), codes.AlreadyExists, "noatime")
	_, other := r.published("pvc-2")
	mounted, err := mount.PlaceAt(other)
	must(t, err)
	if have := mounted.Flags.String(); have != "noatime,nodev,rw" {
		t.Errorf("a new mount has %s", have)
	}
}

func TestReadOnlyAndReadWritePodsOnOneNode(t *testing.T) {
	r := newRig(t, rigOptions{})
	volume := r.create("pvc-1")
	must(t, r.stage(volume, capability(multiWriter)))
	writes, reads := r.targetPath("pod-1", volume), r.targetPath("pod-2", volume)
	must(t, r.publish(volume, writes, capability(multiWriter), false))
	must(t, r.publish(volume, reads, capability(multiWriter), true))
	write(t, filepath.Join(writes, "file"), "shared")
	wantFile(t, filepath.Join(reads, "file"), "shared")
	if err := os.WriteFile(filepath.Join(reads, "file"), nil, 0o600); !errors.Is(err, unix.EROFS) {
		t.Errorf("the read-only pod writes: %v", err)
	}
	must(t, r.unpublish(volume, reads))
	write(t, filepath.Join(writes, "file"), "still writable")
}

func TestSingleWriterIsPublishedOnce(t *testing.T) {
	r := newRig(t, rigOptions{})
	volume := r.create("pvc-1")
	first, second := r.targetPath("pod-1", volume), r.targetPath("pod-2", volume)
	must(t, r.stage(volume, capability(singleWriter)))
	must(t, r.publish(volume, first, capability(singleWriter), false))
	must(t, r.publish(volume, first, capability(singleWriter), false))
	wantCode(t, r.publish(volume, second, capability(singleWriter), false), codes.FailedPrecondition, first)
	wantGone(t, second)
	must(t, r.unpublish(volume, first))
	must(t, r.publish(volume, second, capability(singleWriter), false))
}

func TestPublishNeedsStage(t *testing.T) {
	r := newRig(t, rigOptions{})
	volume := r.create("pvc-1")
	target := r.targetPath("pod-1", volume)
	wantCode(t, r.publish(volume, target, writer(), false), codes.FailedPrecondition, "stage")
	_, err := r.NodePublishVolume(t.Context(), &csi.NodePublishVolumeRequest{VolumeId: volume, TargetPath: target, VolumeCapability: writer()})
	wantCode(t, err, codes.FailedPrecondition, "staging_target_path")
	_, err = r.NodePublishVolume(t.Context(), &csi.NodePublishVolumeRequest{
		VolumeId: volume, TargetPath: target, StagingTargetPath: filepath.Join(r.kubelet, "absent"), VolumeCapability: writer(),
	})
	wantCode(t, err, codes.FailedPrecondition, "stage")
	wantGone(t, target)
}

func TestUnknownVolumeIsNotFound(t *testing.T) {
	r := newRig(t, rigOptions{})
	for _, volume := range []string{"absent", "../x", "a/b", strings.Repeat("x", 300)} {
		path := filepath.Join(r.kubelet, "there")
		mkdir(t, path)
		_, err := r.NodeStageVolume(t.Context(), &csi.NodeStageVolumeRequest{VolumeId: volume, StagingTargetPath: path, VolumeCapability: writer()})
		wantCode(t, err, codes.NotFound)
		_, err = r.NodePublishVolume(t.Context(), &csi.NodePublishVolumeRequest{VolumeId: volume, StagingTargetPath: path, TargetPath: path, VolumeCapability: writer()})
		wantCode(t, err, codes.NotFound)
		_, err = r.NodeGetVolumeStats(t.Context(), &csi.NodeGetVolumeStatsRequest{VolumeId: volume, VolumePath: path})
		wantCode(t, err, codes.NotFound)
		_, err = r.NodeExpandVolume(t.Context(), &csi.NodeExpandVolumeRequest{VolumeId: volume, VolumePath: path})
		wantCode(t, err, codes.NotFound)
	}
}

// TestRefusedTargets lists targets that must not be mounted on. Each stays unchanged.
func TestRefusedTargets(t *testing.T) {
	r := newRig(t, rigOptions{})
	volume := r.create("pvc-1")
	must(t, r.stage(volume, writer()))
	outside := t.TempDir()
	pods := filepath.Join(r.kubelet, "pods")
	mkdir(t, filepath.Join(pods, "full"))
	write(t, filepath.Join(pods, "full", "file"), "data")
	write(t, filepath.Join(pods, "file"), "data")
	must(t, os.Symlink(outside, filepath.Join(pods, "link")))
	must(t, os.Symlink(pods, filepath.Join(pods, "loop")))

	for name, test := range map[string]struct {
		target string
		code   codes.Code
	}{
		"relative":             {"pods/x", codes.InvalidArgument},
		"dots":                 {pods + "/a/../../../x", codes.InvalidArgument},
		"doubled slash":        {pods + "//x", codes.InvalidArgument},
		"trailing slash":       {pods + "/x/", codes.InvalidArgument},
		"outside":              {filepath.Join(outside, "x"), codes.InvalidArgument},
		"kubelet's directory":  {r.kubelet, codes.InvalidArgument},
		"sibling of kubelet's": {r.kubelet + "-other/x", codes.InvalidArgument},
		"link":                 {filepath.Join(pods, "link"), codes.InvalidArgument},
		"below a link":         {filepath.Join(pods, "link", "x"), codes.InvalidArgument},
		"below a link inside":  {filepath.Join(pods, "loop", "x"), codes.InvalidArgument},
		"no parent":            {filepath.Join(pods, "absent", "x"), codes.FailedPrecondition},
		"below a file":         {filepath.Join(pods, "file", "x"), codes.FailedPrecondition},
		"file":                 {filepath.Join(pods, "file"), codes.FailedPrecondition},
		"not empty":            {filepath.Join(pods, "full"), codes.FailedPrecondition},
	} {
		t.Run(name, func(t *testing.T) {
			wantCode(t, r.publish(volume, test.target, writer(), false), test.code)
		})
	}
	wantFile(t, filepath.Join(pods, "full", "file"), "data")
	wantFile(t, filepath.Join(pods, "file"), "data")
	if entries, _ := os.ReadDir(outside); len(entries) > 0 {
		t.Errorf("made outside of the kubelet's directory: %v", entries)
	}
}

func TestEmptyTargetDirectoryIsUsedAndKeptOnFailure(t *testing.T) {
	r := newRig(t, rigOptions{})
	volume := r.create("pvc-1")
	target := r.targetPath("pod-1", volume)
	mkdir(t, target)
	must(t, r.stage(volume, writer()))
	r.driver.attach = broken(mount.Attach)
	wantCode(t, r.publish(volume, target, writer(), false), codes.Aborted, "broken mount")
	wantMounts(t, target, 0) // also fails if the directory is gone
	r.driver.attach = mount.Attach
	must(t, r.publish(volume, target, writer(), false))
}

func TestFailedMountLeavesNothing(t *testing.T) {
	r := newRig(t, rigOptions{})
	volume, other := r.create("pvc-1"), r.create("pvc-2")
	target := r.targetPath("pod-1", volume)
	must(t, r.stage(volume, writer()))
	r.driver.attach = broken(mount.Attach)
	wantCode(t, r.publish(volume, target, writer(), false), codes.Aborted, "broken mount")
	wantGone(t, target)

	r.driver.attach = attachOf(r.source(other))
	wantCode(t, r.publish(volume, target, writer(), false), codes.Aborted, "something else")
	wantMounts(t, target, 1) // the driver must not undo this mount, and reports it
	must(t, btrfstest.Unmount(target))

	r.driver.attach, r.driver.detach = broken(mount.Attach), brokenDetach
	wantCode(t, r.publish(volume, target, writer(), false), codes.Aborted, "broken mount", "broken unmount")
	r.driver.attach, r.driver.detach = mount.Attach, mount.Unmount
	must(t, r.unpublish(volume, target))
	wantGone(t, target)
}

func TestSomethingElseAtTheTargetIsRefusedAndKept(t *testing.T) {
	r := newRig(t, rigOptions{})
	volume, other := r.create("pvc-1"), r.create("pvc-2")
	must(t, r.stage(volume, writer()))
	must(t, r.stage(other, writer()))
	target := r.targetPath("pod-1", volume)
	must(t, r.publish(other, target, writer(), false))
	wantCode(t, r.publish(volume, target, writer(), false), codes.FailedPrecondition, other)
	wantCode(t, r.unpublish(volume, target), codes.FailedPrecondition, other)
	wantMounts(t, target, 1)

	foreign := r.targetPath("pod-2", volume)
	mkdir(t, foreign)
	must(t, unix.Mount("none", foreign, "tmpfs", 0, ""))
	write(t, filepath.Join(foreign, "file"), "data")
	wantCode(t, r.publish(volume, foreign, writer(), false), codes.FailedPrecondition, "tmpfs")
	wantCode(t, r.unpublish(volume, foreign), codes.FailedPrecondition, "tmpfs")
	wantFile(t, filepath.Join(foreign, "file"), "data")
}

// k3s-forge ignored a failed unmount and removed the target recursively, with all data of
// the volume.
func TestFailedUnmountRemovesNothing(t *testing.T) {
	r := newRig(t, rigOptions{})
	volume, target := r.published("pvc-1")
	write(t, filepath.Join(target, "file"), "data")
	busy, err := os.Open(filepath.Join(target, "file"))
	must(t, err)
	wantCode(t, r.unpublish(volume, target), codes.Aborted, target)
	wantFile(t, filepath.Join(target, "file"), "data")
	wantFile(t, filepath.Join(r.source(volume), "file"), "data")
	must(t, busy.Close())
	must(t, r.unpublish(volume, target))
	wantGone(t, target)
	wantFile(t, filepath.Join(r.source(volume), "file"), "data")
}

func TestUnmountThatOnlySaysSoEnds(t *testing.T) {
	r := newRig(t, rigOptions{})
	volume, target := r.published("pvc-1")
	r.driver.detach = lyingDetach
	wantCode(t, r.unpublish(volume, target), codes.Aborted, "in vain")
	wantMounts(t, target, 1)
	r.driver.detach = mount.Unmount
}

func TestUnpublishTakesAllOfAStack(t *testing.T) {
	r := newRig(t, rigOptions{})
	volume, target := r.published("pvc-1")
	bindMount(t, r.source(volume), target)
	bindMount(t, r.source(volume), target)
	wantMounts(t, target, 3)
	must(t, r.unpublish(volume, target))
	wantGone(t, target)
}

func TestUnpublishKeepsWhatIsNoMount(t *testing.T) {
	r := newRig(t, rigOptions{})
	volume := r.create("pvc-1")
	full := r.targetPath("pod-1", volume)
	mkdir(t, full)
	write(t, filepath.Join(full, "file"), "data")
	wantCode(t, r.unpublish(volume, full), codes.FailedPrecondition, full)
	wantFile(t, filepath.Join(full, "file"), "data")

	file := r.targetPath("pod-2", volume)
	write(t, file, "data")
	wantCode(t, r.unpublish(volume, file), codes.FailedPrecondition, file)
	wantFile(t, file, "data")

	victim := t.TempDir()
	link := r.targetPath("pod-3", volume)
	must(t, os.Symlink(victim, link))
	wantCode(t, r.unpublish(volume, link), codes.InvalidArgument, link)
	if _, err := os.Lstat(link); err != nil {
		t.Error(err)
	}
	must(t, r.unpublish(volume, filepath.Join(r.kubelet, "absent", "too")))
}

func TestUnpublishOfADeletedVolume(t *testing.T) {
	r := newRig(t, rigOptions{})
	volume, target := r.published("pvc-1")
	must(t, r.engine.Remove(t.Context(), meta.Volume(volume))) // bypasses the driver
	must(t, r.unpublish(volume, target))
	wantGone(t, target)
	must(t, r.unstage(volume))
	wantMounts(t, r.stagingPath(volume), 0)
}

func TestDeleteOfAMountedVolumeIsRefused(t *testing.T) {
	r := newRig(t, rigOptions{})
	volume, target := r.published("pvc-1")
	write(t, filepath.Join(target, "file"), "data")
	must(t, r.unstage(volume))
	wantCode(t, r.delete(volume), codes.FailedPrecondition, target)
	wantFile(t, filepath.Join(target, "file"), "data")

	must(t, os.Mkdir(filepath.Join(target, "sub"), 0o700))
	subPath := filepath.Join(r.kubelet, "pods", "subpath")
	mkdir(t, subPath)
	bindMount(t, filepath.Join(target, "sub"), subPath)
	must(t, r.unpublish(volume, target))
	wantCode(t, r.delete(volume), codes.FailedPrecondition, subPath)
	must(t, btrfstest.Unmount(subPath))
	must(t, r.delete(volume))
}

// A pod chooses the names of directories in its volume, and the kubelet mounts them.
func TestDirectoriesInAVolumeDoNotKeepAnotherVolume(t *testing.T) {
	r := newRig(t, rigOptions{})
	volume, target := r.published("pvc-1")
	victim := r.create("pvc-2")
	inside := filepath.Join(target, "active", victim, "fs")
	mkdir(t, inside)
	subPath := filepath.Join(r.kubelet, "pods", "subpath")
	mkdir(t, subPath)
	bindMount(t, inside, subPath)
	must(t, r.delete(victim))
	wantCode(t, r.delete(volume), codes.FailedPrecondition)
}

func TestVolumeOfTheSameNameElsewhereDoesNotKeepIt(t *testing.T) {
	elsewhere := newRig(t, rigOptions{})
	elsewhere.published("pvc-1")
	r := newRig(t, rigOptions{})
	volume, target := r.published("pvc-1")
	wantCode(t, r.delete(volume), codes.FailedPrecondition, r.kubelet)
	must(t, r.unpublish(volume, target))
	must(t, r.unstage(volume))
	must(t, r.delete(volume))
}

// Whichever request wins, no volume is deleted while it is mounted.
func TestDeleteAgainstPublish(t *testing.T) {
	r := newRig(t, rigOptions{})
	for i := range 30 {
		volume := r.create(fmt.Sprintf("pvc-%d", i))
		staged, deleted := make(chan error), make(chan error)
		go func() { staged <- r.stage(volume, writer()) }()
		go func() { deleted <- r.delete(volume) }()
		stageErr, deleteErr := <-staged, <-deleted
		if stageErr == nil && deleteErr == nil {
			t.Fatalf("%s: staged and deleted", volume)
		}
		if deleteErr != nil && status.Code(deleteErr) != codes.Aborted && status.Code(deleteErr) != codes.FailedPrecondition {
			t.Errorf("delete: %v", deleteErr)
		}
		if stageErr != nil && status.Code(stageErr) != codes.Aborted && status.Code(stageErr) != codes.NotFound {
			t.Errorf("stage: %v", stageErr)
		}
		if deleteErr == nil {
			wantMounts(t, r.stagingPath(volume), 0)
		}
	}
}

func TestBusyVolumeIsAborted(t *testing.T) {
	r := newRig(t, rigOptions{})
	volume, target := r.published("pvc-1")
	release, err := r.driver.lock(t.Context(), volumeLock(volume))
	must(t, err)
	var all sync.WaitGroup
	for name, request := range map[string]func() error{
		"stage":     func() error { return r.stage(volume, writer()) },
		"unstage":   func() error { return r.unstage(volume) },
		"delete":    func() error { return r.delete(volume) },
		"publish":   func() error { return r.publish(volume, target, writer(), false) },
		"unpublish": func() error { return r.unpublish(volume, target) },
	} {
		all.Go(func() {
			if err := request(); status.Code(err) != codes.Aborted {
				t.Errorf("%s: want ABORTED, got %v", name, err)
			}
		})
	}
	all.Wait()
	release()
	must(t, r.unpublish(volume, target))
}

func TestNonStandardKubeletDir(t *testing.T) {
	real := filepath.Join(t.TempDir(), "data")
	mkdir(t, real)
	given := filepath.Join(t.TempDir(), "kubelet")
	must(t, os.Symlink(real, given))
	r := newRig(t, rigOptions{Options: Options{KubeletDir: given}})
	volume, target := r.published("pvc-1")
	write(t, filepath.Join(target, "file"), "data")

	resolved, err := filepath.EvalSymlinks(target)
	must(t, err)
	must(t, r.publish(volume, resolved, writer(), false)) // the same target by its other path
	wantMounts(t, target, 1)
	wantCode(t, r.delete(volume), codes.FailedPrecondition)
	must(t, r.unpublish(volume, resolved))
	wantGone(t, target)
	wantCode(t, r.publish(volume, "/var/lib/kubelet/pods/x/mount", writer(), false), codes.InvalidArgument, given)
}

func TestKubeletDirWithBlanks(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a kubelet\\dir")
	mkdir(t, dir)
	r := newRig(t, rigOptions{Options: Options{KubeletDir: dir}})
	volume, target := r.published("pvc-1")
	must(t, r.publish(volume, target, writer(), false))
	wantMounts(t, target, 1)
	must(t, r.unpublish(volume, target))
	wantGone(t, target)
}

func TestStatsAreTheVolumes(t *testing.T) {
	r := newRig(t, rigOptions{})
	volume, target := r.published("pvc-1")
	stats := func(path string) *csi.VolumeUsage {
		t.Helper()
		response, err := r.NodeGetVolumeStats(t.Context(), &csi.NodeGetVolumeStatsRequest{VolumeId: volume, VolumePath: path})
		must(t, err)
		return response.GetUsage()[0]
	}
	before := stats(target)
	write(t, filepath.Join(target, "file"), strings.Repeat("x", 10*mib))
	r.sync()
	after := stats(target)
	if after.GetTotal() != 100*mib || after.GetUnit() != csi.VolumeUsage_BYTES {
		t.Errorf("want 100 MiB in total, got %v", after)
	}
	if grown := after.GetUsed() - before.GetUsed(); grown < 10*mib || grown > 12*mib {
		t.Errorf("want 10 MiB more used, got %d more: %v, %v", grown, before, after)
	}
	if after.GetAvailable() != after.GetTotal()-after.GetUsed() {
		t.Errorf("want what is left as available, got %v", after)
	}
	if staged := stats(r.stagingPath(volume)); staged.GetUsed() != after.GetUsed() {
		t.Errorf("at the staging path: %v, at the target: %v", staged, after)
	}
	other := r.create("pvc-2")
	for _, path := range []string{"some/path", r.kubelet, filepath.Join(r.kubelet, "absent"), r.source(volume), "/"} {
		_, err := r.NodeGetVolumeStats(t.Context(), &csi.NodeGetVolumeStatsRequest{VolumeId: volume, VolumePath: path})
		wantCode(t, err, codes.NotFound)
	}
	_, err := r.NodeGetVolumeStats(t.Context(), &csi.NodeGetVolumeStatsRequest{VolumeId: other, VolumePath: target})
	wantCode(t, err, codes.NotFound, target)
}

func TestStatsWithoutQuotaAreThePools(t *testing.T) {
	r := newRig(t, rigOptions{quota: btrfs.QuotaNone})
	volume, target := r.published("pvc-1")
	response, err := r.NodeGetVolumeStats(t.Context(), &csi.NodeGetVolumeStatsRequest{VolumeId: volume, VolumePath: target})
	must(t, err)
	var st unix.Statfs_t
	must(t, unix.Statfs(r.state, &st))
	if got := response.GetUsage()[0]; got.GetTotal() != int64(st.Blocks)*st.Bsize || got.GetAvailable() < 1<<30 {
		t.Errorf("want the pool's %d bytes, got %v", int64(st.Blocks)*st.Bsize, got)
	}
}

// A pool that is smaller than the sum of its limits has less space than one limit.
func TestStatsDoNotPromiseMoreThanThePoolHas(t *testing.T) {
	r := newRig(t, rigOptions{})
	volume := r.createAs(&csi.CreateVolumeRequest{Name: "pvc-1", CapacityRange: sized(1 << 30)}).GetVolumeId()
	other := r.createAs(&csi.CreateVolumeRequest{Name: "pvc-2", CapacityRange: sized(1700 * mib)}).GetVolumeId()
	fill, err := os.Create(filepath.Join(r.source(other), "fill"))
	must(t, err)
	must(t, unix.Fallocate(int(fill.Fd()), 0, 0, 1600*mib))
	must(t, fill.Close())
	r.sync()
	must(t, r.stage(volume, writer()))
	response, err := r.NodeGetVolumeStats(t.Context(), &csi.NodeGetVolumeStatsRequest{VolumeId: volume, VolumePath: r.stagingPath(volume)})
	must(t, err)
	var st unix.Statfs_t
	must(t, unix.Statfs(r.state, &st))
	if got := response.GetUsage()[0]; got.GetAvailable() >= 1<<30-mib || got.GetAvailable() > int64(st.Bavail)*st.Bsize {
		t.Errorf("%d bytes left in the pool, got %v", int64(st.Bavail)*st.Bsize, got)
	}
}

func TestNodeExpand(t *testing.T) {
	r := newRig(t, rigOptions{})
	volume, target := r.published("pvc-1")
	for _, step := range []struct {
		size *csi.CapacityRange
		want int64
	}{{nil, 100 * mib}, {sized(50 * mib), 100 * mib}, {sized(200 * mib), 200 * mib}, {sized(200 * mib), 200 * mib}} {
		response, err := r.NodeExpandVolume(t.Context(), &csi.NodeExpandVolumeRequest{VolumeId: volume, VolumePath: target, CapacityRange: step.size})
		if err != nil || response.GetCapacityBytes() != step.want {
			t.Errorf("%v: want %d bytes, got %v, %v", step.size, step.want, response, err)
		}
	}
	write(t, filepath.Join(target, "file"), strings.Repeat("x", 150*mib)) // more than the first limit
	_, err := r.NodeExpandVolume(t.Context(), &csi.NodeExpandVolumeRequest{VolumeId: volume, VolumePath: r.kubelet, CapacityRange: sized(300 * mib)})
	wantCode(t, err, codes.NotFound)
}

func TestReadOnlyPoolIsToldAtPublish(t *testing.T) {
	r := newRig(t, rigOptions{})
	volume := r.create("pvc-1")
	must(t, btrfstest.RemountReadOnly(r.state))
	wantCode(t, r.stage(volume, writer()), codes.Unavailable, "read-only")
	must(t, r.stage(volume, capability(nodeReader)))
	target := r.targetPath("pod-1", volume)
	must(t, r.publish(volume, target, writer(), true))
	wantMounts(t, target, 1)
}

func TestViewIsMountedReadOnly(t *testing.T) {
	r := newRig(t, rigOptions{})
	volume, target := r.published("pvc-1")
	write(t, filepath.Join(target, "file"), "old")
	view := r.createAs(&csi.CreateVolumeRequest{
		Name: "view-1", VolumeContentSource: fromSnapshot(r.snapshot("snapshot-1", volume)), VolumeCapabilities: []*csi.VolumeCapability{reader()},
	}).GetVolumeId()
	write(t, filepath.Join(target, "file"), "new")
	at := r.targetPath("pod-2", view)
	must(t, r.stage(view, reader()))
	must(t, r.publish(view, at, reader(), false))
	wantFile(t, filepath.Join(at, "file"), "old")
	if err := os.WriteFile(filepath.Join(at, "file"), nil, 0o600); !errors.Is(err, unix.EROFS) {
		t.Errorf("a write to a view: %v", err)
	}
	other := r.targetPath("pod-3", view)
	wantCode(t, r.publish(view, other, writer(), false), codes.FailedPrecondition, "snapshot-1")
	wantGone(t, other)
	wantCode(t, r.delete(view), codes.FailedPrecondition, r.kubelet)
}

func TestForeignVolumeContextIsRefused(t *testing.T) {
	r := newRig(t, rigOptions{})
	volume := r.createAs(&csi.CreateVolumeRequest{Name: "pvc-1"})
	stage := func(volumeContext map[string]string) error {
		_, err := r.NodeStageVolume(t.Context(), &csi.NodeStageVolumeRequest{
			VolumeId: volume.GetVolumeId(), StagingTargetPath: r.stagingPath("pvc-1"), VolumeCapability: writer(), VolumeContext: volumeContext,
		})
		return err
	}
	wantCode(t, stage(map[string]string{"poolID": "another"}), codes.FailedPrecondition, "poolID")
	with := map[string]string{"storage.kubernetes.io/csiProvisionerIdentity": "123-btrfs-csi.github.io"}
	for key, value := range volume.GetVolumeContext() {
		with[key] = value
	}
	must(t, stage(with))
}

func TestNodeInfoHasAKeyForEachPool(t *testing.T) {
	r := newRig(t, rigOptions{pools: []string{"fast"}})
	response, err := r.NodeGetInfo(t.Context(), &csi.NodeGetInfoRequest{})
	must(t, err)
	if response.GetNodeId() != "node-1" || len(response.GetAccessibleTopology().GetSegments()) != 2 {
		t.Errorf("want node-1 and 2 keys, got %v", response)
	}
	for name, id := range r.engine.PoolIDs() {
		if response.GetAccessibleTopology().GetSegments()["topology.btrfs-csi.github.io/"+id] != "true" {
			t.Errorf("pool %s has no key in %v", name, response)
		}
	}
}

func TestCancelledRequestMountsNothing(t *testing.T) {
	r := newRig(t, rigOptions{})
	volume := r.create("pvc-1")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	path := r.stagingPath(volume)
	_, err := (&node{Driver: r.driver}).NodeStageVolume(ctx, &csi.NodeStageVolumeRequest{VolumeId: volume, StagingTargetPath: path, VolumeCapability: writer()})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("want it cancelled, got %v", err)
	}
	wantMounts(t, path, 0)
}
