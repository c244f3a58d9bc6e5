package reliability

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs"
	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs/btrfstest"
	"github.com/btrfs-csi/btrfs-csi/pkg/pool"
	"github.com/btrfs-csi/btrfs-csi/pkg/snapshot"
)

// node is a machine with one pool: what survives its driver, and the driver.
type node struct {
	binary string
	// disturbed is the binary of BuildDisturbed, which is started twice out of three times; empty:
	// never. seed is for what happens in it.
	disturbed string
	seed      uint64
	launches  int
	dir       string
	image     string // of the pool
	quota     btrfs.QuotaMode
	flags     []string // of serve, beside the usual ones
	counts    *counts

	process *process
	fell    atomic.Pointer[error]  // a driver that has ended by itself; nil: none
	client  atomic.Pointer[client] // of the last driver that served
	ready   time.Duration          // how long the last start took
	log     int                    // how much of the log has been read
}

// client asks a driver.
type client struct {
	csi.IdentityClient
	csi.ControllerClient
	csi.NodeClient
	conn *grpc.ClientConn
}

// process is one life of the driver.
type process struct {
	cmd    *exec.Cmd
	doomed atomic.Bool   // it is to end
	ended  chan struct{} // closed when it has
}

func (n *node) state() string   { return filepath.Join(n.dir, "state") }
func (n *node) index() string   { return filepath.Join(n.state(), "index.db") }
func (n *node) pool() string    { return filepath.Join(n.state(), "pools", pool.Default) }
func (n *node) kubelet() string { return filepath.Join(n.dir, "kubelet") }
func (n *node) socket() string  { return filepath.Join(n.dir, "csi.sock") }
func (n *node) logFile() string { return filepath.Join(n.dir, "driver.log") }

// open makes the directories and mounts the pool.
func (n *node) open(ctx context.Context) error {
	for _, dir := range []string{n.pool(), n.kubelet()} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
	}
	return mountLoop(ctx, "btrfs", n.image, n.pool())
}

// close takes everything away: the driver, what is mounted, the files.
func (n *node) close() error {
	err := n.kill()
	points, tableErr := mountedBelow(n.dir)
	err = errors.Join(err, tableErr)
	pool := n.pool()
	for point := range points {
		for point != pool && unmountOnce(point) == nil { // as often as it is mounted
			continue
		}
	}
	if _, there := points[pool]; there {
		err = errors.Join(err, btrfstest.Unmount(pool))
	}
	if err != nil {
		return fmt.Errorf("%s is left behind: %w", n.dir, err)
	}
	return errors.Join(os.Remove(n.image), os.RemoveAll(n.dir))
}

func unmountOnce(path string) error { return syscall.Unmount(path, 0) }

// nodeID is the name of every node.
const nodeID = "node"

