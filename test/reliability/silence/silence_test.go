package silence

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs"
	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs/btrfstest"
	"github.com/btrfs-csi/btrfs-csi/pkg/pool"
	"github.com/btrfs-csi/btrfs-csi/pkg/snapshot"
	"github.com/btrfs-csi/btrfs-csi/test/reliability/files"
	"github.com/btrfs-csi/btrfs-csi/test/reliability/node"
	"github.com/btrfs-csi/btrfs-csi/test/reliability/node/nodetest"
	"github.com/btrfs-csi/btrfs-csi/test/reliability/silence/disk"
	"github.com/btrfs-csi/btrfs-csi/test/testkit"
)

const mib = 1 << 20

// slowVolumes is the number of volumes of the silent pool. Its trees need more than a few blocks.
const slowVolumes = 600

func TestMain(m *testing.M) {
	disk.Main()
	os.Exit(btrfstest.Main(m.Run))
}

// TestSilentDisk silences the disk of one of two pools. The driver has to serve the other pool and to
// report the state of both. When the disk answers again nothing is lost, and nothing has to be restarted.
func TestSilentDisk(t *testing.T) {
	for _, buffered := range []bool{false, true} {
		t.Run(fmt.Sprintf("buffered=%v", buffered), func(t *testing.T) { newSilenceRig(t, buffered).run(t) })
	}
}

// silenceRig is a node with a pool "default" that answers, and a pool "slow".
type silenceRig struct {
	*node.Node
	disk *disk.Disk
	http string // address
	data map[string]string
}

func newSilenceRig(t *testing.T, buffered bool) *silenceRig {
	btrfstest.RequireRoot(t)
	dir := t.TempDir()
	r := &silenceRig{Node: node.New(nodetest.Driver(t), filepath.Join(dir, "node"), filepath.Join(dir, "default.img"), btrfs.QuotaFull)}
	r.http = freeAddress(t)
	r.Flags = []string{"--pool-timeout=1s", "--http=" + r.http}
	nodetest.No(t, node.NewPool(t.Context(), r.Image))
	nodetest.No(t, os.Mkdir(filepath.Join(dir, "disk"), 0o700))
	var err error
	r.disk, err = disk.New(filepath.Join(dir, "disk"), 1<<30)
	nodetest.No(t, err)
	nodetest.No(t, testkit.Run(t.Context(), "mkfs.btrfs", "-q", "-K", r.disk.Below()))
	t.Cleanup(func() { r.end(t) })
	nodetest.No(t, r.disk.Start())
	nodetest.No(t, r.Open(t.Context()))
	nodetest.No(t, os.Mkdir(r.slow(), 0o700))
	nodetest.No(t, testkit.Loop{File: r.disk.Path(), Buffered: buffered}.Mount(t.Context(), r.slow()))
	nodetest.No(t, r.Serve(t.Context()))
	return r
}

func (r *silenceRig) slow() string { return filepath.Join(r.State, "pools", "slow") }

// end unmounts and removes everything, also after a failure.
func (r *silenceRig) end(t *testing.T) {
	if err := r.disk.Answer(); err != nil && !errors.Is(err, disk.ErrLate) {
		t.Log(err)
	}
	err := r.Kill()
	if gone := btrfstest.Unmount(r.slow()); gone != nil && !errors.Is(gone, unix.EINVAL) && !errors.Is(gone, unix.ENOENT) {
		err = errors.Join(err, gone)
	}
	err = errors.Join(err, r.Close(), r.disk.Stop())
	if err != nil {
		t.Errorf("left behind: %v", err)
	}
}

func freeAddress(t *testing.T) string {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	nodetest.No(t, err)
	defer listener.Close()
	return listener.Addr().String()
}

func (r *silenceRig) run(t *testing.T) {
	r.fill(t)
	pid := r.Process.Cmd.Process.Pid
	r.duringSilence(t, append(r.served(t), r.refused()...))
	r.back(t)
	if fell := r.Fell(); fell != nil || r.Process.Cmd.Process.Pid != pid {
		t.Fatalf("the driver did not go on: %v", fell)
	}
	r.restartsDuringSilence(t)
	r.back(t)
}

