package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs"
	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs/btrfstest"
	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
	"github.com/btrfs-csi/btrfs-csi/pkg/meta/index"
	"github.com/btrfs-csi/btrfs-csi/pkg/pool"
	"github.com/btrfs-csi/btrfs-csi/pkg/snapshot"
	"github.com/btrfs-csi/btrfs-csi/test/testkit"
)

const mebi = 1 << 20

// commandVariable makes the test binary run the command. So tests start a real process with
// the race detector.
const commandVariable = "BTRFS_CSI_TEST_AS_COMMAND"

func TestMain(m *testing.M) {
	if os.Getenv(commandVariable) == "1" {
		becomeMortal()
		becomeDisturbed()
		becomeSilent()
		becomeOlder()
		main()
		return
	}
	os.Exit(btrfstest.Main(m.Run))
}

// command returns a run of the command.
func command(ctx context.Context, args ...string) *exec.Cmd {
	return asCommand(exec.CommandContext(ctx, os.Args[0], args...))
}

func asCommand(cmd *exec.Cmd) *exec.Cmd {
	cmd.Env = append(os.Environ(), commandVariable+"=1", "GORACE=atexit_sleep_ms=0") // otherwise each exit takes a second
	return cmd
}

// run runs the command and returns its output and exit code.
func run(t *testing.T, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	var out, errs bytes.Buffer
	cmd := command(t.Context(), args...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// running is a driver that serves.
type running struct {
	*testkit.Driver
	stopped bool
}

// newNode returns a node with a state directory.
func newNode(t *testing.T, stateDir string) testkit.Node {
	t.Helper()
	n := testkit.NewNode(t.TempDir())
	n.State = stateDir
	if err := os.Mkdir(n.Kubelet, 0o700); err != nil {
		t.Fatal(err)
	}
	return n
}

// startDriver runs serve and waits until it is ready.
func startDriver(t *testing.T, stateDir string, args ...string) *running {
	t.Helper()
	return startDriverOn(t, newNode(t, stateDir), args...)
}

func startDriverOn(t *testing.T, n testkit.Node, args ...string) *running {
	t.Helper()
	d, err := n.Start(t.Context(), asCommand(n.Command(os.Args[0], args...)))
	if err != nil {
		t.Fatal(err)
	}
	r := &running{Driver: d}
	t.Cleanup(func() { r.stop(t) })
	return r
}

// stop ends the driver like a kubelet, and fails the test unless the exit code is 0.
func (r *running) stop(t *testing.T) {
	t.Helper()
	if r.stopped {
		return
	}
	r.stopped = true
	if err := r.End(unix.SIGTERM); err != nil || !r.Cmd.ProcessState.Success() {
		t.Errorf("driver ended with %v, %v\n%s", r.Cmd.ProcessState, err, r.LogText())
	}
}

func (r *running) createVolume(t *testing.T, name string) {
	t.Helper()
	r.create(t, name, nil, nil)
}

func (r *running) create(t *testing.T, name string, parameters map[string]string, source *csi.VolumeContentSource) {
	t.Helper()
	_, err := r.CreateVolume(t.Context(), &csi.CreateVolumeRequest{
		Name: name, VolumeCapabilities: []*csi.VolumeCapability{testkit.Writer}, Parameters: parameters, VolumeContentSource: source,
		CapacityRange: &csi.CapacityRange{RequiredBytes: 16 << 20},
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestLoopPoolIsKeptAndGrown(t *testing.T) {
	btrfstest.RequireRoot(t)
	state := t.TempDir()
	if on, err := btrfs.IsBtrfs(state); err != nil || on {
		t.Skipf("the temporary directory is on btrfs, where no loop pool is made (%v)", err)
	}
	pool := filepath.Join(state, "pools", "default")
	t.Cleanup(func() {
		if err := btrfstest.Unmount(pool); err != nil {
			t.Errorf("unmount %s: %v", pool, err)
		}
	})
	sizeOf := func() int64 {
		space, err := btrfs.SpaceOf(pool)
		if err != nil {
			t.Fatal(err)
		}
		return space.Size
	}

	d := startDriver(t, state, "--loop-pool=512Mi")
	d.createVolume(t, "kept")
	if got := sizeOf(); got != 512<<20 {
		t.Errorf("size is %d, want 512 MiB", got)
	}
	d.stop(t)
	if got := sizeOf(); got != 512<<20 {
		t.Errorf("after the driver stopped the pool has %d bytes, want it mounted still", got)
	}

	d = startDriver(t, state, "--loop-pool=1Gi")
	if got := sizeOf(); got != 1<<30 {
		t.Errorf("grown while mounted: size is %d, want 1 GiB", got)
	}
	d.stop(t)

	// Killed drivers left this: the file has grown, the filesystem has not, and another
	// image is incomplete.
	unfinished := filepath.Join(state, unfinishedImage+"1")
	if err := errors.Join(os.Truncate(filepath.Join(state, loopImage), 3<<29), os.WriteFile(unfinished, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	d = startDriver(t, state, "--loop-pool=1536Mi")
	if got := sizeOf(); got != 3<<29 {
		t.Errorf("file grown before: size is %d, want 1536 MiB", got)
	}
	if _, err := os.Lstat(unfinished); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("half an image is left: %v", err)
	}
	d.stop(t)
	if err := btrfstest.Unmount(pool); err != nil {
		t.Fatal(err)
	}

	d = startDriver(t, state, "--loop-pool=2Gi")
	defer d.stop(t)
	if got := sizeOf(); got != 2<<30 {
		t.Errorf("grown while unmounted: size is %d, want 2 GiB", got)
	}
	list, err := d.ListVolumes(t.Context(), &csi.ListVolumesRequest{})
	if err != nil || len(list.GetEntries()) != 1 || list.GetEntries()[0].GetVolume().GetVolumeId() != "kept" {
		t.Errorf("volumes are %v, %v, want the one that was made first", list, err)
	}
}

// TestLoopPoolIsInNobodysWay: a disk that somebody else has mounted is served as it is. A
// loop pool that cannot be created or grown keeps no other pool from being served.
func TestLoopPoolIsInNobodysWay(t *testing.T) {
	btrfstest.RequireRoot(t)
	state := t.TempDir()
	if on, err := btrfs.IsBtrfs(state); err != nil || on {
		t.Skipf("the temporary directory is on btrfs, where no loop pool is made (%v)", err)
	}
	pool, image := filepath.Join(state, "pools", "default"), filepath.Join(state, loopImage)
	other := filepath.Join(state, "pools", "other")
	for _, path := range []string{pool, other} {
		if err := os.MkdirAll(path, 0o700); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { btrfstest.UnmountAll(t, path) })
	}
	serves := func(pool string) {
		t.Helper()
		d := startDriver(t, state, "--loop-pool=1Gi")
		d.create(t, "pvc-"+filepath.Base(t.TempDir()), map[string]string{"pool": pool}, nil)
		d.stop(t)
	}

	disk := btrfstest.Mount(t, btrfstest.Size(512<<20))
	btrfstest.Grow(t, disk, 768<<20)
	tool(t, "mount", "--bind", disk, pool)
	serves("default")
	if space, err := btrfs.SpaceOf(disk); err != nil || space.Size != 512<<20 {
		t.Errorf("somebody's disk has %d bytes now, %v", space.Size, err)
	}
	if _, err := os.Lstat(image); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("an image was made: %v", err)
	}
	btrfstest.UnmountAll(t, pool)

	tool(t, "mount", "--bind", btrfstest.Mount(t), other)
	tool(t, "truncate", "--size=512M", image) // without a filesystem
	d := startDriver(t, state, "--loop-pool=1Gi")
	d.create(t, "pvc-other", map[string]string{"pool": "other"}, nil)
	tool(t, "mkfs.btrfs", "-q", image)
	mounted := btrfstest.Comes(func() bool {
		space, err := btrfs.SpaceOf(pool)
		return err == nil && space.Size == 1<<30
	})
	if !mounted {
		t.Fatalf("not mounted when it could be: %s", d.LogText())
	}
	d.stop(t)

	tool(t, "truncate", "--size=1100M", image)
	tool(t, "mount", "-o", "remount,ro", pool)
	serves("other")
}

// TestPoolThatIsNot: a misspelt --pool is an error, not an empty list.
func TestPoolThatIsNot(t *testing.T) {
	state := btrfstest.Mount(t)
	startDriver(t, state).stop(t)
	for _, command := range []string{"ls", "tree", "pools", "check"} {
		stdout, stderr, code := run(t, command, "--pool", "absent", "--state-dir", state)
		if code != 1 || stdout != "" || !strings.Contains(stderr, `there are ["default"]`) {
			t.Errorf("%s: exit code %d: %s%s", command, code, stdout, stderr)
		}
		if stdout, stderr, code = run(t, command, "--pool", "default", "--state-dir", state); code != 0 {
			t.Errorf("%s: exit code %d: %s%s", command, code, stdout, stderr)
		}
	}
}

// TestDeviceMissing: a pool that has lost two of its three devices is served, and reported.
func TestDeviceMissing(t *testing.T) {
	kept, lost := btrfstest.Loop(t, 1<<30), []string{btrfstest.Loop(t, 1<<30), btrfstest.Loop(t, 1<<30)}
	tool(t, "mkfs.btrfs", append([]string{"-q", "-d", "raid1c3", "-m", "raid1c3", kept}, lost...)...)
	for _, device := range lost {
		tool(t, "wipefs", "--all", device)
		tool(t, "btrfs", "device", "scan", "--forget", device)
	}
	state := t.TempDir()
	tool(t, "mount", "-o", "degraded", kept, state)
	t.Cleanup(func() {
		if err := btrfstest.Unmount(state); err != nil {
			t.Error(err)
		}
	})
	d := startDriver(t, state)
	d.createVolume(t, "data")
	stdout, stderr, code := run(t, "pools", "--state-dir", state)
	if code != 0 || !strings.Contains(stdout, " DeviceMissing ") {
		t.Errorf("pools: exit code %d\n%s%s", code, stdout, stderr)
	}
	if stdout, stderr, code = run(t, "check", "--state-dir", state); code != 1 || !strings.Contains(stdout, " DeviceMissing ") {
		t.Errorf("check: exit code %d\n%s%s", code, stdout, stderr)
	}
	e, err := snapshot.Inspect(t.Context(), state)
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	var engine atomic.Pointer[snapshot.Engine]
	engine.Store(e)
	if text := scrape(t, newMetrics(&engine)); !regexp.MustCompile(`(?m)^btrfs_csi_pool_devices_missing\{.*\} 2$`).MatchString(text) {
		t.Errorf("metrics:\n%s", text)
	}
}

// TestTreeOfANameThatCameAgain: a volume restored under the name of its deleted ancestor is
// not its own ancestor.
func TestTreeOfANameThatCameAgain(t *testing.T) {
	state := btrfstest.Mount(t)
	d := startDriver(t, state)
	d.createVolume(t, "data")
	ctx := t.Context()
	if _, err := d.CreateSnapshot(ctx, &csi.CreateSnapshotRequest{Name: "snap", SourceVolumeId: "data"}); err != nil {
		t.Fatal(err)
	}
	if _, err := d.DeleteVolume(ctx, &csi.DeleteVolumeRequest{VolumeId: "data"}); err != nil {
		t.Fatal(err)
	}
	d.create(t, "data", nil, testkit.FromSnapshot("snap"))
	stdout, _, _ := run(t, "tree", "--state-dir", state)
	at := -1
	for _, want := range []string{"(data) ", "└── snap ", "    └── data "} {
		if i := strings.Index(stdout, want); i <= at {
			t.Errorf("%q is not where it should be:\n%s", want, stdout)
		} else {
			at = i
		}
	}
}

// TestHistory deletes a snapshot and its volume, and then finds both in the history.
func TestHistory(t *testing.T) {
	state := btrfstest.Mount(t)
	if _, stderr, code := run(t, "history", "--state-dir", state); code != 1 || !strings.Contains(stderr, "no driver is running on "+state) {
		t.Errorf("without a driver: exit code %d: %s", code, stderr)
	}
	d := startDriver(t, state)
	ctx := t.Context()
	history := func(args ...string) (ids []string) {
		t.Helper()
		stdout, stderr, code := run(t, append([]string{"history", "-o", "json", "--state-dir", state}, args...)...)
		var removed []index.Removed
		if err := json.Unmarshal([]byte(stdout), &removed); err != nil || code != 0 || removed == nil {
			t.Fatalf("exit code %d, %v: %s%s", code, err, stdout, stderr)
		}
		for _, r := range removed {
			ids = append(ids, r.ID)
		}
		return ids
	}
	d.create(t, "data", map[string]string{"csi.storage.k8s.io/pvc/name": "claim", "csi.storage.k8s.io/pvc/namespace": "shop"}, nil)
	if _, err := d.CreateSnapshot(ctx, &csi.CreateSnapshotRequest{Name: "snap", SourceVolumeId: "data"}); err != nil {
		t.Fatal(err)
	}
	if ids := history(); len(ids) != 0 {
		t.Errorf("nothing is deleted, and listed: %q", ids)
	}
	if _, err := d.DeleteSnapshot(ctx, &csi.DeleteSnapshotRequest{SnapshotId: "snap"}); err != nil {
		t.Fatal(err)
	}
	if _, err := d.DeleteVolume(ctx, &csi.DeleteVolumeRequest{VolumeId: "data"}); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args, want []string
	}{{nil, []string{"data", "snap"}}, {[]string{"--limit", "0"}, []string{"data", "snap"}}, {[]string{"--limit", "1"}, []string{"data"}}} {
		if ids := history(c.args...); !slices.Equal(ids, c.want) {
			t.Errorf("%q: got %q, want %q", c.args, ids, c.want)
		}
	}
	d.stop(t)
	startDriver(t, state)
	stdout, _, code := run(t, "history", "--state-dir", state)
	lines := strings.Split(stdout, "\n")
	for i, want := range [][]string{
		{"NAME", "KIND", "POOL", "SIZE", "SOURCE", "PVC/VOLUMESNAPSHOT", "AGE", "DELETED"},
		{"data", "Volume", "default", "16Mi", "-", "shop/claim"},
		{"snap", "Snapshot", "default", "16Mi", "data", "-"},
	} {
		if fields := strings.Fields(lines[i]); !slices.Equal(fields[:min(len(want), len(fields))], want) || i > 0 && !strings.HasSuffix(lines[i], " ago") {
			t.Errorf("exit code %d, line %d is %q, want %q", code, i, fields, want)
		}
	}
}

func TestInspectWithAndWithoutDriver(t *testing.T) {
	state := btrfstest.Mount(t)
	d := startDriver(t, state)
	d.createVolume(t, "pvc-1")
	if _, err := d.CreateSnapshot(t.Context(), &csi.CreateSnapshotRequest{Name: "snap-1", SourceVolumeId: "pvc-1"}); err != nil {
		t.Fatal(err)
	}
	look := func(t *testing.T) {
		stdout, _, code := run(t, "ls", "-o", "json", "--state-dir", state)
		var items []snapshot.Item
		if err := json.Unmarshal([]byte(stdout), &items); err != nil || code != 0 {
			t.Fatalf("ls: exit code %d, %v\n%s", code, err, stdout)
		}
		if len(items) != 2 || items[0].ID != "pvc-1" || items[0].Size != 16<<20 || items[0].Usage == nil || items[1].Source != meta.Volume("pvc-1") {
			t.Errorf("ls: %+v", items)
		}
		stdout, _, code = run(t, "tree", "--state-dir", state)
		if code != 0 || !strings.Contains(stdout, "pvc-1 ") || !strings.Contains(stdout, "└── snap-1") {
			t.Errorf("tree: exit code %d\n%s", code, stdout)
		}
		stdout, _, code = run(t, "pools", "--state-dir", state)
		if code != 0 || !strings.Contains(stdout, "default ") || !strings.Contains(stdout, "Ready") {
			t.Errorf("pools: exit code %d\n%s", code, stdout)
		}
		stdout, stderr, code := run(t, "check", "--state-dir", state)
		if code != 0 || stdout != "Nothing is wrong.\n" {
			t.Errorf("check: exit code %d\n%s%s", code, stdout, stderr)
		}
	}
	t.Run("with", look)
	t.Setenv("BTRFS_CSI_STATE_DIR", state)
	if stdout, stderr, code := run(t, "ls"); code != 0 || !strings.Contains(stdout, "snap-1 ") {
		t.Errorf("ls of the directory in the environment: exit code %d: %s%s", code, stdout, stderr)
	}
	d.stop(t)
	t.Run("without", look)
}

// TestCheckRepairs creates faults that a crash leaves, and faults that only a person may
// repair.
func TestCheckRepairs(t *testing.T) {
	for _, served := range []bool{true, false} {
		t.Run(map[bool]string{true: "with driver", false: "without driver"}[served], func(t *testing.T) {
			state := btrfstest.Mount(t)
			d := startDriver(t, state)
			if !served {
				d.stop(t)
			}
			active := filepath.Join(state, "pools", "default", "active")
			if err := errors.Join(os.Mkdir(filepath.Join(active, "half"), 0o700), os.Mkdir(filepath.Join(active, "theirs"), 0o700),
				btrfs.Create(filepath.Join(active, "theirs", "fs"))); err != nil {
				t.Fatal(err)
			}
			expect := func(args []string, want ...string) {
				t.Helper()
				stdout, stderr, code := run(t, append(args, "--state-dir", state)...)
				if code != 1 {
					t.Errorf("%v: exit code %d, want 1\n%s", args, code, stderr)
				}
				for _, w := range want {
					if !strings.Contains(stdout, w) {
						t.Errorf("%v: %q is not in the output:\n%s", args, w, stdout)
					}
				}
			}
			expect([]string{"check"}, "active/half", "UnfinishedCreate", "active/theirs", "Foreign")
			if _, err := os.Stat(filepath.Join(active, "half")); err != nil {
				t.Errorf("check changed something: %v", err)
			}
			expect([]string{"check", "--repair"}, "undo: done", "Foreign")
			if _, err := os.Stat(filepath.Join(active, "half")); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("not undone: %v", err)
			}
			if _, err := btrfs.Info(filepath.Join(active, "theirs", "fs")); err != nil {
				t.Errorf("what was not ours is gone: %v", err)
			}
		})
	}
}

// TestCheckWithRoutine: without a driver, check prints stale accounting, which a driver
// would remove by itself, but not as a fault.
func TestCheckWithRoutine(t *testing.T) {
	btrfstest.SimpleQuota.Need(t)
	state := btrfstest.Mount(t)
	d := startDriver(t, state, "--quota=simple")
	const mark = 0x6373692d62747266   // of the driver's groups: see mark in pkg/pool/quota.go
	plant := func(subvolume uint64) { // as a deleted volume leaves it
		t.Helper()
		group := btrfs.NewQgroupID(1, subvolume)
		if err := errors.Join(btrfs.CreateQgroup(state, group), btrfs.LimitOwnQgroup(state, group, 1, mark)); err != nil {
			t.Fatal(err)
		}
	}
	plant(4711)
	if stdout, stderr, code := run(t, "check", "--state-dir", state); code != 0 || !strings.Contains(stdout, "Nothing is wrong") {
		t.Errorf("with a driver: exit code %d: %s%s", code, stdout, stderr)
	}
	d.stop(t)
	plant(4712) // the driver may have removed the first one
	if stdout, stderr, code := run(t, "check", "--state-dir", state); code != 0 || !strings.Contains(stdout, "StaleQuota") {
		t.Errorf("without a driver: exit code %d: %s%s", code, stdout, stderr)
	}
}

// TestRepairOfNoStateDirectory: a repair changes nothing in a directory that is no state
// directory.
func TestRepairOfNoStateDirectory(t *testing.T) {
	dir := t.TempDir()
	_, stderr, code := run(t, "check", "--repair", "--state-dir", dir)
	files, err := os.ReadDir(dir)
	if code == 0 || err != nil || len(files) > 0 || !strings.Contains(stderr, filepath.Join(dir, "pools")) {
		t.Errorf("exit code %d, %q, %v, left %v", code, stderr, err, files)
	}
}

// TestCheckWaitsForAStart: the work of a starting driver is not reported as a fault.
func TestCheckWaitsForAStart(t *testing.T) {
	state := t.TempDir()
	release, err := lockState(state)
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	type answered struct {
		pools []pool.Status
		err   error
	}
	answer := make(chan answered)
	go func() {
		var a answered
		a.err = askStarted(t.Context(), state, http.MethodGet, "/pools", &a.pools)
		answer <- a
	}()
	time.Sleep(100 * time.Millisecond) // check asks before the socket exists
	listener, err := net.Listen("unix", filepath.Join(state, adminSocket))
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `[{"name":"fast"}]`) })}
	go func() { _ = server.Serve(listener) }()
	defer server.Close()
	if a := <-answer; a.err != nil || len(a.pools) != 1 {
		t.Errorf("got %+v", a)
	}
}

