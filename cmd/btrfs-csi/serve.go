package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"

	"github.com/btrfs-csi/btrfs-csi/cmd/btrfs-csi/wiring"
	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs"
	"github.com/btrfs-csi/btrfs-csi/pkg/cluster"
	"github.com/btrfs-csi/btrfs-csi/pkg/cluster/client"
	"github.com/btrfs-csi/btrfs-csi/pkg/cluster/orphans"
	"github.com/btrfs-csi/btrfs-csi/pkg/driver"
	"github.com/btrfs-csi/btrfs-csi/pkg/meta/index"
	"github.com/btrfs-csi/btrfs-csi/pkg/mount"
	"github.com/btrfs-csi/btrfs-csi/pkg/pool"
	"github.com/btrfs-csi/btrfs-csi/pkg/snapshot"
)

const (
	indexFile = "index.db"
	lockFile  = "lock"
)

// Only tests set these variables, to end the process at a step of an operation.
var (
	wrapHost     = func(h pool.Host) pool.Host { return h }
	aroundMounts func(change func() error) error // nil outside of tests
)

// serveOptions are the flags of serve.
type serveOptions struct {
	endpoint   string
	stateDir   string
	nodeID     string
	kubeletDir string
	http       string
	quota      string
	loopPool   string

	poolTimeout time.Duration

	endpointOwner int
	register      bool
	kubernetes    bool
	kubeconfig    string
	kubeQPS       float32
	kubeBurst     int
	orphans       string
	orphanGrace   time.Duration
	profiling     bool
}

func newServe() *cobra.Command {
	o := serveOptions{}
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Serve the Container Storage Interface on a unix socket",
		Long: `Serve runs the CSI driver for the volumes of this node. Every btrfs filesystem that
is mounted at STATE-DIR/pools/NAME is a pool, also one that is mounted later. If
STATE-DIR itself is on btrfs, serve also creates the pool STATE-DIR/pools/default.`,
		Example: `  # On a node whose /var/lib is on btrfs
  btrfs-csi serve --node-id "$(hostname)"

  # On any other node: a pool of 20 GiB in a sparse file
  btrfs-csi serve --node-id "$(hostname)" --loop-pool 20Gi`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return serve(cmd.Context(), o) },
	}
	host, _ := os.Hostname()
	f := cmd.Flags()
	f.StringVar(&o.endpoint, "endpoint", "unix:///run/btrfs-csi/csi.sock", "unix socket to serve CSI on")
	addStateDir(cmd, &o.stateDir)
	f.StringVar(&o.nodeID, "node-id", host, "name of this node in the cluster")
	f.StringVar(&o.kubeletDir, "kubelet-dir", driver.DefaultKubeletDir, "directory below which volumes may be mounted")
	f.StringVar(&o.http, "http", "", "address of /healthz, /readyz and /metrics, for example :9808; empty for none")
	f.StringVar(&o.quota, "quota", string(pool.QuotaAuto), "how volume sizes are enforced: full (exact), simple (cheap with many snapshots), none, or auto (the mode of the filesystem, else full)")
	f.StringVar(&o.loopPool, "loop-pool", "", "size of a pool \"default\" in a sparse file, for example 20Gi; created if --state-dir is not on btrfs, and grown when you raise the size")
	f.DurationVar(&o.poolTimeout, "pool-timeout", 5*time.Second, "how long the disk of a pool may take to answer; a pool with a slower disk is not used until it answers; raise it for disks that spin down")
	f.IntVar(&o.endpointOwner, "endpoint-owner", 0, "ID of the user that owns the socket, for sidecars that do not run as root")
	f.BoolVar(&o.register, "register", false, "register with the kubelet of --kubelet-dir")
	f.BoolVar(&o.kubernetes, "kubernetes", false, "publish the volumes of this node in the cluster, and run controllers: expansion from any node, restores on the node of their source, orphans")
	f.StringVar(&o.kubeconfig, "kubeconfig", "", "kubeconfig of the cluster for --kubernetes; by default that of kubectl, or the cluster of the pod")
	f.Float32Var(&o.kubeQPS, "kube-api-qps", 50, "requests to the API server per second")
	f.IntVar(&o.kubeBurst, "kube-api-burst", 100, "requests to the API server in a burst")
	f.StringVar(&o.orphans, "orphans", string(orphans.Report), "what to do with volumes and snapshots without an object in the cluster: report or delete")
	f.DurationVar(&o.orphanGrace, "orphan-grace", 24*time.Hour, "how long a volume or snapshot must be an orphan before it is deleted")
	f.BoolVar(&o.profiling, "profiling", false, "serve /debug/pprof/ on the socket admin.sock in --state-dir, for root only")
	klogFlags := flag.NewFlagSet("klog", flag.ContinueOnError)
	klog.InitFlags(klogFlags)
	f.AddGoFlag(klogFlags.Lookup("v"))
	return cmd
}