func (r *silenceRig) createIn(ctx context.Context, pool, name, from string) error {
	request := &csi.CreateVolumeRequest{
		Name: name, Parameters: map[string]string{"pool": pool}, VolumeCapabilities: []*csi.VolumeCapability{testkit.Writer},
		CapacityRange: &csi.CapacityRange{RequiredBytes: 8 * mib},
	}
	if from != "" {
		request.VolumeContentSource = testkit.FromSnapshot(from)
	}
	_, err := r.Driver.Load().CreateVolume(ctx, request)
	return err
}

// attempts is the largest number of silences. On a busy machine a silence may end before all requests
// were sent.
const attempts = 5

// fill makes the volumes and mounts that exist before the disk falls silent.
func (r *silenceRig) fill(t *testing.T) {
	ctx, c := t.Context(), r.Driver.Load()
	g, grouped := errgroup.WithContext(ctx)
	g.SetLimit(16)
	for i := range slowVolumes {
		g.Go(func() error { return r.createIn(grouped, "slow", fmt.Sprintf("slow-%d", i), "") })
	}
	nodetest.No(t, g.Wait())
	r.data = map[string]string{}
	for i := range 5 {
		id := fmt.Sprintf("slow-%d", i)
		r.data[id] = strings.Repeat(id, 1000)
		nodetest.No(t, files.WriteSynced(filepath.Join(r.slow(), "active", id, "fs", "data"), []byte(r.data[id])))
	}
	names := []string{"base", "grown"}
	for i := range attempts {
		names = append(names, fmt.Sprintf("deleted-%d", i), fmt.Sprintf("staged-%d", i), fmt.Sprintf("published-%d", i), fmt.Sprintf("unpublished-%d", i))
	}
	for _, name := range names {
		nodetest.No(t, r.createIn(ctx, "default", name, ""))
	}
	_, err := c.CreateSnapshot(ctx, &csi.CreateSnapshotRequest{Name: "snap", SourceVolumeId: "base"})
	nodetest.No(t, err)
	for _, name := range append(names, "slow-0") {
		nodetest.No(t, os.MkdirAll(r.Staging(name), 0o700))
		if strings.HasPrefix(name, "staged") {
			continue
		}
		nodetest.No(t, c.Stage(ctx, name, testkit.Writer))
		if strings.HasPrefix(name, "published") {
			continue
		}
		nodetest.No(t, c.Publish(ctx, name, testkit.Writer))
	}
}

// inquiry is a request during the silence. ask fails unless the answer is right.
type inquiry struct {
	what string
	ask  func(ctx context.Context, attempt int) error
}