// launch starts a driver, and does not wait for it to serve.
func (n *node) launch() error {
	log, err := os.OpenFile(n.logFile(), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	args := append([]string{"serve", "--node-id=" + nodeID, "--endpoint=unix://" + n.socket(), "--state-dir=" + n.state(),
		"--kubelet-dir=" + n.kubelet(), "--quota=" + string(n.quota), "--profiling"}, n.flags...)
	cmd := exec.Command(n.binary, args...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Env = environment()
	if n.disturbed != "" && n.launches%3 < 2 {
		n.disturb(cmd)
	}
	n.launches++
	// Ctrl-C is for the test, which then ends the driver; and none outlives it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return err
	}
	n.process = &process{cmd: cmd, ended: make(chan struct{})}
	go func(p *process) {
		err := p.cmd.Wait()
		if !p.doomed.Load() {
			err = fmt.Errorf("the driver has ended by itself: %w", err)
			n.fell.Store(&err)
		}
		close(p.ended)
	}(n.process)
	return nil
}

// environment has the race detector, where it is built in, end the driver at the first
// race, and not wait for a second at every end.
func environment() []string { return append(os.Environ(), "GORACE=halt_on_error=1 atexit_sleep_ms=0") }

// start starts a driver and waits until it serves.
func (n *node) start(ctx context.Context) error {
	begin := time.Now()
	if err := n.launch(); err != nil {
		return err
	}
	c, err := n.connect(ctx)
	if err != nil {
		return errors.Join(fmt.Errorf("driver does not serve: %w; it said: %s", err, n.lastWords()), n.kill())
	}
	n.ready = time.Since(begin)
	n.client.Store(c)
	return nil
}

// patience is how long a driver may take to serve, and a request to be answered.
const patience = 2 * time.Minute

// connect waits until the driver serves, or has ended.
func (n *node) connect(ctx context.Context) (*client, error) {
	quick := grpc.ConnectParams{MinConnectTimeout: 10 * time.Second, Backoff: backoff.Config{BaseDelay: 2 * time.Millisecond, Multiplier: 1, MaxDelay: 2 * time.Millisecond}}
	conn, err := grpc.NewClient("unix://"+n.socket(), grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithConnectParams(quick))
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	go func(p *process) {
		select {
		case <-p.ended:
			cancel()
		case <-ctx.Done():
		}
	}(n.process)
	probe, err := csi.NewIdentityClient(conn).Probe(ctx, &csi.ProbeRequest{}, grpc.WaitForReady(true))
	if err == nil && !probe.GetReady().GetValue() {
		err = errors.New("it says that it is not ready")
	}
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return &client{csi.NewIdentityClient(conn), csi.NewControllerClient(conn), csi.NewNodeClient(conn), conn}, nil
}

// kill ends the driver as the kernel does when there is no memory left.
func (n *node) kill() error { return n.end(syscall.SIGKILL) }

// stop ends it as a DaemonSet does.
func (n *node) stop() error { return n.end(syscall.SIGTERM) }

func (n *node) end(signal syscall.Signal) error {
	if n.process == nil {
		return nil
	}
	p := n.process
	p.doomed.Store(true)
	err := p.cmd.Process.Signal(signal)
	if fell := n.fell.Load(); fell != nil {
		err = errors.Join(*fell, n.readLog())
	}
	select {
	case <-p.ended:
	case <-time.After(patience):
		return fmt.Errorf("driver does not end by %v", signal)
	}
	n.process = nil
	if c := n.client.Swap(nil); c != nil {
		err = errors.Join(err, c.conn.Close())
	}
	return err
}

// goroutines returns what the driver is at. No connection stays behind, which would be
// one of the driver's descriptors.
func (n *node) goroutines() (string, error) { return n.admin("/debug/pprof/goroutine?debug=1") }

// admin asks the driver by its socket for administrators.
func (n *node) admin(path string) (string, error) {
	client := http.Client{Timeout: patience, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", filepath.Join(n.state(), "admin.sock"))
		},
	}}
	response, err := client.Get("http://driver" + path)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	return string(text), err
}

// findings asks the binary for all that is wrong. Beside a running driver it asks
// that, else it looks itself.
func (n *node) findings(ctx context.Context) ([]snapshot.Finding, error) {
	cmd := exec.CommandContext(ctx, n.binary, "check", "--output=json", "--state-dir="+n.state())
	cmd.Env = environment()
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	var exit *exec.ExitError
	if err != nil && (!errors.As(err, &exit) || exit.ExitCode() != 1 || len(out) == 0) {
		return nil, fmt.Errorf("check: %w: %s", err, stderr.Bytes())
	}
	var findings []snapshot.Finding
	if err := json.Unmarshal(out, &findings); err != nil {
		return nil, fmt.Errorf("check printed %q: %w", out, err)
	}
	return findings, nil
}

// disaster is what no log may hold.
var disaster = regexp.MustCompile(`(?m)^(panic:|fatal error:|WARNING: DATA RACE|unexpected fault|E.*\] "Panic").*`)

// repair is how a driver that starts tells what it found half done.
var repair = regexp.MustCompile(`"Reconciled".* problem="(\w+)".* repair="(\w*)"`)

// disturbance is how a driver tells that it was disturbed.
var disturbance = regexp.MustCompile(`"Disturbed" .* commit=(true|false) wait="(\S+)"`)

// readLog reads what the drivers have written since it was read last.
func (n *node) readLog() error {
	text, err := os.ReadFile(n.logFile())
	if err != nil {
		return err
	}
	fresh := text[n.log:]
	n.log = len(text)
	for _, match := range repair.FindAllSubmatch(fresh, -1) {
		n.counts.repair(fmt.Sprintf("%s, %s", match[1], match[2]))
	}
	for _, match := range disturbance.FindAllSubmatch(fresh, -1) {
		n.counts.disturb(string(match[1]) == "true", string(match[2]) != "0s")
	}
	if at := disaster.FindIndex(fresh); at != nil {
		return fmt.Errorf("driver: %s", fresh[at[0]:min(len(fresh), at[0]+8<<10)])
	}
	return nil
}

// lastWords are the last lines of the log.
func (n *node) lastWords() string {
	text, err := os.ReadFile(n.logFile())
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	return strings.Join(lines[max(0, len(lines)-15):], "\n")
}