// serve connects all parts, from the lowest layer up, and serves until ctx ends.
func serve(ctx context.Context, o serveOptions) error {
	logger := klog.FromContext(ctx)
	if err := mount.Supported(); err != nil {
		return err
	}
	unix.Umask(0o022) // for mode 0755 of a volume's root directory
	quota, err := parseQuota(o.quota)
	if err != nil {
		return err
	}
	if o.poolTimeout <= 0 {
		return fmt.Errorf("--pool-timeout %s: a time above 0 is wanted, such as 5s", o.poolTimeout)
	}
	loopBytes, err := parseLoopPool(o.loopPool)
	if err != nil {
		return err
	}
	if err := makeStateDir(o.stateDir); err != nil {
		return err
	}
	release, err := lockState(o.stateDir)
	if err != nil {
		return err
	}
	defer release()
	keepLoopPool(ctx, o.stateDir, loopBytes)

	var engine atomic.Pointer[snapshot.Engine] // nil until the pools are reconciled
	var csi atomic.Pointer[driver.Driver]      // nil until it exists
	answers := func() error {
		e := engine.Load()
		if e == nil {
			return errors.New("pools are being reconciled")
		}
		return e.Answering()
	}
	ready := func() error {
		if d := csi.Load(); d == nil || !d.Serving() {
			return errors.New("pools are being reconciled, or the socket is being made")
		}
		return answers()
	}
	metrics := newMetrics(&engine)
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if o.http != "" {
		if err := serveHTTP(ctx, cancel, o.http, httpHandler(metrics, ready)); err != nil {
			return err
		}
	}

	host, err := pool.NewHost(o.stateDir, quota)
	if err != nil {
		return err
	}
	index, renewed, err := index.Open(filepath.Join(o.stateDir, indexFile))
	if err != nil {
		return err
	}
	if renewed != "" {
		logger.Info("Index made anew", "reason", renewed)
	}
	e, err := snapshot.Open(ctx, wrapHost(host), index, snapshot.Patience(o.poolTimeout))
	if err != nil {
		return errors.Join(err, index.Close())
	}
	defer e.Close()
	engine.Store(e)
	debug.FreeOSMemory() // reconciling has read all records; serving keeps none of them
	d, m, err := o.wire(e, func() bool { return answers() == nil }, metrics)
	if err != nil {
		return err
	}
	csi.Store(d)
	var background sync.WaitGroup
	defer func() { cancel(nil); background.Wait() }()
	background.Go(func() { e.Run(ctx) })
	if m != nil {
		metrics.cluster.Store(m)
		background.Go(func() { m.Run(ctx) })
		m.AwaitOwnership(ctx)
	}
	if err := serveAdmin(ctx, cancel, o, e, m); err != nil {
		return err
	}
	if err := makeSocketDir(o.endpoint); err != nil {
		return err
	}
	logger.Info("Serving", "version", version, "endpoint", o.endpoint, "stateDir", o.stateDir, "nodeID", o.nodeID, "pools", e.PoolIDs())
	if err := d.Serve(ctx, o.endpoint); err != nil {
		return err
	}
	if cause := context.Cause(ctx); !errors.Is(cause, context.Canceled) {
		return cause
	}
	logger.Info("Stopped")
	return nil
}

