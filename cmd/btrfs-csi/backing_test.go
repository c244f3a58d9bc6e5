package main

import (
	"context"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs/btrfstest"
	"github.com/btrfs-csi/btrfs-csi/test/testkit"
)

// overcommitted is a driver with a loop pool of 4 GiB on a filesystem of 600 MiB.
type overcommitted struct {
	*running
	t                    *testing.T
	state, pool, address string
}

func newOvercommitted(t *testing.T) *overcommitted {
	btrfstest.RequireRoot(t)
	o := &overcommitted{t: t, state: btrfstest.Ext4(t, 600*mebi), address: freeAddress(t)}
	o.pool = filepath.Join(o.state, "pools", "default")
	t.Cleanup(func() { btrfstest.UnmountAll(t, o.pool) })
	o.start()
	return o
}

func (o *overcommitted) start() {
	o.running = startDriver(o.t, o.state, "--loop-pool=4Gi", "--http="+o.address)
}

// fill fills the filesystem below the pool and leaves this many bytes.
func (o *overcommitted) fill(left int64) {
	o.t.Helper()
	f, err := os.OpenFile(filepath.Join(o.state, "filler"), os.O_CREATE|os.O_RDWR, 0o600)
	if err == nil {
		err = unix.Fallocate(int(f.Fd()), 0, 0, max(1, o.hostRoom()-left))
	}
	if err == nil {
		err = f.Close()
	}
	if err != nil {
		o.t.Fatal(err)
	}
}

func (o *overcommitted) hostRoom() int64 {
	var room unix.Statfs_t
	if err := unix.Statfs(o.state, &room); err != nil {
		o.t.Fatal(err)
	}
	return int64(room.Bavail) * room.Bsize
}

func (o *overcommitted) ask(name string, size int64) error {
	_, err := o.CreateVolume(o.t.Context(), &csi.CreateVolumeRequest{
		Name: name, VolumeCapabilities: []*csi.VolumeCapability{testkit.Writer}, CapacityRange: &csi.CapacityRange{RequiredBytes: size},
	})
	return err
}

// says checks a word in the output of a command, and its exit code.
func (o *overcommitted) says(want string, code int, command string) {
	o.t.Helper()
	stdout, stderr, got := run(o.t, command, "--state-dir", o.state)
	if got != code || !strings.Contains(stdout, want) {
		o.t.Errorf("%s: exit code %d, want %d and %q: %s%s", command, got, code, want, stdout, stderr)
	}
}

// reported checks that everything reports a fault. An unreadable volume has another reason
// with the same message.
func (o *overcommitted) reported(problem, reason, ofVolume string) {
	o.t.Helper()
	o.says(problem, 0, "pools")
	o.says(problem, 1, "check")
	health, err := o.NodeGetStorageHealth(o.t.Context(), &csi.NodeGetStorageHealthRequest{})
	if err != nil || !strings.Contains(health.String(), reason) {
		o.t.Errorf("storage health: %v, %v", health, err)
	}
	volume, err := o.ControllerGetVolumeHealth(o.t.Context(), &csi.ControllerGetVolumeHealthRequest{VolumeId: "data"})
	if err != nil || !strings.Contains(volume.String(), ofVolume) {
		o.t.Errorf("volume health: %v, %v", volume, err)
	}
	o.logs(`problem="` + problem + `"`)
}

// logs waits for a text in the log.
func (o *overcommitted) logs(text string) {
	o.t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); !strings.Contains(o.LogText(), text); time.Sleep(100 * time.Millisecond) {
		if time.Now().After(deadline) {
			o.t.Fatalf("%q is not in the log: %s", text, o.LogText())
		}
	}
}