// served returns requests to the other pool, and requests that report on pools.
func (r *silenceRig) served(t *testing.T) []inquiry {
	c := r.Driver.Load()
	id := func(kind string, attempt int) string { return fmt.Sprintf("%s-%d", kind, attempt) }
	return []inquiry{
		{"CreateVolume", func(ctx context.Context, n int) error { return r.createIn(ctx, "default", id("new", n), "") }},
		{"restore", func(ctx context.Context, n int) error { return r.createIn(ctx, "default", id("restored", n), "snap") }},
		{"CreateSnapshot", func(ctx context.Context, n int) error {
			_, err := c.CreateSnapshot(ctx, &csi.CreateSnapshotRequest{Name: id("taken", n), SourceVolumeId: "base"})
			return err
		}},
		{"DeleteVolume", func(ctx context.Context, n int) error {
			err := c.Unmount(ctx, id("deleted", n))
			if err == nil {
				_, err = c.DeleteVolume(ctx, &csi.DeleteVolumeRequest{VolumeId: id("deleted", n)})
			}
			return err
		}},
		{"ControllerExpandVolume", func(ctx context.Context, n int) error {
			_, err := c.ControllerExpandVolume(ctx, &csi.ControllerExpandVolumeRequest{VolumeId: "grown", CapacityRange: &csi.CapacityRange{RequiredBytes: int64(9+n) * mib}})
			return err
		}},
		{"NodeStageVolume", func(ctx context.Context, n int) error { return c.Stage(ctx, id("staged", n), testkit.Writer) }},
		{"NodePublishVolume", func(ctx context.Context, n int) error { return c.Publish(ctx, id("published", n), testkit.Writer) }},
		{"NodeUnpublishVolume", func(ctx context.Context, n int) error {
			return c.Unpublish(ctx, id("unpublished", n))
		}},
		{"NodeGetVolumeStats", func(ctx context.Context, _ int) error {
			_, err := c.NodeGetVolumeStats(ctx, &csi.NodeGetVolumeStatsRequest{VolumeId: "base", VolumePath: r.Target("base")})
			return err
		}},
		{"ControllerGetVolumeHealth", func(ctx context.Context, _ int) error {
			health, err := c.ControllerGetVolumeHealth(ctx, &csi.ControllerGetVolumeHealthRequest{VolumeId: "base"})
			return wanted(err, health.GetVolumeHealth().GetHealthStatuses() == nil, "a healthy volume", health)
		}},
		{"GetCapacity", func(ctx context.Context, _ int) error {
			capacity, err := c.GetCapacity(ctx, &csi.GetCapacityRequest{})
			return wanted(err, capacity.GetAvailableCapacity() > 0, "some", capacity)
		}},
		{"ListVolumes", func(ctx context.Context, _ int) error {
			all, err := node.List(ctx, c)
			return wanted(err, len(all) > slowVolumes, "all volumes", len(all))
		}},
		{"Probe", func(ctx context.Context, _ int) error {
			probe, err := c.Probe(ctx, &csi.ProbeRequest{})
			return wanted(err, probe.GetReady().GetValue(), "ready: a pool is served", probe)
		}},
		{"readyz", func(context.Context, int) error {
			text, err := r.get("/readyz")
			return wanted(err, strings.HasPrefix(text, "ok"), "ok", text)
		}},
		{"metrics", func(context.Context, int) error {
			text, err := r.get("/metrics")
			usable := func(pool, value string) bool {
				return slices.ContainsFunc(strings.Split(text, "\n"), func(line string) bool {
					return strings.HasPrefix(line, "btrfs_csi_pool_usable{pool=\""+pool+"\"") && strings.HasSuffix(line, " "+value)
				})
			}
			return wanted(err, usable("default", "1") && usable("slow", "0"), "one pool usable", text)
		}},
		{"pools", func(context.Context, int) error {
			var pools []pool.Status
			text, err := r.Admin("/pools")
			if err == nil {
				err = json.Unmarshal([]byte(text), &pools)
			}
			return wanted(err, len(pools) == 2 && pools[0].Error == "" && pools[1].Silent && pools[1].Error != "" && pools[1].ID != "", "one silent", text)
		}},
		{"check", func(context.Context, int) error {
			var findings []snapshot.Finding
			text, err := r.Admin("/check")
			if err == nil {
				err = json.Unmarshal([]byte(text), &findings)
			}
			return wanted(err, len(findings) == 1 && findings[0].Problem == pool.Silent && findings[0].Pool == "slow", "one silent", text)
		}},
		{"NodeGetStorageHealth", func(ctx context.Context, _ int) error {
			health, err := c.NodeGetStorageHealth(ctx, &csi.NodeGetStorageHealthRequest{})
			backends := health.GetBackendHealth()
			return wanted(err, len(backends) == 1 && backends[0].GetReason() == "PoolSilent" &&
				backends[0].GetStatus() == csi.StorageHealthErrorType_STORAGE_UNREACHABLE, "PoolSilent", health)
		}},
		{"ControllerGetVolumeHealth in the silent pool", func(ctx context.Context, _ int) error {
			health, err := c.ControllerGetVolumeHealth(ctx, &csi.ControllerGetVolumeHealthRequest{VolumeId: "slow-1"})
			all := health.GetVolumeHealth().GetHealthStatuses()
			return wanted(err, len(all) == 1 && all[0].GetReason() == "PoolSilent" &&
				all[0].GetStatus() == csi.VolumeHealthErrorType_INACCESSIBLE, "PoolSilent", health)
		}},
	}
}

