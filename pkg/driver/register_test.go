package driver

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	registration "k8s.io/kubelet/pkg/apis/pluginregistration/v1"

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs/btrfstest"
	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
	"github.com/btrfs-csi/btrfs-csi/pkg/snapshot"
)

// registerRig returns a driver that registers in a temporary kubelet directory and follows
// the pools of its engine.
func registerRig(t *testing.T) (r *rig, registry string) {
	t.Helper()
	kubelet := shortDir(t)
	registry = filepath.Join(kubelet, registrations, Name+"-reg.sock")
	mkdir(t, filepath.Dir(registry))
	r = newRig(t, rigOptions{Options: Options{KubeletDir: kubelet, Register: true, Calm: time.Millisecond}})
	waitFor(t, "socket of the registration", func() bool { // created after the CSI socket
		_, err := os.Lstat(registry)
		return err == nil
	})
	return r, registry
}

// shortDir returns a directory with a path that is short enough for a socket. t.TempDir
// contains the test's name and is too long.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "")
	must(t, err)
	t.Cleanup(func() { must(t, os.RemoveAll(dir)) })
	return dir
}

func TestRegistration(t *testing.T) {
	btrfstest.RequireRoot(t)
	r, registry := registerRig(t)
	info, err := os.Lstat(registry)
	must(t, err)
	if info.Mode() != os.ModeSocket|0o600 {
		t.Errorf("want a socket of mode 0600, got %v", info.Mode())
	}
	client := registration.NewRegistrationClient(dial(t, registry))
	plugin, err := client.GetInfo(t.Context(), &registration.InfoRequest{})
	must(t, err)
	if plugin.Type != registration.CSIPlugin || plugin.Name != Name || plugin.Endpoint != r.socket || !slices.Contains(plugin.SupportedVersions, "1.0.0") {
		t.Errorf("got %v", plugin)
	}
	for _, registered := range []bool{true, false} {
		_, err := client.NotifyRegistrationStatus(t.Context(), &registration.RegistrationStatus{PluginRegistered: registered, Error: "why"})
		must(t, err)
	}
	// The reported endpoint is the driver's socket.
	_, err = csi.NewIdentityClient(dial(t, plugin.Endpoint)).GetPluginInfo(t.Context(), &csi.GetPluginInfoRequest{})
	must(t, err)
}

func TestRegistrationGoesWithTheDriver(t *testing.T) {
	kubelet := shortDir(t)
	d, err := New(&stubEngine{stat: found}, Options{NodeID: "node-1", Version: "v1", KubeletDir: kubelet, Register: true})
	must(t, err)
	ctx := t.Context()
	if err := d.Serve(ctx, filepath.Join(shortDir(t), "csi.sock")); err == nil {
		t.Fatal("served without a directory to register in")
	}
	registry := filepath.Join(kubelet, registrations, Name+"-reg.sock")
	mkdir(t, filepath.Dir(registry))
	stop := serve(t, d, filepath.Join(shortDir(t), "csi.sock"))
	waitFor(t, "registration", func() bool { _, err := os.Lstat(registry); return err == nil })
	stop()
	wantGone(t, registry)
}

// Kubelet and sidecars read the topology once. The driver must make them read it again when
// it is outdated, and only then.
func TestServedAnewWhenPoolsChange(t *testing.T) {
	btrfstest.RequireRoot(t)
	r, registry := registerRig(t)
	r.engine.OnChange(func(ref meta.Ref) {
		if ref.IsZero() {
			r.driver.PoolsChanged()
		}
	})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); r.engine.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })

	connection := dial(t, r.socket)
	before := keysOf(t, csi.NewNodeClient(connection))
	socket, registered := born(t, r.socket), born(t, registry)
	r.create("pvc-1")
	r.driver.PoolsChanged() // no pool has changed
	if len(before) != 1 || born(t, r.socket) != socket || connection.GetState() != connectivity.Ready {
		t.Errorf("served anew for nothing; keys %v, connection %v", before, connection.GetState())
	}
	r.addPool("fast")
	waitFor(t, "the new sockets", func() bool {
		return lookup(r.socket) != socket && lookup(r.socket) != 0 && lookup(registry) != registered && lookup(registry) != 0
	})
	after := keysOf(t, csi.NewNodeClient(dial(t, r.socket)))
	if len(after) != 2 || !slices.Contains(after, before[0]) {
		t.Errorf("before %v, after %v", before, after)
	}
}

// A node may have no pool at the first NodeGetInfo.
func TestServedAnewForTheFirstPool(t *testing.T) {
	engine := &pooledEngine{}
	d, err := New(engine, Options{NodeID: "node-1", Version: "v1", KubeletDir: shortDir(t), Calm: time.Millisecond})
	must(t, err)
	socket := filepath.Join(shortDir(t), "csi.sock")
	stop := serve(t, d, socket)
	defer stop()
	for _, ids := range []map[string]string{{"default": "id-1"}, {}, {"default": "id-1"}} {
		if _, err := csi.NewNodeClient(dial(t, socket)).NodeGetInfo(t.Context(), &csi.NodeGetInfoRequest{}); err != nil {
			t.Fatal(err)
		}
		before := born(t, socket)
		engine.ids.Store(&ids)
		d.PoolsChanged()
		waitFor(t, "the new socket", func() bool { return lookup(socket) != before && lookup(socket) != 0 })
	}
}

