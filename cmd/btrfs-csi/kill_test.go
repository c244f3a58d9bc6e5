package main

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs/btrfstest"
	"github.com/btrfs-csi/btrfs-csi/pkg/loop"
	"github.com/btrfs-csi/btrfs-csi/pkg/pool"
	"github.com/btrfs-csi/btrfs-csi/pkg/pool/pooltest"
	"github.com/btrfs-csi/btrfs-csi/pkg/snapshot"
	"github.com/btrfs-csi/btrfs-csi/test/testkit"
)

// orderFile is a variable with the path of a file. The file contains a step number and an
// operation. The driver kills itself after that step, counted from the last change.
const orderFile = "BTRFS_CSI_TEST_ORDER_FILE"

// mortal kills its process with SIGKILL after a step. This covers all boundaries except the
// first, before which nothing happens.
type mortal struct {
	file  string
	mu    sync.Mutex // protects the fields below
	order string
	steps int
}

func becomeMortal() {
	m := &mortal{file: os.Getenv(orderFile)}
	if m.file == "" {
		return
	}
	wrapHost = func(h pool.Host) pool.Host {
		return pooltest.Around(h, func(_ pooltest.Step, do func() error) error { return m.step(do) })
	}
	aroundMounts = func(change func() error) error {
		_ = m.step(func() error { return nil }) // the directory exists, the mount does not
		return m.step(change)
	}
}

func (m *mortal) step(do func() error) error {
	err := do()
	m.mu.Lock()
	defer m.mu.Unlock()
	text, orderErr := os.ReadFile(m.file)
	if orderErr != nil {
		return err
	}
	if order := string(text); order != m.order {
		m.order, m.steps = order, 0
	}
	if m.steps++; strings.HasPrefix(m.order, fmt.Sprintf("%d ", m.steps)) {
		_ = unix.Kill(os.Getpid(), unix.SIGKILL)
		select {}
	}
	return err
}

// thing is a volume or snapshot that must exist: its area, data and size.
type thing struct {
	area, data string
	size       int64
}

// victim is a driver that is killed repeatedly, and the operations that it has
// acknowledged.
type victim struct {
	testkit.Node
	t      *testing.T
	order  string
	quota  string
	driver *running
	there  map[string]thing
}

func newVictim(t *testing.T, quota string) *victim {
	v := &victim{
		Node: newNode(t, btrfstest.Mount(t)), t: t, order: filepath.Join(t.TempDir(), "order"),
		quota: quota, there: map[string]thing{},
	}
	t.Cleanup(func() { // mounts of a failed test
		paths, _ := filepath.Glob(v.Kubelet + "/*")
		for _, path := range paths {
			btrfstest.UnmountAll(t, path)
		}
	})
	t.Setenv(orderFile, v.order)
	v.start()
	v.make("base", nil, testkit.Writer, thing{"active", "", 16 * mebi})
	v.write("base", "old")
	v.snapshot("snap", "base")
	v.write("base", "new")
	return v
}

func (v *victim) start() {
	v.t.Helper()
	v.driver = startDriverOn(v.t, v.Node, "--quota="+v.quota)
}

func (v *victim) must(err error) {
	v.t.Helper()
	if err != nil {
		v.t.Fatalf("%v\n%s", err, v.driver.LogText())
	}
}

func (v *victim) path(id string, x thing) string {
	return filepath.Join(v.State, "pools/default", x.area, id, "fs")
}

// write writes data to a volume, durably.
func (v *victim) write(id, data string) {
	v.t.Helper()
	x := v.there[id]
	x.data = data
	v.there[id] = x
	v.must(os.WriteFile(filepath.Join(v.path(id, x), "data"), []byte(data), 0o600))
}

func (v *victim) ask(id string, source *csi.VolumeContentSource, capability *csi.VolumeCapability) error {
	_, err := v.driver.CreateVolume(v.t.Context(), &csi.CreateVolumeRequest{
		Name: id, VolumeContentSource: source, VolumeCapabilities: []*csi.VolumeCapability{capability},
		CapacityRange: &csi.CapacityRange{RequiredBytes: 16 * mebi},
	})
	return err
}

func (v *victim) make(id string, source *csi.VolumeContentSource, capability *csi.VolumeCapability, x thing) {
	v.t.Helper()
	v.must(v.ask(id, source, capability))
	v.there[id] = x
}

func (v *victim) take(id, volume string) error {
	_, err := v.driver.CreateSnapshot(v.t.Context(), &csi.CreateSnapshotRequest{Name: id, SourceVolumeId: volume})
	return err
}