// wire creates the driver, and the controllers with --kubernetes.
func (o serveOptions) wire(e *snapshot.Engine, ready func() bool, metrics *metrics) (*driver.Driver, *cluster.Manager, error) {
	var c *wiring.Cluster
	if o.kubernetes {
		var err error
		if c, err = o.cluster(); err != nil {
			return nil, nil, err
		}
	}
	return wiring.Join(e, driver.Options{
		NodeID: o.nodeID, Version: version, KubeletDir: o.kubeletDir, EndpointOwner: o.endpointOwner, Register: o.register,
		Ready: ready, Observe: metrics.observe, AroundMounts: aroundMounts,
	}, c)
}

func (o serveOptions) cluster() (*wiring.Cluster, error) {
	policy, err := orphans.ParsePolicy(o.orphans)
	if err != nil {
		return nil, fmt.Errorf("--orphans %w", err)
	}
	clients, err := connect(o.kubeconfig, o.kubeQPS, o.kubeBurst)
	if err != nil {
		return nil, err
	}
	return &wiring.Cluster{Clients: clients, Options: cluster.Options{Orphans: policy, OrphanGrace: o.orphanGrace}}, nil
}

// connect returns clients for the cluster in kubeconfig. Without kubeconfig it uses
// kubectl's default, or the cluster of the pod.
func connect(kubeconfig string, qps float32, burst int) (*client.Clients, error) {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = kubeconfig
	config, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, nil).ClientConfig()
	if err != nil {
		return nil, fmt.Errorf("reach the cluster: %w", err)
	}
	config.QPS, config.Burst = qps, burst
	return client.Connect(rest.AddUserAgent(config, "btrfs-csi/"+version))
}

func parseQuota(mode string) (btrfs.QuotaMode, error) {
	switch q := btrfs.QuotaMode(mode); q {
	case pool.QuotaAuto, btrfs.QuotaFull, btrfs.QuotaSimple, btrfs.QuotaNone:
		return q, nil
	}
	return "", fmt.Errorf("--quota %q: auto, full, simple or none is wanted", mode)
}

func parseSize(text string) (int64, error) {
	q, err := resource.ParseQuantity(text)
	if err != nil || q.Value() <= 0 {
		return 0, fmt.Errorf("size %q: a quantity such as 20Gi is wanted", text)
	}
	return q.Value(), nil
}

// lockState locks a state directory against a second driver or repair. Like flock(2), the
// lock belongs to the open file; but F_OFD_GETLK can test it.
func lockState(stateDir string) (release func(), err error) {
	f, err := os.OpenFile(filepath.Join(stateDir, lockFile), os.O_CREATE|os.O_RDWR|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK}); err != nil {
		f.Close()
		return nil, fmt.Errorf("%s is in use by another btrfs-csi: stop it first (%w)", stateDir, err)
	}
	return func() { f.Close() }, nil
}

// stateInUse reports whether a driver or a repair has locked a state directory.
func stateInUse(stateDir string) bool {
	f, err := os.OpenFile(filepath.Join(stateDir, lockFile), os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return false
	}
	defer f.Close()
	lock := unix.Flock_t{Type: unix.F_RDLCK}
	err = unix.FcntlFlock(f.Fd(), unix.F_OFD_GETLK, &lock)
	return err == nil && lock.Type == unix.F_WRLCK
}

// makeSocketDir creates the directory of the socket. The default one is created by nothing
// else.
func makeSocketDir(endpoint string) error {
	return os.MkdirAll(filepath.Dir(strings.TrimPrefix(endpoint, "unix://")), 0o755)
}