// refused returns requests that need the silent pool.
func (r *silenceRig) refused() []inquiry {
	c := r.Driver.Load()
	refuse := func(what string, ask func(ctx context.Context) error) inquiry {
		return inquiry{what + " in the silent pool", func(ctx context.Context, _ int) error {
			if err := ask(ctx); status.Code(err) != codes.Unavailable {
				return fmt.Errorf("got %w, wanted UNAVAILABLE", err)
			}
			return nil
		}}
	}
	return []inquiry{
		refuse("CreateVolume", func(ctx context.Context) error { return r.createIn(ctx, "slow", "late", "") }),
		refuse("CreateSnapshot", func(ctx context.Context) error {
			_, err := c.CreateSnapshot(ctx, &csi.CreateSnapshotRequest{Name: "late", SourceVolumeId: "slow-1"})
			return err
		}),
		refuse("DeleteVolume", func(ctx context.Context) error {
			_, err := c.DeleteVolume(ctx, &csi.DeleteVolumeRequest{VolumeId: "slow-1"})
			return err
		}),
		refuse("NodeGetVolumeStats", func(ctx context.Context) error {
			_, err := c.NodeGetVolumeStats(ctx, &csi.NodeGetVolumeStatsRequest{VolumeId: "slow-0", VolumePath: r.Target("slow-0")})
			return err
		}),
		{"ControllerGetVolumeHealth in the silent pool", func(ctx context.Context, _ int) error {
			health, err := c.ControllerGetVolumeHealth(ctx, &csi.ControllerGetVolumeHealthRequest{VolumeId: "slow-0"})
			statuses := health.GetVolumeHealth().GetHealthStatuses()
			return wanted(err, len(statuses) == 1 && statuses[0].GetStatus() == csi.VolumeHealthErrorType_INACCESSIBLE, "INACCESSIBLE", health)
		}},
	}
}

func wanted(err error, right bool, what string, got any) error {
	if err == nil && !right {
		err = fmt.Errorf("wanted is %s, got %v", what, got)
	}
	return err
}

func (r *silenceRig) get(path string) (string, error) {
	client := http.Client{Timeout: time.Minute}
	response, err := client.Get("http://" + r.http + path)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if response.StatusCode != http.StatusOK {
		err = errors.Join(err, errors.New(response.Status))
	}
	return string(text), err
}

// forget drops the page cache, so that the next look-up reads from the disk.
func (r *silenceRig) forget(t *testing.T) {
	for _, pool := range []string{r.Pool(), r.slow()} {
		dir, err := os.Open(pool)
		nodetest.No(t, err)
		nodetest.No(t, errors.Join(unix.Syncfs(int(dir.Fd())), dir.Close()))
	}
	nodetest.No(t, os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0))
}

// duringSilence sends all requests at once while the disk is silent. The driver has to answer each
// before the silence ends. On a busy machine some are late for no other reason, so they are sent again
// in another silence. A request that waits for the disk is late each time.
func (r *silenceRig) duringSilence(t *testing.T, questions []inquiry) {
	for attempt := range attempts {
		r.forget(t)
		nodetest.No(t, r.disk.Silence())
		ctx, cancel := context.WithCancel(t.Context())
		late := r.askAll(ctx, t, questions, attempt)
		cancel()
		if err := r.disk.Answer(); err != nil && !errors.Is(err, disk.ErrLate) {
			t.Fatal(err)
		}
		if len(late) == 0 {
			return
		}
		questions = late
	}
	for _, q := range questions {
		t.Errorf("%s waits for the disk that does not answer", q.what)
	}
}

// askAll returns the requests that were not answered in time.
func (r *silenceRig) askAll(ctx context.Context, t *testing.T, questions []inquiry, attempt int) (late []inquiry) {
	end := time.Now().Add(disk.MostSilence - time.Second) // the server ends the silence later
	// The first request makes the driver find the silence, which the others expect it to report.
	first, cancel := context.WithDeadline(ctx, end)
	defer cancel()
	_, err := r.Driver.Load().ControllerGetVolume(first, &csi.ControllerGetVolumeRequest{VolumeId: "slow-300"})
	if status.Code(err) != codes.Unavailable {
		t.Logf("the first to ask got %v", err)
		return questions
	}
	answered := make([]chan error, len(questions))
	for i, q := range questions {
		answered[i] = make(chan error, 1)
		go func() { answered[i] <- q.ask(ctx, attempt) }()
	}
	timeout := time.After(time.Until(end))
	for i, q := range questions {
		select {
		case err := <-answered[i]:
			if err != nil {
				t.Errorf("%s: %v", q.what, err)
			}
		case <-timeout:
			timeout = time.After(0)
			late = append(late, q)
		}
	}
	return late
}