func (v *victim) snapshot(id, volume string) {
	v.t.Helper()
	v.must(v.take(id, volume))
	v.there[id] = thing{"committed", v.there[volume].data, v.there[volume].size}
}

// listed returns the sizes of all listed volumes and snapshots by ID.
func (v *victim) listed() map[string]int64 {
	v.t.Helper()
	found := map[string]int64{}
	volumes, err := v.driver.ListVolumes(v.t.Context(), &csi.ListVolumesRequest{})
	v.must(err)
	for _, e := range volumes.GetEntries() {
		found[e.GetVolume().GetVolumeId()] = e.GetVolume().GetCapacityBytes()
	}
	snapshots, err := v.driver.ListSnapshots(v.t.Context(), &csi.ListSnapshotsRequest{})
	v.must(err)
	for _, e := range snapshots.GetEntries() {
		found[e.GetSnapshot().GetSnapshotId()] = e.GetSnapshot().GetSizeBytes()
	}
	return found
}

// slots returns all slots of the pool with their content, by ID.
func (v *victim) slots() map[string]thing {
	v.t.Helper()
	found := map[string]thing{}
	for _, area := range []string{"active", "committed", "view", "removing"} {
		slots, err := os.ReadDir(filepath.Join(v.State, "pools/default", area))
		v.must(err)
		for _, s := range slots {
			x := thing{area: area}
			data, err := os.ReadFile(filepath.Join(v.path(s.Name(), x), "data"))
			if !errors.Is(err, fs.ErrNotExist) {
				v.must(err)
			}
			x.data = string(data)
			found[s.Name()] = x
		}
	}
	return found
}

// verify checks that disk and listings contain exactly the expected things, and that
// nothing is to be repaired. id must be one of allowed, or absent if absent is true.
func (v *victim) verify(when, id string, absent bool, allowed ...thing) {
	v.t.Helper()
	disk, sizes := v.slots(), v.listed()
	for other, size := range sizes {
		x := disk[other]
		x.size = size
		disk[other] = x
	}
	got, is := disk[id]
	right := is && slices.Contains(allowed, got) || !is && absent
	if id != "" && !right {
		v.t.Errorf("%s: %s is %+v, want %+v, or absent: %v", when, id, got, allowed, absent)
	}
	want := maps.Clone(v.there)
	delete(disk, id)
	delete(want, id)
	if !maps.Equal(disk, want) {
		v.t.Errorf("%s: there is\n%+v, want\n%+v", when, disk, want)
	}
	var findings []snapshot.Finding
	v.must(askDriver(v.t.Context(), v.State, http.MethodGet, "/check", &findings))
	if len(findings) > 0 {
		v.t.Errorf("%s: check finds %v", when, findings)
	}
}

// killedAt makes the driver kill itself at a step of do, reports whether it died, and
// starts the next driver.
func (v *victim) killedAt(step int, id string, do func() error) bool {
	v.t.Helper()
	v.must(os.WriteFile(v.order, fmt.Appendf(nil, "%d %s", step, id), 0o600))
	err := do()
	v.must(os.Remove(v.order))
	if err == nil {
		return false
	}
	if code := status.Code(err); code != codes.Unavailable {
		v.t.Fatalf("step %d: the driver is killed, and answers %v", step, err)
	}
	<-v.driver.Ended()
	v.driver.stopped = true
	if s, ok := v.driver.Cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || s.Signal() != unix.SIGKILL {
		v.t.Fatalf("step %d: the driver ended with %v\n%s", step, v.driver.Cmd.ProcessState, v.driver.LogText())
	}
	_ = v.driver.Close()
	v.start()
	return true
}

// operation is an operation in which the driver is killed. prepare creates its inputs.
type operation struct {
	name    string
	prepare func(v *victim, id string)
	do      func(v *victim, id string) error
	after   *thing // nil if the operation deletes it
	least   int    // minimum number of steps
}

const grown = 32 * mebi

func someVolume(v *victim, id string) {
	v.make(id, testkit.FromSnapshot("snap"), testkit.Writer, thing{"active", "old", 16 * mebi})
}

// mountedDisk makes a volume with an ext4, once, and writes to it: that waits for ever if a
// killed driver has left it frozen.
func mountedDisk(v *victim, _ string) {
	if _, is := v.there["disk"]; !is {
		v.make("disk", nil, testkit.Ext4, thing{"active", "", 16 * mebi})
		_, err := v.driver.Mount(v.t.Context(), "disk", testkit.Ext4)
		v.must(err)
	}
	v.must(os.WriteFile(filepath.Join(v.Target("disk"), "file"), []byte("data"), 0o600))
}

