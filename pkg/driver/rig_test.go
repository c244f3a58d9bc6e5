package driver

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs"
	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs/btrfstest"
	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
	"github.com/btrfs-csi/btrfs-csi/pkg/meta/index"
	"github.com/btrfs-csi/btrfs-csi/pkg/mount"
	"github.com/btrfs-csi/btrfs-csi/pkg/pool"
	"github.com/btrfs-csi/btrfs-csi/pkg/snapshot"
)

const mib = 1 << 20

// rig is a driver on a real socket, over a real engine on a real btrfs.
type rig struct {
	csi.IdentityClient
	csi.ControllerClient
	csi.NodeClient

	t       *testing.T
	driver  *Driver
	engine  *snapshot.Engine
	state   string // the state directory, mount point of the btrfs
	kubelet string
	socket  string
}

// rigOptions are the options of newRig.
type rigOptions struct {
	Options
	quota btrfs.QuotaMode
	pools []string // additional pools, each on another btrfs
	mount []string // mount options of the pool default
	state string   // state directory on a btrfs; by default a new one
	wrap  func(e Engine) Engine
}

func newRig(t *testing.T, o rigOptions) *rig {
	t.Helper()
	r := &rig{t: t, state: o.state}
	if r.state == "" {
		r.state = btrfstest.Mount(t, btrfstest.MountOptions(o.mount...))
	}
	for _, name := range o.pools {
		r.addPool(name)
	}
	if o.quota == "" {
		o.quota = pool.QuotaAuto
	}
	r.openEngine(o.quota)
	if o.KubeletDir == "" {
		o.KubeletDir = filepath.Join(t.TempDir(), "kubelet")
		mkdir(t, o.KubeletDir)
	}
	r.kubelet = o.KubeletDir
	t.Cleanup(func() { unmountBelow(t, r.kubelet) })
	o.NodeID, o.Version = "node-1", "v0.0.0-test"
	engine := Engine(r.engine)
	if o.wrap != nil {
		engine = o.wrap(engine)
	}
	var err error
	if r.driver, err = New(engine, o.Options); err != nil {
		t.Fatal(err)
	}
	r.serve()
	return r
}

func (r *rig) addPool(name string) {
	at := filepath.Join(r.state, "pools", name)
	if err := os.MkdirAll(at, 0o700); err != nil {
		r.t.Fatal(err)
	}
	bindMount(r.t, btrfstest.Mount(r.t), at)
	r.t.Cleanup(func() { btrfstest.UnmountAll(r.t, at) })
}

func (r *rig) openEngine(quota btrfs.QuotaMode) {
	host, err := pool.NewHost(r.state, quota)
	if err != nil {
		r.t.Fatal(err)
	}
	index, _, err := index.Open(filepath.Join(r.t.TempDir(), "index.db"))
	if err != nil {
		r.t.Fatal(err)
	}
	if r.engine, err = snapshot.Open(context.Background(), host, index, snapshot.Patience(time.Minute)); err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { _ = r.engine.Close() })
}

func (r *rig) serve() {
	r.socket = filepath.Join(r.t.TempDir(), "csi.sock")
	stop := serve(r.t, r.driver, "unix://"+r.socket)
	r.t.Cleanup(stop)
	connection := dial(r.t, r.socket)
	r.IdentityClient = csi.NewIdentityClient(connection)
	r.ControllerClient = csi.NewControllerClient(connection)
	r.NodeClient = csi.NewNodeClient(connection)
}

// serve runs a driver until stop is called.
func serve(t *testing.T, d *Driver, endpoint string) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- d.Serve(ctx, endpoint) }()
	waitFor(t, "socket", func() bool {
		if len(ended) > 0 {
			t.Fatalf("Serve: %v", <-ended)
		}
		_, err := os.Lstat(strings.TrimPrefix(endpoint, "unix://"))
		return err == nil
	})
	return func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Serve: %v", err)
		}
	}
}

func dial(t *testing.T, socket string) *grpc.ClientConn {
	t.Helper()
	connection, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = connection.Close() })
	return connection
}

func waitFor(t *testing.T, what string, is func() bool) {
	t.Helper()
	btrfstest.Eventually(t, what, is)
}

func writer() *csi.VolumeCapability {
	return capability(csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER)
}

func reader() *csi.VolumeCapability {
	return capability(csi.VolumeCapability_AccessMode_MULTI_NODE_READER_ONLY)
}