// A request that hangs in the kernel must not keep the driver from serving others.
func TestServedAnewBesideARequestThatHangs(t *testing.T) {
	hang := make(chan struct{})
	engine := &pooledEngine{}
	engine.stat = func() (meta.Entry, error) { <-hang; return meta.Entry{}, nil }
	d, err := New(engine, Options{NodeID: "node-1", Version: "v1", KubeletDir: shortDir(t), Calm: time.Millisecond, GracePeriod: 50 * time.Millisecond})
	must(t, err)
	socket := filepath.Join(shortDir(t), "csi.sock")
	stop := serve(t, d, socket)
	defer stop()
	defer close(hang)
	go func() { _ = getVolume(t, socket) }()
	_, err = csi.NewNodeClient(dial(t, socket)).NodeGetInfo(t.Context(), &csi.NodeGetInfoRequest{})
	must(t, err)
	before := born(t, socket)
	engine.ids.Store(&map[string]string{"default": "id-1"})
	d.PoolsChanged()
	waitFor(t, "the new socket", func() bool { return lookup(socket) != before && lookup(socket) != 0 })
	_, err = csi.NewIdentityClient(dial(t, socket)).Probe(t.Context(), &csi.ProbeRequest{})
	must(t, err)
}

// pooledEngine has the pools that a test sets.
type pooledEngine struct {
	stubEngine
	ids atomic.Pointer[map[string]string]
}

func (e *pooledEngine) PoolIDs() map[string]string {
	if ids := e.ids.Load(); ids != nil {
		return *ids
	}
	return nil
}

func keysOf(t *testing.T, client csi.NodeClient) []string {
	t.Helper()
	info, err := client.NodeGetInfo(t.Context(), &csi.NodeGetInfoRequest{})
	must(t, err)
	keys := []string{}
	for key := range info.GetAccessibleTopology().GetSegments() {
		keys = append(keys, key)
	}
	return keys
}

// lookup returns the change time of a file, or 0 if it is absent. The inode number does not
// identify a file, since a new file may reuse it.
func lookup(path string) int64 {
	var st unix.Stat_t
	if unix.Lstat(path, &st) != nil {
		return 0
	}
	return st.Ctim.Nano()
}

func born(t *testing.T, path string) int64 {
	t.Helper()
	at := lookup(path)
	if at == 0 {
		t.Fatalf("%s is not there", path)
	}
	return at
}

func TestEndpointOwner(t *testing.T) {
	btrfstest.RequireRoot(t)
	socket := filepath.Join(shortDir(t), "csi.sock")
	stop := serve(t, stubDriver(t, found, Options{EndpointOwner: 65532}), socket)
	defer stop()
	var st unix.Stat_t
	must(t, unix.Lstat(socket, &st))
	if st.Uid != 65532 || st.Gid != 0 || st.Mode&0o777 != 0o600 {
		t.Errorf("owner %d:%d, mode %o", st.Uid, st.Gid, st.Mode)
	}
	must(t, getVolume(t, socket))
}

// stubCluster knows the owner of one volume and one snapshot.
type stubCluster struct {
	owner  string
	pool   string
	err    error
	kept   []string
	asked  []snapshot.Range
	expand func(snapshot.Range) (int64, error)
}

func (c *stubCluster) KeptBy(context.Context, meta.Ref) ([]string, error) { return c.kept, c.err }

func (c *stubCluster) Owner(context.Context, meta.Ref) (node, poolID string, err error) {
	return c.owner, c.pool, c.err
}

func (c *stubCluster) Expand(_ context.Context, _ string, want snapshot.Range) (int64, error) {
	c.asked = append(c.asked, want)
	return c.expand(want)
}