// TestStateInUse: stateInUse never keeps a driver from starting.
func TestStateInUse(t *testing.T) {
	state := t.TempDir()
	if stateInUse(state) {
		t.Error("in use before anything was there")
	}
	syscall.ForkLock.RLock() // a forked child would hold the lock until its exec
	defer syscall.ForkLock.RUnlock()
	var looking sync.WaitGroup
	var ended atomic.Bool
	for range 4 {
		looking.Go(func() {
			for !ended.Load() {
				stateInUse(state)
			}
		})
	}
	for range 1000 {
		release, err := lockState(state)
		if err != nil {
			t.Error(err)
			break
		}
		if !stateInUse(state) {
			t.Error("not reported as in use")
		}
		if _, err := lockState(state); err == nil {
			t.Error("locked twice")
		}
		release()
		if stateInUse(state) {
			t.Error("in use when it was released")
		}
	}
	ended.Store(true)
	looking.Wait()
}

// TestAdminSocketIsForRootAlone: only root can connect, even if others may enter the state
// directory.
func TestAdminSocketIsForRootAlone(t *testing.T) {
	state := btrfstest.Mount(t)
	if err := os.Chmod(state, 0o755); err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(state, adminSocket)
	if err := os.WriteFile(filepath.Join(state, "."+adminSocket), nil, 0o666); err != nil { // left by a killed start
		t.Fatal(err)
	}
	d := startDriver(t, state)
	if file, err := os.Lstat(socket); err != nil || file.Mode() != os.ModeSocket|0o600 {
		t.Errorf("want a socket of mode 0600, got %v, %v", file, err)
	}
	d.stop(t)
	left, err := filepath.Glob(filepath.Join(state, "*.sock"))
	if hidden, _ := filepath.Glob(filepath.Join(state, ".*.sock")); err != nil || len(left)+len(hidden) > 0 {
		t.Errorf("left behind: %v %v", left, hidden)
	}
}