func capability(mode csi.VolumeCapability_AccessMode_Mode, flags ...string) *csi.VolumeCapability {
	return &csi.VolumeCapability{
		AccessMode: &csi.VolumeCapability_AccessMode{Mode: mode},
		AccessType: &csi.VolumeCapability_Mount{Mount: &csi.VolumeCapability_MountVolume{MountFlags: flags}},
	}
}

// formatted is a writer of a volume with a filesystem of this type.
func formatted(fsType string) *csi.VolumeCapability {
	return &csi.VolumeCapability{
		AccessMode: writer().GetAccessMode(),
		AccessType: &csi.VolumeCapability_Mount{Mount: &csi.VolumeCapability_MountVolume{FsType: fsType}},
	}
}

// device is a capability of a block volume.
func device(mode csi.VolumeCapability_AccessMode_Mode) *csi.VolumeCapability {
	return &csi.VolumeCapability{
		AccessMode: &csi.VolumeCapability_AccessMode{Mode: mode},
		AccessType: &csi.VolumeCapability_Block{Block: &csi.VolumeCapability_BlockVolume{}},
	}
}

func sized(bytes int64) *csi.CapacityRange { return &csi.CapacityRange{RequiredBytes: bytes} }

func fromSnapshot(id string) *csi.VolumeContentSource { return sourceOf(meta.Snapshot(id)) }
func fromVolume(id string) *csi.VolumeContentSource   { return sourceOf(meta.Volume(id)) }

// create makes a volume of 100 MiB and returns its ID.
func (r *rig) create(name string) string {
	r.t.Helper()
	return r.createAs(&csi.CreateVolumeRequest{Name: name, CapacityRange: sized(100 * mib)}).GetVolumeId()
}

// createAs makes a volume. It is read-write by default.
func (r *rig) createAs(request *csi.CreateVolumeRequest) *csi.Volume {
	r.t.Helper()
	if request.VolumeCapabilities == nil {
		request.VolumeCapabilities = []*csi.VolumeCapability{writer()}
	}
	response, err := r.CreateVolume(r.t.Context(), request)
	if err != nil {
		r.t.Fatalf("create %q: %v", request.GetName(), err)
	}
	return response.GetVolume()
}

func (r *rig) snapshot(name, volume string) string {
	r.t.Helper()
	response, err := r.CreateSnapshot(r.t.Context(), &csi.CreateSnapshotRequest{Name: name, SourceVolumeId: volume})
	if err != nil {
		r.t.Fatalf("snapshot %q: %v", name, err)
	}
	return response.GetSnapshot().GetSnapshotId()
}

func (r *rig) delete(volume string) error {
	_, err := r.DeleteVolume(r.t.Context(), &csi.DeleteVolumeRequest{VolumeId: volume})
	return err
}

// source returns the path of a volume in its pool.
func (r *rig) source(volume string) string {
	r.t.Helper()
	m, err := r.engine.Mounts(r.t.Context(), volume)
	if err != nil {
		r.t.Fatal(err)
	}
	return m.Source
}

// stagingPath and targetPath create directories as the kubelet does: the staging directory,
// and the parent of the target.
func (r *rig) stagingPath(volume string) string {
	at := filepath.Join(r.kubelet, "plugins", "csi", volume, "globalmount")
	mkdir(r.t, at)
	return at
}

func (r *rig) targetPath(pod, volume string) string {
	at := filepath.Join(r.kubelet, "pods", pod, "volumes", volume)
	mkdir(r.t, at)
	return filepath.Join(at, "mount")
}

func (r *rig) stage(volume string, c *csi.VolumeCapability) error {
	_, err := r.NodeStageVolume(r.t.Context(), &csi.NodeStageVolumeRequest{
		VolumeId: volume, StagingTargetPath: r.stagingPath(volume), VolumeCapability: c,
	})
	return err
}

func (r *rig) unstage(volume string) error {
	_, err := r.NodeUnstageVolume(r.t.Context(), &csi.NodeUnstageVolumeRequest{VolumeId: volume, StagingTargetPath: r.stagingPath(volume)})
	return err
}

func (r *rig) publish(volume, target string, c *csi.VolumeCapability, readOnly bool) error {
	_, err := r.NodePublishVolume(r.t.Context(), &csi.NodePublishVolumeRequest{
		VolumeId: volume, StagingTargetPath: r.stagingPath(volume), TargetPath: target, VolumeCapability: c, Readonly: readOnly,
	})
	return err
}

