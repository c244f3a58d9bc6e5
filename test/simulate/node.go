package simulate

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"
	"k8s.io/klog/v2"

	"github.com/btrfs-csi/btrfs-csi/cmd/btrfs-csi/wiring"
	"github.com/btrfs-csi/btrfs-csi/pkg/cluster"
	"github.com/btrfs-csi/btrfs-csi/pkg/cluster/clustertest"
	"github.com/btrfs-csi/btrfs-csi/pkg/cluster/orphans"
	"github.com/btrfs-csi/btrfs-csi/pkg/driver"
	"github.com/btrfs-csi/btrfs-csi/pkg/meta/index"
	"github.com/btrfs-csi/btrfs-csi/pkg/pool"
	"github.com/btrfs-csi/btrfs-csi/pkg/pool/pooltest"
	"github.com/btrfs-csi/btrfs-csi/pkg/snapshot"
)

// node is a machine with a kubelet, disks, and a driver that is started again and again.
type node struct {
	*simulation
	name    string
	dir     string         // what of it is on the real machine
	host    *pooltest.Host // the disks that are mounted; durable
	starts  int
	driver  atomic.Pointer[process] // the last one
	isolate atomic.Bool             // the API server is out of reach
	down    time.Time
	labels  map[string]bool // pool IDs that the kubelet has labelled the Node with
}

// process is one run of the driver. What it does outside of itself waits at the gate.
type process struct {
	*node
	who     string
	state   string // directory
	network *network
	ctx     context.Context
	cancel  context.CancelFunc
	ended   chan struct{}

	serving atomic.Bool
	conn    *grpc.ClientConn
	engine  *snapshot.Engine
	manager *cluster.Manager
	failed  error // of the start
}

// poolName is the name of the one pool of each node.
const poolName = pool.Default

func (s *simulation) newNode(name string) *node {
	n := &node{simulation: s, name: name, dir: filepath.Join(s.dir, name), host: pooltest.NewHost(s.plan.quota), labels: map[string]bool{}}
	must(os.MkdirAll(n.kubelet(), 0o700))
	return n
}

func (n *node) kubelet() string { return filepath.Join(n.dir, "kubelet") }

// up reports whether the machine runs.
func (n *node) up() bool { return n.down.IsZero() }

// start starts the driver with the state that the last process has left.
func (n *node) start() {
	n.starts++
	who := fmt.Sprintf("driver@%s#%d", n.name, n.starts)
	p := &process{node: n, who: who, state: filepath.Join(n.stateDir, n.name, fmt.Sprint(n.starts)), network: newNetwork(n.api, n.gate, who), ended: make(chan struct{})}
	must(os.MkdirAll(p.state, 0o700))
	if last := n.driver.Load(); last != nil {
		must(copyFiles(last.state, p.state))
	}
	p.ctx, p.cancel = context.WithCancel(klog.NewContext(n.ctx, klog.Background().WithName(who)))
	n.driver.Store(p)
	n.all.Go(p.run)
}

// kill ends the driver as SIGKILL does.
func (n *node) kill() {
	p := n.driver.Load()
	n.gate.kill(p.who)
	p.cancel()
}

// stop ends the driver as SIGTERM does. It runs on until it has ended.
func (n *node) stop() { n.driver.Load().cancel() }

// forgetIndex loses the index, as a power cut may.
func (n *node) forgetIndex() {
	for _, name := range []string{"index.db", "index.db.seal"} {
		_ = os.Remove(filepath.Join(n.driver.Load().state, name))
	}
}

func (p *process) run() {
	defer close(p.ended)
	defer p.cancel()
	if err := p.serve(); err != nil {
		p.failed = err
	}
}

// serve does what serve of cmd does.
func (p *process) serve() error {
	index, _, err := index.Open(filepath.Join(p.state, "index.db"))
	if err != nil {
		return err
	}
	e, err := snapshot.Open(p.ctx, p.disks(), index, snapshot.Patience(5*time.Second))
	if err != nil {
		return errors.Join(err, index.Close())
	}
	defer e.Close()
	clients, err := clustertest.Clients(p.network)
	if err != nil {
		return err
	}
	d, m, err := wiring.Join(e, driver.Options{
		NodeID: p.name, Version: "simulated", KubeletDir: p.kubelet(),
		AroundMounts: func(change func() error) error {
			if p.gate.wait(context.Background(), kindMount, p.who, "mount") == gone {
				return pooltest.ErrCrash
			}
			return change()
		},
	}, &wiring.Cluster{Clients: clients, Options: cluster.Options{Orphans: orphans.Policy(p.plan.orphans), OrphanGrace: p.plan.grace}})
	if err != nil {
		return err
	}
	p.engine, p.manager = e, m
	var background sync.WaitGroup
	defer background.Wait()
	defer p.network.drop()
	background.Go(func() { e.Run(p.ctx) })
	background.Go(func() { m.Run(p.ctx) })
	m.AwaitOwnership(p.ctx)
	return p.listen(d)
}

// listen serves CSI until the process ends.
func (p *process) listen(d *driver.Driver) (err error) {
	listener := bufconn.Listen(1 << 16)
	server := d.Server(klog.FromContext(p.ctx))
	var serving sync.WaitGroup
	defer serving.Wait()
	serving.Go(func() { _ = server.Serve(listener) })
	p.conn, err = grpc.NewClient("passthrough:///"+p.who, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) }))
	if err != nil {
		server.Stop()
		return err
	}
	p.serving.Store(true)
	<-p.ctx.Done()
	p.serving.Store(false)
	_ = p.conn.Close()
	server.Stop()
	return nil
}

// disks returns the disks of the node as the process reaches them.
func (p *process) disks() pool.Host {
	return pooltest.Around(placedHost{p.node.host, p.node}, func(s pooltest.Step, do func() error) error {
		switch p.gate.wait(context.Background(), kindDisk, p.who, s.Pool+" "+s.Method+" "+s.Slot.String()) {
		case gone:
			return pooltest.ErrCrash
		case fail:
			return unix.EIO
		}
		if err := p.beforeStep(s); err != nil {
			return err
		}
		return do()
	})
}

// placedHost gives each volume of a disk in memory a directory, which can be mounted. Each
// time that a disk is mounted it has other ones.
type placedHost struct {
	*pooltest.Host
	node *node
}

func (h placedHost) Open(ctx context.Context, name string) (pool.Filesystem, error) {
	f, err := h.Host.Open(ctx, name)
	if err != nil {
		return nil, err
	}
	return placed{f, filepath.Join(h.node.dir, "pools", h.node.mountID(name))}, nil
}

type placed struct {
	pool.Filesystem
	dir string
}

func (p placed) SlotPath(s pool.Slot) string {
	at := filepath.Join(p.dir, string(s.Area), s.Name, "fs")
	must(os.MkdirAll(at, 0o755)) // it is asked for what there is
	return at
}

// copyFiles copies the files of a directory.
func copyFiles(from, to string) error {
	entries, err := os.ReadDir(from)
	if err != nil {
		return err
	}
	for _, e := range entries {
		data, err := os.ReadFile(filepath.Join(from, e.Name()))
		if err == nil {
			err = os.WriteFile(filepath.Join(to, e.Name()), data, 0o600)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// must panics: the machine that simulates has failed, not what is simulated.
func must(err error) {
	if err != nil {
		panic(err)
	}
}
