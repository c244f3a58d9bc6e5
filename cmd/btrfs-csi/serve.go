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
	"sync/atomic"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/klog/v2"

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs"
	"github.com/btrfs-csi/btrfs-csi/pkg/driver"
	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
	"github.com/btrfs-csi/btrfs-csi/pkg/snapshot"
)

const (
	defaultStateDir = "/var/lib/btrfs-csi"
	indexFile       = "index.db"
	lockFile        = "lock"
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
}

func newServe() *cobra.Command {
	o := serveOptions{}
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Serve the Container Storage Interface on a unix socket",
		Long: `Serve serves the volumes of this node. Every btrfs filesystem that is mounted at
STATE-DIR/pools/NAME is a pool, also one that is mounted later. Where STATE-DIR
itself is on btrfs, STATE-DIR/pools/default is made and is one too.`,
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
	f.StringVar(&o.stateDir, "state-dir", defaultStateDir, "directory that holds the index and the pools")
	f.StringVar(&o.nodeID, "node-id", host, "name of this node in the cluster")
	f.StringVar(&o.kubeletDir, "kubelet-dir", driver.DefaultKubeletDir, "directory below which volumes may be mounted")
	f.StringVar(&o.http, "http", "", "address to serve /healthz, /readyz and /metrics on, for example :9808; empty for none")
	f.StringVar(&o.quota, "quota", string(snapshot.QuotaAuto), "how sizes are enforced: full (exact), simple (cheap with many snapshots), none, or auto (what the filesystem has, else full)")
	f.StringVar(&o.loopPool, "loop-pool", "", "size of a pool \"default\" in a sparse file, for example 20Gi, made where --state-dir is not on btrfs and grown when this is raised")
	klogFlags := flag.NewFlagSet("klog", flag.ContinueOnError)
	klog.InitFlags(klogFlags)
	f.AddGoFlag(klogFlags.Lookup("v"))
	return cmd
}

// serve wires everything, from the bottom up, and serves until ctx ends.
func serve(ctx context.Context, o serveOptions) error {
	logger := klog.FromContext(ctx)
	quota, err := parseQuota(o.quota)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(o.stateDir, 0o700); err != nil {
		return err
	}
	release, err := lockState(o.stateDir)
	if err != nil {
		return err
	}
	defer release()
	if err := loopPool(ctx, o.stateDir, o.loopPool); err != nil {
		return err
	}

	var engine atomic.Pointer[snapshot.Engine] // nil until the pools are reconciled
	ready := func() bool { return engine.Load() != nil }
	metrics := newMetrics(&engine)
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if o.http != "" {
		if err := serveHTTP(ctx, cancel, o.http, httpHandler(metrics, ready)); err != nil {
			return err
		}
	}

	host, err := snapshot.NewHost(o.stateDir, quota)
	if err != nil {
		return err
	}
	index, renewed, err := meta.OpenIndex(filepath.Join(o.stateDir, indexFile))
	if err != nil {
		return err
	}
	if renewed != "" {
		logger.Info("Index made anew", "reason", renewed)
	}
	e, err := snapshot.Open(ctx, host, index)
	if err != nil {
		return errors.Join(err, index.Close())
	}
	defer e.Close()
	engine.Store(e)
	debug.FreeOSMemory() // reconciling has read every record; serving keeps none of them
	background := make(chan struct{})
	go func() { defer close(background); e.Run(ctx) }()
	defer func() { cancel(nil); <-background }()

	if err := serveAdmin(ctx, cancel, o.stateDir, e); err != nil {
		return err
	}
	d, err := driver.New(e, driver.Options{
		NodeID: o.nodeID, Version: version, KubeletDir: o.kubeletDir, Ready: ready, Observe: metrics.observe,
	})
	if err != nil {
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

func parseQuota(mode string) (btrfs.QuotaMode, error) {
	switch q := btrfs.QuotaMode(mode); q {
	case snapshot.QuotaAuto, btrfs.QuotaFull, btrfs.QuotaSimple, btrfs.QuotaNone:
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

// lockState keeps a second driver, or a repair, away from the same pools.
func lockState(stateDir string) (release func(), err error) {
	f, err := os.OpenFile(filepath.Join(stateDir, lockFile), os.O_CREATE|os.O_RDWR|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("%s is in use by another btrfs-csi: stop it first (%w)", stateDir, err)
	}
	return func() { f.Close() }, nil
}

// makeSocketDir makes the directory of the default endpoint, which nobody else
// would.
func makeSocketDir(endpoint string) error {
	return os.MkdirAll(filepath.Dir(strings.TrimPrefix(endpoint, "unix://")), 0o755)
}