func (r *rig) unpublish(volume, target string) error {
	_, err := r.NodeUnpublishVolume(r.t.Context(), &csi.NodeUnpublishVolumeRequest{VolumeId: volume, TargetPath: target})
	return err
}

// sync commits a transaction, which updates usage.
func (r *rig) sync() {
	r.t.Helper()
	dir, err := os.Open(r.state)
	must(r.t, err)
	defer dir.Close()
	must(r.t, unix.Syncfs(int(dir.Fd())))
}

// published creates, stages and publishes a volume. It returns the volume's ID and target.
func (r *rig) published(name string) (volume, target string) {
	r.t.Helper()
	volume = r.create(name)
	target = r.targetPath("pod-1", volume)
	must(r.t, r.stage(volume, writer()))
	must(r.t, r.publish(volume, target, writer(), false))
	return volume, target
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// wantCode fails the test unless err has this code and its text contains all words.
func wantCode(t *testing.T, err error, code codes.Code, words ...string) {
	t.Helper()
	if status.Code(err) != code {
		t.Errorf("want code %s, got %v", code, err)
		return
	}
	for _, word := range words {
		if !strings.Contains(status.Convert(err).Message(), word) {
			t.Errorf("want %q in the message, got %q", word, status.Convert(err).Message())
		}
	}
	if strings.Contains(status.Convert(err).Message(), "rpc error") {
		t.Errorf("a code within the message: %q", status.Convert(err).Message())
	}
}

func mkdir(t *testing.T, path string) {
	t.Helper()
	must(t, os.MkdirAll(path, 0o750))
}

func write(t *testing.T, path, text string) {
	t.Helper()
	must(t, os.WriteFile(path, []byte(text), 0o600))
}

func wantFile(t *testing.T, path, text string) {
	t.Helper()
	if data, err := os.ReadFile(path); err != nil || string(data) != text {
		t.Errorf("%s: want %q, got %q, %v", path, text, data, err)
	}
}

func wantGone(t *testing.T, path string) {
	t.Helper()
	if _, err := os.Lstat(path); !os.IsNotExist(err) {
		t.Errorf("%s: want it gone, got %v", path, err)
	}
}

func bindMount(t *testing.T, from, to string) {
	t.Helper()
	if err := unix.Mount(from, to, "", unix.MS_BIND, ""); err != nil {
		t.Fatalf("bind %s to %s: %v", from, to, err)
	}
}

// mountTable returns all mounts in the order of the kernel.
func mountTable(t *testing.T) (all []mount.Info) {
	t.Helper()
	lines, err := mountinfo.GetMounts(nil)
	must(t, err)
	for _, line := range lines {
		all = append(all, mount.Info{Type: line.FSType, Root: strings.TrimSuffix(line.Root, "//deleted"), Point: line.Mountpoint})
	}
	return all
}

// mountsAt returns the number of mounts at a path.
func mountsAt(t *testing.T, path string) int {
	t.Helper()
	path, err := filepath.EvalSymlinks(path)
	must(t, err)
	return len(slices.DeleteFunc(mountTable(t), func(m mount.Info) bool { return m.Point != path }))
}

func wantMounts(t *testing.T, path string, n int) {
	t.Helper()
	if got := mountsAt(t, path); got != n {
		t.Errorf("%s: want %d mounts, got %d", path, n, got)
	}
}

// unmountBelow removes all mounts below dir. It reads the table again after each unmount,
// because that may have removed copies of a shared mount, too.
func unmountBelow(t *testing.T, dir string) {
	dir, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return
	}
	for {
		below := slices.DeleteFunc(mountTable(t), func(m mount.Info) bool { return !strings.HasPrefix(m.Point, dir+"/") })
		if len(below) == 0 {
			return
		}
		last := below[len(below)-1]
		if err := unix.Unmount(last.Point, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount %s: %v", last.Point, err)
			return
		}
	}
}

// share makes the mounts of the pool and of the kubelet's directory shared, as on a node.
// By default the mounts of tests are private, or shared with their surroundings.
func (r *rig) share() {
	r.t.Helper()
	bindMount(r.t, r.kubelet, r.kubelet)
	for _, at := range []string{r.state, r.kubelet} {
		must(r.t, unix.Mount("", at, "", unix.MS_PRIVATE, ""))
		must(r.t, unix.Mount("", at, "", unix.MS_SHARED, ""))
	}
	r.t.Cleanup(func() { unmountBelow(r.t, r.kubelet); _ = unix.Unmount(r.kubelet, unix.MNT_DETACH) })
}