var operations = []operation{
	{"create", nil, func(v *victim, id string) error { return v.ask(id, nil, testkit.Writer) }, &thing{"active", "", 16 * mebi}, 6},
	{"create-ext4", nil, func(v *victim, id string) error { return v.ask(id, nil, testkit.Ext4) }, &thing{"active", "", 16 * mebi}, 8},
	{"delete-block", func(v *victim, id string) {
		v.make(id, nil, testkit.Block, thing{"active", "", 16 * mebi})
	}, func(v *victim, id string) error {
		_, err := v.driver.DeleteVolume(v.t.Context(), &csi.DeleteVolumeRequest{VolumeId: id})
		return err
	}, nil, 4},
	{"snapshot-of-mounted-ext4", mountedDisk, func(v *victim, id string) error { return v.take(id, "disk") }, &thing{"committed", "", 16 * mebi}, 6},
	{"clone-of-mounted-ext4", mountedDisk, func(v *victim, id string) error { return v.ask(id, testkit.FromVolume("disk"), testkit.Ext4) },
		&thing{"active", "", 16 * mebi}, 9},
	{"snapshot", nil, func(v *victim, id string) error { return v.take(id, "base") }, &thing{"committed", "new", 16 * mebi}, 4},
	{"clone", nil, func(v *victim, id string) error { return v.ask(id, testkit.FromVolume("base"), testkit.Writer) }, &thing{"active", "new", 16 * mebi}, 5},
	{"restore", nil, func(v *victim, id string) error { return v.ask(id, testkit.FromSnapshot("snap"), testkit.Writer) }, &thing{"active", "old", 16 * mebi}, 5},
	{"view", nil, func(v *victim, id string) error { return v.ask(id, testkit.FromSnapshot("snap"), testkit.Reader) }, &thing{"view", "old", 16 * mebi}, 4},
	{"expand", someVolume, func(v *victim, id string) error {
		_, err := v.driver.ControllerExpandVolume(v.t.Context(), &csi.ControllerExpandVolumeRequest{
			VolumeId: id, CapacityRange: &csi.CapacityRange{RequiredBytes: grown},
		})
		return err
	}, &thing{"active", "old", grown}, 3},
	{"delete-volume", someVolume, func(v *victim, id string) error {
		_, err := v.driver.DeleteVolume(v.t.Context(), &csi.DeleteVolumeRequest{VolumeId: id})
		return err
	}, nil, 4},
	{"delete-snapshot", func(v *victim, id string) { v.snapshot(id, "base") }, func(v *victim, id string) error {
		_, err := v.driver.DeleteSnapshot(v.t.Context(), &csi.DeleteSnapshotRequest{SnapshotId: id})
		return err
	}, nil, 4},
}

// TestKilledAtEveryStep kills the driver, a process on a real disk, after each step of each
// operation. The next driver leaves nothing incomplete even before a retry, and the retry
// performs the operation once.
func TestKilledAtEveryStep(t *testing.T) {
	for _, quota := range []string{"full", "simple"} {
		t.Run(quota, func(t *testing.T) {
			if quota == "simple" {
				btrfstest.SimpleQuota.Need(t)
			}
			v := newVictim(t, quota)
			for _, o := range operations {
				step := 1
				for v.dies(o, step) {
					step++
				}
				if step--; step < o.least {
					t.Errorf("%s: killed at %d steps, it has %d at least", o.name, step, o.least)
				}
				t.Logf("%s: killed after each of %d steps", o.name, step)
			}
			v.driver.stop(t)
		})
	}
}

// dies reports whether the driver died at this step, so whether the operation has that
// many.
func (v *victim) dies(o operation, step int) bool {
	v.t.Helper()
	id := fmt.Sprintf("%s-%d", o.name, step)
	if o.prepare != nil {
		o.prepare(v, id)
	}
	before, was := v.there[id]
	died := v.killedAt(step, id, func() error { return o.do(v, id) })
	if died {
		var allowed []thing
		if was {
			allowed = append(allowed, before)
		}
		if o.after != nil {
			allowed = append(allowed, *o.after)
		}
		v.verify(fmt.Sprintf("%s, killed after step %d", o.name, step), id, !was || o.after == nil, allowed...)
		v.must(o.do(v, id))
	}
	delete(v.there, id)
	if o.after != nil {
		v.there[id] = *o.after
	}
	v.verify(fmt.Sprintf("%s, asked again after step %d", o.name, step), "", false)
	return died
}