// TestDeleteOfTheKept: a volume or snapshot that another object of the cluster uses is not
// deleted.
func TestDeleteOfTheKept(t *testing.T) {
	btrfstest.RequireRoot(t)
	cluster := &stubCluster{}
	r := newRig(t, rigOptions{Options: Options{Cluster: cluster}})
	ctx := t.Context()
	volume := r.create("pvc-1")
	snap, err := r.CreateSnapshot(ctx, &csi.CreateSnapshotRequest{Name: "snapshot-1", SourceVolumeId: volume})
	must(t, err)
	for _, c := range []struct {
		kept []string
		err  error
		want codes.Code
		says string
	}{
		{kept: []string{"db-data"}, want: codes.FailedPrecondition, says: "db-data"},
		{err: errors.New("no route"), want: codes.Unavailable, says: "no route"},
		{want: codes.OK},
	} {
		cluster.kept, cluster.err = c.kept, c.err
		for what, remove := range map[string]func() error{
			"volume": func() error {
				_, err := r.DeleteVolume(ctx, &csi.DeleteVolumeRequest{VolumeId: volume})
				return err
			},
			"snapshot": func() error {
				_, err := r.DeleteSnapshot(ctx, &csi.DeleteSnapshotRequest{SnapshotId: snap.GetSnapshot().GetSnapshotId()})
				return err
			},
		} {
			if err := remove(); Code(err) != c.want || err != nil && !strings.Contains(err.Error(), c.says) {
				t.Errorf("%s, kept by %q (%v): got %v, want %v and %q said", what, c.kept, c.err, err, c.want, c.says)
			}
		}
	}
	// A volume that is already gone can be deleted, whatever uses it.
	cluster.kept, cluster.err = []string{"db-data"}, nil
	if _, err := r.DeleteVolume(ctx, &csi.DeleteVolumeRequest{VolumeId: volume}); err != nil {
		t.Error(err)
	}
}

func TestWhatIsOnAnotherNode(t *testing.T) {
	btrfstest.RequireRoot(t)
	cluster := &stubCluster{}
	r := newRig(t, rigOptions{Options: Options{Cluster: cluster}})
	ctx := t.Context()
	copied := used(fromSnapshot("snapshot-1"), writer())
	requests := map[string]func() error{
		"copy":   func() error { _, err := r.CreateVolume(ctx, copied); return err },
		"delete": func() error { return r.delete("pvc-1") },
		"delete snapshot": func() error {
			_, err := r.DeleteSnapshot(ctx, &csi.DeleteSnapshotRequest{SnapshotId: "snapshot-1"})
			return err
		},
	}
	for _, c := range []struct {
		name, owner, pool, word string
		err                     error
		want                    map[string]codes.Code
	}{
		{name: "elsewhere", owner: "node-2", word: `"node-2"`, want: map[string]codes.Code{
			"copy": codes.ResourceExhausted, "delete": codes.Unavailable, "delete snapshot": codes.Unavailable}},
		{name: "nowhere", want: map[string]codes.Code{"copy": codes.NotFound, "delete": codes.OK, "delete snapshot": codes.OK}},
		{name: "here, says a mirror that lags behind", owner: "node-1", want: map[string]codes.Code{
			"copy": codes.NotFound, "delete": codes.OK, "delete snapshot": codes.OK}},
		{name: "here, in a pool that is away", owner: "node-1", pool: "id-9", word: "id-9", want: map[string]codes.Code{
			"copy": codes.Unavailable, "delete": codes.Unavailable, "delete snapshot": codes.Unavailable}},
		{name: "cluster away", err: errors.New("connection refused"), want: map[string]codes.Code{
			"copy": codes.Unavailable, "delete": codes.Unavailable, "delete snapshot": codes.Unavailable}},
	} {
		cluster.owner, cluster.pool, cluster.err = c.owner, c.pool, c.err
		for name, request := range requests {
			t.Run(c.name+"/"+name, func(t *testing.T) {
				if c.want[name] == codes.OK {
					must(t, request())
				} else {
					wantCode(t, request(), c.want[name], c.word)
				}
			})
		}
	}
}

func TestExpansionElsewhere(t *testing.T) {
	btrfstest.RequireRoot(t)
	cluster := &stubCluster{}
	r := newRig(t, rigOptions{Options: Options{Cluster: cluster}})
	ctx := t.Context()
	here := r.create("pvc-here")
	expand := func(id string, size int64) (*csi.ControllerExpandVolumeResponse, error) {
		return r.ControllerExpandVolume(ctx, &csi.ControllerExpandVolumeRequest{VolumeId: id, CapacityRange: &csi.CapacityRange{RequiredBytes: size}})
	}
	_, err := expand(here, 200*mib)
	must(t, err)
	if len(cluster.asked) > 0 {
		t.Errorf("the cluster was asked about a volume of this node")
	}
	cluster.expand = func(want snapshot.Range) (int64, error) { return want.Required, nil }
	response, err := expand("pvc-there", 3<<30)
	must(t, err)
	if response.CapacityBytes != 3<<30 || response.NodeExpansionRequired || len(cluster.asked) != 1 {
		t.Errorf("got %v, asked %v", response, cluster.asked)
	}
	for _, c := range []struct {
		err  error
		code codes.Code
	}{
		{snapshot.ErrNotFound, codes.NotFound},
		{errors.New("connection refused"), codes.Unavailable},
		{answer(codes.Aborted, "no answer"), codes.Aborted},
		{answer(codes.ResourceExhausted, "full"), codes.ResourceExhausted},
	} {
		cluster.expand = func(snapshot.Range) (int64, error) { return 0, c.err }
		_, err := expand("pvc-there", 4<<30)
		wantCode(t, err, c.code)
	}
}
