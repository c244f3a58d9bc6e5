package driver

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"k8s.io/klog/v2"

	"github.com/btrfs-csi/btrfs-csi/internal/unixsocket"
	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs"
	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
	"github.com/btrfs-csi/btrfs-csi/pkg/mount"
	"github.com/btrfs-csi/btrfs-csi/pkg/pool"
	"github.com/btrfs-csi/btrfs-csi/pkg/snapshot"
)

const (
	// Name is the name of the CSI driver.
	Name = "btrfs-csi.github.io"
	// DefaultKubeletDir is where a kubelet keeps its files unless its --root-dir says otherwise.
	DefaultKubeletDir = "/var/lib/kubelet"

	// defaultGracePeriod is how long requests under way may take to end at stop.
	defaultGracePeriod = 10 * time.Second
	// defaultCalm is how long a change of the pools waits for the next one.
	defaultCalm = 2 * time.Second
)

// Engine is what the driver needs of *snapshot.Engine, whose documentation says
// what each method promises. All may be called at the same time.
type Engine interface {
	Prepare(ctx context.Context, spec snapshot.Spec, source meta.Ref) (meta.Entry, error)
	View(ctx context.Context, spec snapshot.Spec, source meta.Ref) (meta.Entry, error)
	Commit(ctx context.Context, spec snapshot.Spec, volume string) (meta.Entry, error)
	Remove(ctx context.Context, ref meta.Ref) error
	Resize(ctx context.Context, volume string, want snapshot.Range) (meta.Entry, error)

	Stat(ctx context.Context, ref meta.Ref) (meta.Entry, error)
	Mounts(ctx context.Context, volume string) (snapshot.Mount, error)
	Usage(ctx context.Context, ref meta.Ref) (pool.Usage, error)
	Nested(ctx context.Context, volume string) ([]string, error)
	Conditions(ctx context.Context, volume string) ([]snapshot.Condition, error)
	Room(ctx context.Context, ref meta.Ref) (btrfs.Room, error)
	Walk(ctx context.Context, class meta.Class, after string, fn func(meta.Entry) bool) error
	WalkSnapshots(ctx context.Context, volume, after string, fn func(meta.Entry) bool) error

	Capacity(ctx context.Context, pool string) (snapshot.Capacity, error)
	PoolIDs() map[string]string
	Pools(ctx context.Context) []pool.Status
}

var _ Engine = (*snapshot.Engine)(nil)

// Options are the settings of a Driver.
type Options struct {
	// NodeID is the name of this node in the cluster. Required.
	NodeID string
	// Version is the vendor version. Required.
	Version string
	// KubeletDir is the directory below which volumes may be mounted;
	// DefaultKubeletDir without it.
	KubeletDir string
	// Ready says whether requests can be served; always without it.
	Ready func() bool
	// EndpointOwner is the user ID that the CSI socket belongs to, so that
	// sidecars of that user reach it; root's without it.
	EndpointOwner int
	// Register makes the driver known to the kubelet in whose directory
	// KubeletDir is, for as long as CSI is served.
	Register bool
	// Cluster, if given, is asked about what is not on this node.
	Cluster Cluster
	// Observe, if given, is called for every RPC once it has ended. method is the
	// name alone, for example CreateVolume. It must not block.
	Observe func(method string, code codes.Code, d time.Duration)
	// AroundMounts, if given, makes each change of the mount table in place of the
	// driver, and may come between: for tests that end the process there.
	AroundMounts func(change func() error) error
	// GracePeriod is how long requests under way may take to end at stop; 10 s
	// without it.
	GracePeriod time.Duration
	// Calm is how long the pools must have stayed the same before kubelet and
	// sidecars are made to ask for them again; 2 s without it.
	Calm time.Duration
}

// Driver serves CSI for one node. It is safe for concurrent use.
type Driver struct {
	engine  Engine
	cluster Cluster
	options Options
	attach  func(source string, flags mount.Flags, at mount.Target) error
	detach  func(at mount.Target) error
	targets *mount.Targets
	locks   locks

	requests atomic.Uint64 // the number of the last request
	serving  atomic.Bool

	renew    chan struct{} // has Serve begin anew
	mu       sync.Mutex    // protects what follows
	asked    bool          // by NodeGetInfo, since Serve began anew
	reported []string      // the pool IDs that NodeGetInfo answered last, in order
}

// New returns a driver over an engine, which it does not close.
func New(engine Engine, options Options) (*Driver, error) {
	if options.NodeID == "" || options.Version == "" {
		return nil, fmt.Errorf("node ID %q, version %q: neither may be empty", options.NodeID, options.Version)
	}
	if options.KubeletDir == "" {
		options.KubeletDir = DefaultKubeletDir
	}
	if options.Calm == 0 {
		options.Calm = defaultCalm
	}
	if options.GracePeriod == 0 {
		options.GracePeriod = defaultGracePeriod
	}
	targets, err := mount.NewTargets(options.KubeletDir)
	if err != nil {
		return nil, fmt.Errorf("kubelet directory %w: set it to the kubelet's --root-dir", err)
	}
	d := &Driver{
		engine: engine, cluster: cmp.Or[Cluster](options.Cluster, alone{}), options: options, attach: mount.Bind, detach: mount.Unmount, targets: targets,
		renew: make(chan struct{}, 1),
	}
	if around := options.AroundMounts; around != nil {
		d.attach = func(source string, flags mount.Flags, at mount.Target) error {
			return around(func() error { return mount.Bind(source, flags, at) })
		}
		d.detach = func(at mount.Target) error { return around(func() error { return mount.Unmount(at) }) }
	}
	return d, nil
}