// TestUmask: everybody may enter the root of a volume, whatever the driver's umask. The
// root is created with that mode: a separate step could be missing after a kill.
func TestUmask(t *testing.T) {
	defer unix.Umask(unix.Umask(0o077)) // the driver inherits it
	v := newVictim(t, "simple")
	info, err := os.Stat(v.path("base", v.there["base"]))
	v.must(err)
	if info.Mode().Perm() != 0o755 {
		t.Errorf("it has %v", info.Mode())
	}
}

func (v *victim) mount(id string) {
	v.t.Helper()
	_, err := v.driver.Mount(v.t.Context(), id, testkit.Writer)
	v.must(err)
}

func (v *victim) unmount(id string) {
	v.t.Helper()
	v.must(v.driver.Unmount(v.t.Context(), id))
}

// mounts returns the number of mounts at a path.
func mounts(t *testing.T, path string) int {
	t.Helper()
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	return strings.Count(string(table), " "+path+" ")
}

// TestKilledAtEveryMount kills the driver before and after each change of the mount table.
// A retry leaves one mount, or no mount and no directory. Data and earlier mounts stay. A disk
// file has one loop device while it is staged, and none afterwards.
func TestKilledAtEveryMount(t *testing.T) {
	v := newVictim(t, "full")
	for step := 1; step <= 2; step++ {
		for kind, capability := range map[string]*csi.VolumeCapability{"files": testkit.Writer, "ext4": testkit.Ext4, "block": testkit.Block} {
			t.Run(fmt.Sprintf("%s, step %d", kind, step), func(t *testing.T) { v.killedAtMounts(t, kind, step, capability) })
		}
	}
	v.driver.stop(t)
}

func (v *victim) killedAtMounts(t *testing.T, kind string, step int, capability *csi.VolumeCapability) {
	ctx, id := t.Context(), fmt.Sprintf("mounted-%s-%d", kind, step)
	data, staging := filepath.Join(v.Target(id), "data"), v.Staging(id)
	switch kind {
	case "files":
		someVolume(v, id)
	case "block":
		data, staging = v.Target(id), filepath.Join(v.Staging(id), "device")
		fallthrough
	default:
		v.make(id, nil, capability, thing{"active", "", 16 * mebi})
		v.must(v.driver.Stage(ctx, id, capability))
		v.must(v.driver.Publish(ctx, id, capability))
		f, err := os.OpenFile(data, os.O_CREATE|os.O_WRONLY, 0o600)
		v.must(err)
		_, err = f.WriteString("old")
		v.must(errors.Join(err, f.Sync(), f.Close()))
		v.unmount(id)
	}
	for _, o := range []struct {
		name            string
		do              func() error
		staged, present int // mounts afterwards
	}{
		{"stage", func() error { return v.driver.Stage(ctx, id, capability) }, 1, 0},
		{"publish", func() error { return v.driver.Publish(ctx, id, capability) }, 1, 1},
		{"unpublish", func() error { return v.driver.Unpublish(ctx, id) }, 1, 0},
		{"unstage", func() error { return v.driver.Unstage(ctx, id) }, 0, 0},
	} {
		when := fmt.Sprintf("%s, killed at step %d", o.name, step)
		if !v.killedAt(step, id+o.name, o.do) {
			t.Fatalf("%s: it lives", when)
		}
		v.verify(when, "", false)
		v.must(o.do())
		if staged, present := mounts(t, staging), mounts(t, v.Target(id)); staged != o.staged || present != o.present {
			t.Errorf("%s, asked again: mounted %d and %d times, want %d and %d", when, staged, present, o.staged, o.present)
		}
		if o.present == 1 {
			got := make([]byte, len("old"))
			f, err := os.Open(data)
			v.must(err)
			if _, err := f.ReadAt(got, 0); err != nil || string(got) != "old" {
				t.Errorf("%s, asked again: published with %q, %v", when, got, err)
			}
			f.Close()
		}
		if kind != "files" {
			v.wantDevice(id, o.staged == 1)
		}
	}
	if _, err := os.Lstat(v.Target(id)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the target is left: %v", err)
	}
}

// wantDevice fails the test unless the disk file of a volume has a loop device, or has none.
func (v *victim) wantDevice(id string, want bool) {
	v.t.Helper()
	f, err := os.Open(filepath.Join(v.path(id, v.there[id]), "disk"))
	v.must(err)
	defer f.Close()
	btrfstest.Eventually(v.t, fmt.Sprintf("device of %s: %v", id, want), func() bool { // others, such as udev, may have it open for a moment
		d, err := loop.Find(f)
		v.must(err)
		if d != nil {
			d.Close()
		}
		return (d != nil) == want
	})
}