// TestLoopPoolLargerThanItsRoom: the capacity of a loop pool is that of the filesystem of
// its image. When this is nearly used up the pool refuses new volumes, and every report
// shows it, before and after the kernel stops the filesystem. With new space and a new
// mount the pool works as before.
func TestLoopPoolLargerThanItsRoom(t *testing.T) {
	o := newOvercommitted(t)
	image := filepath.Join(o.state, loopImage)
	o.logs("its filesystem has not the room")
	o.says(image, 0, "pools")
	o.says("Nothing is wrong", 0, "check")
	capacity, err := o.GetCapacity(t.Context(), &csi.GetCapacityRequest{})
	if err != nil || capacity.GetAvailableCapacity() == 0 || capacity.GetAvailableCapacity() > o.hostRoom() {
		t.Errorf("capacity is %v, %v; the filesystem below has %d bytes left", capacity, err, o.hostRoom())
	}
	if err := o.ask("data", 32*mebi); err != nil {
		t.Fatal(err)
	}
	o.refused(o.ask("large", 1024*mebi), codes.ResourceExhausted, image)

	o.fill(150 * mebi)
	o.refused(o.ask("late", 32*mebi), codes.ResourceExhausted, image)
	o.reported("BackingFull", "BackingFull", "BackingFull")
	metrics := o.get("/metrics")
	for _, want := range []string{`btrfs_csi_pool_backing_available_bytes\{.*`, `btrfs_csi_pool_condition\{condition="BackingFull",.*\} 1`, `btrfs_csi_pool_capacity_bytes\{.*\} 0`} {
		if !regexp.MustCompile("(?m)^" + want + "$").MatchString(metrics) {
			t.Errorf("no metric %s in\n%s", want, metrics)
		}
	}

	o.fill(0)
	for n := 0; n < 100 && !o.stopped(); n++ {
		_ = os.WriteFile(filepath.Join(o.pool, "active/data/fs/file"), make([]byte, 24*mebi), 0o600) // until it fails
		_ = btrfstest.Sync(o.pool)
	}
	o.reported("ReadOnly", "PoolReadOnly", "the kernel has stopped")
	o.says("the kernel has stopped", 0, "pools")
	_, err = o.DeleteVolume(t.Context(), &csi.DeleteVolumeRequest{VolumeId: "data"})
	o.refused(err, codes.Unavailable, "the kernel has stopped")
	if err := o.ask("late", 32*mebi); err == nil || !strings.Contains(err.Error(), "the kernel has stopped") {
		t.Errorf("made on a filesystem that has stopped: %v", err)
	}
	o.get("/readyz") // still ready: other pools are served

	o.running.stop(t)
	if err := os.Remove(filepath.Join(o.state, "filler")); err != nil {
		t.Fatal(err)
	}
	if err := btrfstest.Unmount(o.pool); err != nil {
		t.Fatal(err)
	}
	o.start()
	o.says("Nothing is wrong", 0, "check")
	if err := o.ask("again", 32*mebi); err != nil {
		t.Error(err)
	}
	if _, err := o.DeleteVolume(t.Context(), &csi.DeleteVolumeRequest{VolumeId: "data"}); err != nil {
		t.Error(err)
	}
}

func (o *overcommitted) refused(err error, code codes.Code, why string) {
	o.t.Helper()
	if status.Code(err) != code || !strings.Contains(err.Error(), why) {
		o.t.Errorf("got %v, want %v that names %q", err, code, why)
	}
}

// get returns the body of an answer with status 200 from the HTTP port.
func (o *overcommitted) get(path string) string {
	o.t.Helper()
	ctx, cancel := context.WithTimeout(o.t.Context(), time.Minute)
	defer cancel()
	return httpGet(ctx, o.t, "http://"+o.address+path)
}

func (o *overcommitted) stopped() bool {
	stdout, _, _ := run(o.t, "pools", "--state-dir", o.state)
	return strings.Contains(stdout, " ReadOnly ")
}

func httpGet(ctx context.Context, t *testing.T, url string) string {
	t.Helper()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	var text strings.Builder
	if err := answer.Write(&text); err != nil || answer.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s, %v", url, text.String(), err)
	}
	return text.String()
}

// TestNoRoomForALoopPool: without space for a pool none is created, and the log has the
// reason.
func TestNoRoomForALoopPool(t *testing.T) {
	btrfstest.RequireRoot(t)
	state := btrfstest.Ext4(t, 200*mebi)
	d := startDriver(t, state, "--loop-pool=4Gi")
	d.stop(t)
	if !strings.Contains(d.LogText(), "the filesystem of "+state+" has") {
		t.Errorf("the log does not say why: %s", d.LogText())
	}
	if left, _ := filepath.Glob(filepath.Join(state, "*.img*")); len(left) > 0 {
		t.Errorf("made %q", left)
	}
}

// TestMountedReadOnly: check and pools report a pool that is mounted read-only, with and
// without a driver, and not as stopped by the kernel.
func TestMountedReadOnly(t *testing.T) {
	state := btrfstest.Mount(t)
	d := startDriver(t, state)
	d.createVolume(t, "data")
	d.stop(t)
	pool := filepath.Join(state, "pools", "default")
	tool(t, "mount", "--bind", pool, pool) // the state directory stays writable
	t.Cleanup(func() { btrfstest.UnmountAll(t, pool) })
	tool(t, "mount", "-o", "remount,bind,ro", pool)
	d = startDriver(t, state)
	for range 2 {
		for command, code := range map[string]int{"pools": 0, "check": 1} {
			stdout, stderr, got := run(t, command, "--state-dir", state)
			if got != code || !strings.Contains(stdout, " ReadOnly ") || !strings.Contains(stdout, "remount it read-write") {
				t.Errorf("%s: exit code %d: %s%s", command, got, stdout, stderr)
			}
		}
		d.stop(t)
	}
}
