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

	"github.com/btrfs-csi/btrfs-csi/internal/keylock"
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
	// DefaultKubeletDir is the default of the kubelet's --root-dir.
	DefaultKubeletDir = "/var/lib/kubelet"

	// defaultGracePeriod is how long running requests may take at a stop.
	defaultGracePeriod = 10 * time.Second
	// defaultCalm is the delay between the last change of pools and the restart of the
	// server.
	defaultCalm = 2 * time.Second
)

// Engine is the part of *snapshot.Engine that the driver uses. See there for each method.
// All methods may be called concurrently.
type Engine interface {
	Prepare(ctx context.Context, spec snapshot.Spec, source meta.Ref) (meta.Entry, error)
	View(ctx context.Context, spec snapshot.Spec, source meta.Ref) (meta.Entry, error)
	Commit(ctx context.Context, spec snapshot.Spec, volume string) (meta.Entry, error)
	CommitGroup(ctx context.Context, spec snapshot.Spec, volumes []string) ([]meta.Entry, error)
	Group(ctx context.Context, id string) ([]meta.Entry, error)
	GroupMembers(ctx context.Context, id string) ([]meta.Ref, error)
	Remove(ctx context.Context, ref meta.Ref) error
	Resize(ctx context.Context, volume string, want snapshot.Range) (meta.Entry, error)

	Stat(ctx context.Context, ref meta.Ref) (meta.Entry, error)
	Mounts(ctx context.Context, volume string) (snapshot.Mount, error)
	Usage(ctx context.Context, ref meta.Ref) (pool.Usage, error)
	Nested(ctx context.Context, volume string) ([]string, error)
	VolumeConditions(ctx context.Context, volume string) ([]snapshot.VolumeCondition, error)
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
	// KubeletDir is the directory below which volumes may be mounted. The default is
	// DefaultKubeletDir.
	KubeletDir string
	// Ready reports whether requests can be served. Without it they always can.
	Ready func() bool
	// EndpointOwner is the user ID that owns the CSI socket, for sidecars of that user. The
	// default is root.
	EndpointOwner int
	// Register registers the driver with the kubelet of KubeletDir while CSI is served.
	Register bool
	// Cluster answers questions about other nodes. It may be nil.
	Cluster Cluster
	// Observe is called after every RPC, unless it is nil. method is the bare name, for
	// example CreateVolume. It must not block.
	Observe func(method string, code codes.Code, d time.Duration)
	// AroundMounts, if not nil, makes each change of the mount table by calling change.
	// Tests end the process there.
	AroundMounts func(change func() error) error
	// GracePeriod is how long running requests may take at a stop. The default is 10 s.
	GracePeriod time.Duration
	// Calm is how long pools must stay unchanged before the server restarts, so that
	// kubelet and sidecars read the topology again. The default is 2 s.
	Calm time.Duration
}

// Driver serves CSI for one node. It is safe for concurrent use.
type Driver struct {
	engine  Engine
	cluster Cluster
	options Options
	attach  func(source mount.Source, flags mount.Flags, at mount.Target) error
	detach  func(at mount.Target) error
	targets *mount.Targets
	locks   keylock.Set[lockKey]

	requests atomic.Uint64 // number of the last request
	serving  atomic.Bool

	renew    chan struct{} // makes Serve restart the server
	mu       sync.Mutex    // protects the fields below
	asked    bool          // NodeGetInfo was called since the last restart
	reported []string      // pool IDs of the last NodeGetInfo, sorted
}

// New returns a driver over an engine. It does not close the engine.
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
		engine: engine, cluster: cmp.Or[Cluster](options.Cluster, noCluster{}), options: options, attach: mount.Attach, detach: mount.Unmount, targets: targets,
		renew: make(chan struct{}, 1),
	}
	if around := options.AroundMounts; around != nil {
		d.attach = func(source mount.Source, flags mount.Flags, at mount.Target) error {
			return around(func() error { return mount.Attach(source, flags, at) })
		}
		d.detach = func(at mount.Target) error { return around(func() error { return mount.Unmount(at) }) }
	}
	return d, nil
}

// Serve serves requests on a unix socket until ctx ends, plus the grace period for running
// requests. It then returns nil, and may be called again. endpoint is unix:///path or an
// absolute path.
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

// serveOnce serves, and registers with the kubelet if required, until ctx ends or the pools
// change. Kubelet and sidecars read the topology of a node only when they connect.
func (d *Driver) serveOnce(ctx context.Context, path string) error {
	listener, err := unixsocket.Listen(path, d.options.EndpointOwner)
	if err != nil {
		return fmt.Errorf("serve CSI on %s: %w", path, err)
	}
	defer func() { _ = listener.Close() }()
	d.mu.Lock()
	d.asked = false // clients of the last server are gone
	select {
	case <-d.renew: // the next NodeGetInfo returns the new pools anyway
	default:
	}
	d.mu.Unlock()
	logger := klog.FromContext(ctx)
	server := d.Server(logger)
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

// Serving reports whether the socket is served now.
func (d *Driver) Serving() bool { return d.serving.Load() }

// PoolsChanged must be called after pools may have changed. If the last answer to
// NodeGetInfo is outdated the server restarts, so that kubelet and sidecars ask again.
func (d *Driver) PoolsChanged() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.asked && !slices.Equal(d.reported, d.poolIDs()) {
		d.serveAnew()
	}
}

// serveAnew makes Serve restart the server. The caller holds mu.
func (d *Driver) serveAnew() {
	select {
	case d.renew <- struct{}{}:
	default: // a restart is already due
	}
}

// calm waits until no pool has changed for Options.Calm, so that sidecars restart once for
// several mounts.
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

// reportPools returns the IDs of the pools in use, and stores them as the answer to
// NodeGetInfo.
func (d *Driver) reportPools() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	ids := d.poolIDs()
	if d.asked && !slices.Equal(d.reported, ids) {
		d.serveAnew() // earlier clients have outdated pools
	}
	d.asked, d.reported = true, ids
	return ids
}

func (d *Driver) poolIDs() []string { return slices.Sorted(maps.Values(d.engine.PoolIDs())) }

// Server returns a server of all CSI services, for a listener of the caller's. Its requests
// are logged to logger.
func (d *Driver) Server(logger klog.Logger) *grpc.Server {
	server := grpc.NewServer(grpc.ChainUnaryInterceptor(d.observe(logger), translate, survive))
	csi.RegisterIdentityServer(server, &identity{Driver: d})
	csi.RegisterControllerServer(server, &controller{Driver: d})
	csi.RegisterGroupControllerServer(server, &groupController{Driver: d})
	csi.RegisterNodeServer(server, &node{Driver: d})
	return server
}

// stopGracefully waits for running requests up to grace, and then cancels them. It abandons
// requests that hang in the kernel on a dead disk, so that volumes on other disks are
// served again. An abandoned request holds its locks until it returns.
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
