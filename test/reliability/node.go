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
	"sync/atomic"
	"syscall"
	"time"

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs"
	"github.com/btrfs-csi/btrfs-csi/pkg/snapshot"
	"github.com/btrfs-csi/btrfs-csi/test/testkit"
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
	logged    *Logged

	testkit.Node
	process *testkit.Driver                // the last
	inside  *inside                        // the last of serveInside; nil: none
	driver  atomic.Pointer[testkit.Driver] // the same, while it serves
	ready   time.Duration                  // how long the last start took
	logRead int                            // bytes
}

func newNode(binary, dir, image string, quota btrfs.QuotaMode) *node {
	return &node{binary: binary, dir: dir, image: image, quota: quota, logged: newLogged(), Node: testkit.NewNode(dir)}
}

func (n *node) index() string { return filepath.Join(n.State, "index.db") }

// open makes the directories and mounts the pool.
func (n *node) open(ctx context.Context) error {
	if err := n.Make(); err != nil {
		return err
	}
	return testkit.Loop{File: n.image}.Mount(ctx, n.Pool())
}

// close takes everything away: the driver, what is mounted, the files.
func (n *node) close() error {
	if err := n.clear(); err != nil {
		return err
	}
	return os.Remove(n.image)
}

// clear takes everything away but the image.
func (n *node) clear() error { return errors.Join(n.kill(), testkit.RemoveAll(n.dir)) }

// nextCommand returns the command that runs a driver.
func (n *node) nextCommand() *exec.Cmd {
	cmd := n.Command(n.binary, append([]string{"--quota=" + string(n.quota), "--profiling"}, n.flags...)...)
	cmd.Env = environment()
	if n.disturbed != "" && n.launches%3 < 2 {
		n.disturb(cmd)
	}
	n.launches++
	return cmd
}

// environment has the race detector, where it is built in, end the driver at the first
// race, and not wait for a second at every end.
func environment() []string { return append(os.Environ(), "GORACE=halt_on_error=1 atexit_sleep_ms=0") }

// begin starts a driver, and does not wait for it to serve.
func (n *node) begin() (err error) {
	n.process, err = n.Launch(n.nextCommand())
	return err
}

// serve starts a driver and waits until it serves.
func (n *node) serve(ctx context.Context) (err error) {
	if n.process, err = n.Start(ctx, n.nextCommand()); err != nil {
		return err
	}
	n.ready = n.process.Ready
	n.driver.Store(n.process)
	return nil
}

// fell returns an error if the driver that serves has ended by itself.
func (n *node) fell() error {
	if d := n.driver.Load(); d != nil {
		return d.Fell()
	}
	return nil
}

// patience is how long a request may take to be answered.
const patience = 2 * time.Minute

// kill ends the driver as the kernel does when there is no memory left.
func (n *node) kill() error { return n.end(syscall.SIGKILL) }

// stop ends it as a DaemonSet does.
func (n *node) stop() error { return n.end(syscall.SIGTERM) }

func (n *node) end(signal syscall.Signal) error {
	if n.inside != nil {
		n.driver.Store(nil)
		err := n.inside.close()
		n.inside = nil
		return err
	}
	if n.process == nil {
		return nil
	}
	err := n.process.End(signal)
	if n.process.Fell() != nil {
		err = errors.Join(err, n.readLog())
	}
	n.driver.Store(nil)
	n.process = nil
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
			return new(net.Dialer).DialContext(ctx, "unix", filepath.Join(n.State, "admin.sock"))
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
// that, else it looks itself. A driver in this process is asked directly.
func (n *node) findings(ctx context.Context) ([]snapshot.Finding, error) {
	if n.inside != nil {
		return n.inside.engine.Plan(ctx)
	}
	cmd := exec.CommandContext(ctx, n.binary, "check", "--output=json", "--state-dir="+n.State)
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

// staging and target are where the kubelet mounts a volume.
func (n *node) staging(o *object) string { return n.Staging(o.id) }
func (n *node) target(o *object) string  { return n.Target(o.id) }

// subvolume is where an object is on disk.
func (n *node) subvolume(o *object) string {
	return filepath.Join(n.Pool(), string(o.kind), o.id, "fs")
}

// poolID reads that of the pool; empty where it cannot.
func (n *node) poolID() string {
	data, err := os.ReadFile(filepath.Join(n.Pool(), "pool.json"))
	if err != nil {
		return ""
	}
	var pool struct {
		ID string `json:"id"`
	}
	_ = json.Unmarshal(data, &pool)
	return pool.ID
}

// poolSize is the size of a pool, sparse: many times what the load writes.
const poolSize = 4 << 30

// newPool makes an image of an empty pool.
func newPool(ctx context.Context, image string) error {
	return testkit.Loop{File: image}.Make(ctx, poolSize)
}