func TestSecondDriverIsRefused(t *testing.T) {
	state := btrfstest.Mount(t)
	startDriver(t, state)
	_, stderr, code := run(t, "serve", "--state-dir", state, "--endpoint", filepath.Join(t.TempDir(), "s"), "--kubelet-dir", t.TempDir())
	if code != 1 || !strings.Contains(stderr, "in use by another btrfs-csi") {
		t.Errorf("exit code %d: %s", code, stderr)
	}
}

func TestBadFlags(t *testing.T) {
	for _, test := range []struct {
		name string
		args []string
		want string
	}{
		{"quota", []string{"serve", "--quota", "some"}, "auto, full, simple or none"},
		{"loop pool", []string{"serve", "--loop-pool", "many"}, "a quantity such as 20Gi"},
		{"loop pool too small", []string{"serve", "--loop-pool", "1Mi"}, "at least 256Mi"},
		{"pool timeout", []string{"serve", "--pool-timeout", "0"}, "a time above 0 is wanted"},
		{"output", []string{"version", "-o", "yaml"}, "json is known"},
		{"output of prune", []string{"prune", "--delete", "-o", "wide"}, "json is known"},
		{"one pool repaired", []string{"check", "--repair", "--pool", "default"}, "none of the others can be"},
		{"argument", []string{"ls", "what"}, `unknown command "what"`},
	} {
		t.Run(test.name, func(t *testing.T) {
			args := test.args
			if args[0] == "serve" {
				args = append(args, "--state-dir", t.TempDir(), "--endpoint", filepath.Join(t.TempDir(), "s"))
			}
			_, stderr, code := run(t, args...)
			if code != 1 || !strings.Contains(stderr, test.want) {
				t.Errorf("exit code %d: %s, want %q", code, stderr, test.want)
			}
		})
	}
}

func TestSize(t *testing.T) {
	for bytes, want := range map[int64]string{0: "0", 1023: "1023", 1024: "1Ki", 1536: "1.5Ki", 1 << 20: "1Mi", 5 << 30: "5Gi", 1<<63 - 1: "8Ei"} {
		if got := size(bytes); got != want {
			t.Errorf("size(%d) = %s, want %s", bytes, got, want)
		}
	}
}