// back checks that the driver serves the pool again and that nothing is lost.
func (r *silenceRig) back(t *testing.T) {
	r.until(t, "the pool is back", func() bool {
		var pools []pool.Status
		text, err := r.Admin("/pools")
		return err == nil && json.Unmarshal([]byte(text), &pools) == nil && len(pools) == 2 && pools[1].Error == ""
	})
	ctx, c := t.Context(), r.Driver.Load()
	g, grouped := errgroup.WithContext(ctx)
	g.SetLimit(16)
	for i := range slowVolumes {
		g.Go(func() error {
			_, err := c.ControllerGetVolume(grouped, &csi.ControllerGetVolumeRequest{VolumeId: fmt.Sprintf("slow-%d", i)})
			return err
		})
	}
	nodetest.No(t, g.Wait())
	for id, want := range r.data {
		have, err := os.ReadFile(filepath.Join(r.slow(), "active", id, "fs", "data"))
		if err != nil || string(have) != want {
			t.Errorf("%s: %d bytes, %v", id, len(have), err)
		}
	}
	nodetest.No(t, r.createIn(ctx, "slow", "late", ""))
	findings, err := r.Findings(ctx)
	if err != nil || len(findings) > 0 {
		t.Errorf("check finds %v, %v", findings, err)
	}
	nodetest.No(t, r.ReadLog())
}

func (r *silenceRig) until(t *testing.T, what string, is func() bool) {
	for deadline := time.Now().Add(node.Patience); !is(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s; the driver's last words:\n%s", what, r.LastWords())
		}
	}
}

// restartsDuringSilence checks that a driver stops during the silence, and that the next one serves the
// other pool. Only the process of the first one stays until the disk answers, because the kernel cannot
// end a thread that waits for a disk.
func (r *silenceRig) restartsDuringSilence(t *testing.T) {
	for attempt := range attempts {
		r.forget(t)
		nodetest.No(t, r.disk.Silence())
		first := r.Process
		err := r.restart(t.Context(), attempt)
		late := r.disk.Answer()
		<-first.Ended()
		if err == nil && late == nil {
			return
		}
		t.Logf("%v, %v; the drivers said:\n%s", err, late, r.LastWords())
		if r.Process == nil {
			nodetest.No(t, r.Serve(t.Context()))
		}
	}
	t.Error("no driver was restarted while the disk was silent")
}

// restart stops a driver while its requests wait for the disk, and starts another one.
func (r *silenceRig) restart(ctx context.Context, attempt int) error {
	ctx, cancel := context.WithTimeout(ctx, disk.MostSilence)
	defer cancel()
	for i := range 3 {
		_, _ = r.Driver.Load().ControllerGetVolume(ctx, &csi.ControllerGetVolumeRequest{VolumeId: fmt.Sprintf("slow-%d", 200+i)})
	}
	first := r.Process
	if err := first.Signal(unix.SIGTERM); err != nil {
		return err
	}
	for r.locked() {
		if ctx.Err() != nil {
			return errors.New("the driver does not stop")
		}
		time.Sleep(10 * time.Millisecond)
	}
	r.Process = nil
	if err := r.Serve(ctx); err != nil {
		return err
	}
	return r.createIn(ctx, "default", fmt.Sprintf("restarted-%d", attempt), "")
}

// locked reports whether a driver has locked the state directory.
func (r *silenceRig) locked() bool {
	lock, err := os.Open(filepath.Join(r.State, "lock"))
	if err != nil {
		return false
	}
	defer lock.Close()
	of := unix.Flock_t{Type: unix.F_RDLCK}
	return unix.FcntlFlock(lock.Fd(), unix.F_OFD_GETLK, &of) == nil && of.Type == unix.F_WRLCK
}