// Serve answers requests on a unix socket until ctx ends, then lets those under
// way end for the grace period. endpoint is unix:///path or an absolute path. A
// Driver may serve more than once, and nil is returned for a stop by ctx.
func (d *Driver) Serve(ctx context.Context, endpoint string) error {
	path, err := socketPath(endpoint)
	if err != nil {
		return err
	}
	for {
		if err := d.serveOnce(ctx, path); err != nil || ctx.Err() != nil {
			return err
		}
		klog.FromContext(ctx).Info("Serving anew, the pools of this node have changed", "pools", d.engine.PoolIDs())
	}
}

// serveOnce serves, and is registered with the kubelet if that is asked for,
// until ctx ends or the pools change: kubelet and sidecars read the topology of
// the node only once, when they connect.
func (d *Driver) serveOnce(ctx context.Context, path string) error {
	listener, err := unixsocket.Listen(path, d.options.EndpointOwner)
	if err != nil {
		return fmt.Errorf("serve CSI on %s: %w", path, err)
	}
	defer func() { _ = listener.Close() }()
	d.mu.Lock()
	d.asked = false // who did is gone
	select {
	case <-d.renew: // the next NodeGetInfo answers what it was for
	default:
	}
	d.mu.Unlock()
	logger := klog.FromContext(ctx)
	server := d.server(logger)
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(listener.Listener) }()
	logger.Info("CSI served", "socket", path, "driver", Name, "version", d.options.Version)
	unregister, err := d.register(ctx, path)
	if err != nil {
		server.Stop()
		return err
	}
	d.serving.Store(true)
	defer d.serving.Store(false)
	select {
	case err = <-ended:
		err = fmt.Errorf("serve CSI on %s: %w", path, err)
	case <-ctx.Done():
	case <-d.renew:
		d.calm(ctx)
	}
	unregister()
	stopGracefully(server, d.options.GracePeriod)
	return err
}

// Serving reports whether the socket is served at this moment.
func (d *Driver) Serving() bool { return d.serving.Load() }

// PoolsChanged says that pools may have come or gone. Where the last answer to NodeGetInfo
// is not true any more, kubelet and sidecars are made to ask again.
func (d *Driver) PoolsChanged() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.asked && !slices.Equal(d.reported, d.poolIDs()) {
		d.serveAnew()
	}
}

// serveAnew has Serve begin anew. The caller holds mu.
func (d *Driver) serveAnew() {
	select {
	case d.renew <- struct{}{}:
	default: // it is about to
	}
}

// calm waits until no pool has come or gone for a while: where several are
// mounted one after the other, sidecars are to be restarted once.
func (d *Driver) calm(ctx context.Context) {
	for ctx.Err() == nil {
		before := d.poolIDs()
		select {
		case <-ctx.Done():
		case <-time.After(d.options.Calm):
		}
		if slices.Equal(before, d.poolIDs()) {
			return
		}
	}
}

// reportPools returns the IDs of the pools in use for an answer to NodeGetInfo, and
// remembers them.
func (d *Driver) reportPools() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	ids := d.poolIDs()
	if d.asked && !slices.Equal(d.reported, ids) {
		d.serveAnew() // who asked before knows something else
	}
	d.asked, d.reported = true, ids
	return ids
}

func (d *Driver) poolIDs() []string { return slices.Sorted(maps.Values(d.engine.PoolIDs())) }

func (d *Driver) server(logger klog.Logger) *grpc.Server {
	server := grpc.NewServer(grpc.ChainUnaryInterceptor(d.observe(logger), translate, survive))
	csi.RegisterIdentityServer(server, &identity{Driver: d})
	csi.RegisterControllerServer(server, &controller{Driver: d})
	csi.RegisterNodeServer(server, &node{Driver: d})
	return server
}

// stopGracefully lets requests end, and cuts them off when the time is over. One
// that hangs in the kernel, on a disk that has died, is left behind: the volumes
// of other disks are to be served on. What it holds is locked for as long.
func stopGracefully(server *grpc.Server, grace time.Duration) {
	ended := make(chan struct{})
	go func() { defer close(ended); server.GracefulStop() }()
	select {
	case <-ended:
	case <-time.After(grace):
		go server.Stop()
	}
}

// socketPath returns the path of an endpoint.
func socketPath(endpoint string) (string, error) {
	path := strings.TrimPrefix(endpoint, "unix://")
	if !filepath.IsAbs(path) {
		return "", fmt.Errorf("endpoint %q: want unix:// and an absolute path, or the path alone", endpoint)
	}
	return filepath.Clean(path), nil
}
