package driver

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"k8s.io/klog/v2"
	"k8s.io/mount-utils"

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs"
	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
	"github.com/btrfs-csi/btrfs-csi/pkg/snapshot"
)

const (
	// Name is the name of the CSI driver.
	Name = "btrfs-csi.github.io"
	// DefaultKubeletDir is where a kubelet keeps its files unless told otherwise.
	DefaultKubeletDir = "/var/lib/kubelet"

	// defaultGracePeriod is how long requests under way may take to end at stop.
	defaultGracePeriod = 10 * time.Second
	// answerTimeout is how long a driver that still serves a socket may take to
	// accept a connection.
	answerTimeout = time.Second
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
	Usage(ctx context.Context, ref meta.Ref) (snapshot.Usage, error)
	Space(ctx context.Context, ref meta.Ref) (btrfs.Space, error)
	Walk(ctx context.Context, class meta.Class, after string, fn func(meta.Entry) bool) error
	WalkSnapshots(ctx context.Context, volume, after string, fn func(meta.Entry) bool) error

	Capacity(ctx context.Context, pool string) (snapshot.Capacity, error)
	Pool(name string) (inUse, id string, err error)
	PoolIDs() map[string]string
	Pools(ctx context.Context) []snapshot.PoolStatus
}

var _ Engine = (*snapshot.Engine)(nil)

// Options are the settings of a Driver.
type Options struct {
	// NodeID is the name of this node in the cluster. Required.
	NodeID string
	// Version is told as the vendor version. Required.
	Version string
	// KubeletDir is the directory below which volumes may be mounted;
	// DefaultKubeletDir without it.
	KubeletDir string
	// Ready says whether requests can be served; always without it.
	Ready func() bool
	// Observe, if given, is told of every RPC once it has ended. method is the
	// name alone, for example CreateVolume. It must not block.
	Observe func(method string, code codes.Code, d time.Duration)
	// GracePeriod is how long requests under way may take to end at stop; 10 s
	// without it.
	GracePeriod time.Duration
}

// Driver serves CSI for one node. It is safe for concurrent use.
type Driver struct {
	engine  Engine
	options Options
	mounter mount.Interface
	targets *targets
	locks   locks

	requests atomic.Uint64 // the number of the last request
}

// New returns a driver over an engine, which it does not close.
func New(engine Engine, options Options) (*Driver, error) {
	if options.NodeID == "" || options.Version == "" {
		return nil, fmt.Errorf("node ID %q, version %q: neither may be empty", options.NodeID, options.Version)
	}
	if options.KubeletDir == "" {
		options.KubeletDir = DefaultKubeletDir
	}
	if options.GracePeriod == 0 {
		options.GracePeriod = defaultGracePeriod
	}
	targets, err := newTargets(options.KubeletDir)
	if err != nil {
		return nil, err
	}
	return &Driver{engine: engine, options: options, mounter: mount.NewWithoutSystemd(""), targets: targets}, nil
}

// Serve answers requests on a unix socket until ctx ends, then lets those under
// way end for the grace period. endpoint is unix:///path or an absolute path. A
// Driver may serve more than once, and nil is returned for a stop by ctx.
func (d *Driver) Serve(ctx context.Context, endpoint string) error {
	path, err := socketPath(endpoint)
	if err != nil {
		return err
	}
	listener, err := listen(path)
	if err != nil {
		return fmt.Errorf("serve CSI on %s: %w", path, err)
	}
	defer removeSocket(path, listener)
	server := d.server(klog.FromContext(ctx))
	stopped := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(stopped)
		stopGracefully(server, d.options.GracePeriod)
	})
	klog.FromContext(ctx).Info("CSI served", "socket", path, "driver", Name, "version", d.options.Version)
	err = server.Serve(listener.Listener)
	if !stop() {
		<-stopped
		return nil
	}
	return fmt.Errorf("serve CSI on %s: %w", path, err)
}

func (d *Driver) server(logger klog.Logger) *grpc.Server {
	server := grpc.NewServer(grpc.ChainUnaryInterceptor(d.observe(logger), translate, survive))
	csi.RegisterIdentityServer(server, &identity{Driver: d})
	csi.RegisterControllerServer(server, &controller{Driver: d})
	csi.RegisterNodeServer(server, &node{Driver: d})
	return server
}

// stopGracefully lets requests end, and cuts them off when the time is over.
func stopGracefully(server *grpc.Server, grace time.Duration) {
	cut := time.AfterFunc(grace, server.Stop)
	defer cut.Stop()
	server.GracefulStop()
}

// socketPath returns the path of an endpoint.
func socketPath(endpoint string) (string, error) {
	path := strings.TrimPrefix(endpoint, "unix://")
	if !filepath.IsAbs(path) {
		return "", fmt.Errorf("endpoint %q: want unix:// and an absolute path, or the path alone", endpoint)
	}
	return filepath.Clean(path), nil
}

// socket is a listener and the file it is reached by.
type socket struct {
	net.Listener
	file fs.FileInfo
}

// listen makes the socket. It is bound in a directory that only root can enter
// and gets its place by rename, so that nobody ever sees it with another mode,
// and a process-wide umask is left alone.
func listen(path string) (*socket, error) {
	if err := checkStale(path); err != nil {
		return nil, err
	}
	private, err := os.MkdirTemp(filepath.Dir(path), ".csi")
	if err != nil {
		return nil, fmt.Errorf("the directory must exist and be writable: %w", err)
	}
	defer os.RemoveAll(private)
	born := filepath.Join(private, "s")
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: born, Net: "unix"})
	if err != nil {
		return nil, err
	}
	listener.SetUnlinkOnClose(false) // it would unlink the name it was born with
	file, err := settleSocket(born, path)
	if err != nil {
		return nil, errors.Join(err, listener.Close())
	}
	return &socket{listener, file}, nil
}

func settleSocket(born, path string) (fs.FileInfo, error) {
	if err := os.Chmod(born, 0o600); err != nil {
		return nil, err
	}
	file, err := os.Lstat(born)
	if err != nil {
		return nil, err
	}
	return file, os.Rename(born, path)
}

// checkStale fails for what must not be replaced: anything that is no socket,
// and a socket that somebody answers on.
func checkStale(path string) error {
	file, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if file.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("a socket is wanted there, found %v: move it away", file.Mode())
	}
	connection, err := net.DialTimeout("unix", path, answerTimeout)
	if err != nil {
		return nil
	}
	_ = connection.Close()
	return errors.New("another process serves it: stop that first")
}

// removeSocket takes the socket's file away unless a successor has replaced it.
func removeSocket(path string, listener *socket) {
	_ = listener.Close()
	if file, err := os.Lstat(path); err == nil && os.SameFile(file, listener.file) {
		_ = os.Remove(path)
	}
}
