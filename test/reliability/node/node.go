package node

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
	"github.com/btrfs-csi/btrfs-csi/test/reliability/model"
	"github.com/btrfs-csi/btrfs-csi/test/testkit"
)

// Node is a machine with one pool and one driver at a time.
type Node struct {
	Binary string
	// Disturbed is the binary of BuildDisturbed, or "". Two of three starts take it instead of
	// Binary. Seed determines its commits and waits.
	Disturbed string
	Seed      uint64
	launches  int
	Dir       string
	Image     string // of the pool
	Quota     btrfs.QuotaMode
	Flags     []string // more flags of serve
	Logged    *Logged

	testkit.Node
	Process *testkit.Driver                // the last that was started
	inside  *inside                        // the last of ServeInside; nil if there is none
	Driver  atomic.Pointer[testkit.Driver] // the client of either, while it serves; else nil
	Ready   time.Duration                  // how long the last start took
	logRead int                            // bytes of the log that ReadLog has read
}

// New returns a node whose files are below dir. Image is a btrfs, or NewPool makes it.
func New(binary, dir, image string, quota btrfs.QuotaMode) *Node {
	return &Node{Binary: binary, Dir: dir, Image: image, Quota: quota, Logged: NewLogged(), Node: testkit.NewNode(dir)}
}

func (n *Node) Index() string { return filepath.Join(n.State, "index.db") }

// Open makes the directories and mounts the pool.
func (n *Node) Open(ctx context.Context) error {
	if err := n.Make(); err != nil {
		return err
	}
	return testkit.Loop{File: n.Image}.Mount(ctx, n.Pool())
}

// Close kills the driver, unmounts everything, and removes all files.
func (n *Node) Close() error {
	if err := n.Clear(); err != nil {
		return err
	}
	return os.Remove(n.Image)
}

// Clear is Close without the removal of the image.
func (n *Node) Clear() error { return errors.Join(n.Kill(), testkit.RemoveAll(n.Dir)) }

// nextCommand returns the command that runs a driver.
func (n *Node) nextCommand() *exec.Cmd {
	cmd := n.Command(n.Binary, append([]string{"--quota=" + string(n.Quota), "--profiling"}, n.Flags...)...)
	cmd.Env = environment()
	if n.Disturbed != "" && n.launches%3 < 2 {
		n.disturb(cmd)
	}
	n.launches++
	return cmd
}

// environment returns the environment of a driver. A race detector ends the driver at the first
// race, and does not wait for a second when a driver ends.
func environment() []string { return append(os.Environ(), "GORACE=halt_on_error=1 atexit_sleep_ms=0") }

// Begin starts a driver without waiting until it serves.
func (n *Node) Begin() (err error) {
	n.Process, err = n.Launch(n.nextCommand())
	return err
}

// Serve starts a driver and waits until it serves.
func (n *Node) Serve(ctx context.Context) (err error) {
	if n.Process, err = n.Start(ctx, n.nextCommand()); err != nil {
		return err
	}
	n.Ready = n.Process.Ready
	n.Driver.Store(n.Process)
	return nil
}

// Fell returns an error if the driver that serves has ended by itself.
func (n *Node) Fell() error {
	if d := n.Driver.Load(); d != nil {
		return d.Fell()
	}
	return nil
}

// Patience is how long a request may take to be answered.
const Patience = 2 * time.Minute

// Kill ends the driver by SIGKILL, as the kernel does when it is out of memory.
func (n *Node) Kill() error { return n.end(syscall.SIGKILL) }

// Stop ends the driver by SIGTERM, as the kubelet does.
func (n *Node) Stop() error { return n.end(syscall.SIGTERM) }

func (n *Node) end(signal syscall.Signal) error {
	if n.inside != nil {
		n.Driver.Store(nil)
		err := n.inside.close()
		n.inside = nil
		return err
	}
	if n.Process == nil {
		return nil
	}
	err := n.Process.End(signal)
	if n.Process.Fell() != nil {
		err = errors.Join(err, n.ReadLog())
	}
	n.Driver.Store(nil)
	n.Process = nil
	return err
}

// Goroutines returns the stacks of the driver's goroutines. It closes its connection, which would
// count as one of the driver's descriptors.
func (n *Node) Goroutines() (string, error) { return n.Admin("/debug/pprof/goroutine?debug=1") }

// Admin returns the answer of the driver's admin socket to a GET of a path.
func (n *Node) Admin(path string) (string, error) {
	client := http.Client{Timeout: Patience, Transport: &http.Transport{
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

// Findings returns what btrfs-csi check finds. A driver in this process has no command, so
// Findings asks its engine.
func (n *Node) Findings(ctx context.Context) ([]snapshot.Finding, error) {
	if n.inside != nil {
		return n.inside.engine.Plan(ctx)
	}
	cmd := exec.CommandContext(ctx, n.Binary, "check", "--output=json", "--state-dir="+n.State)
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

// StagingOf and TargetOf return the mount points of a volume.
func (n *Node) StagingOf(o *model.Object) string { return n.Staging(o.ID) }
func (n *Node) TargetOf(o *model.Object) string  { return n.Target(o.ID) }

// SubvolumeOf returns the path of an object's subvolume.
func (n *Node) SubvolumeOf(o *model.Object) string {
	return filepath.Join(n.Pool(), string(o.Kind), o.ID, "fs")
}

// PoolID returns the ID of the pool, or "" if it cannot be read.
func (n *Node) PoolID() string {
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

// PoolSize is the size of a pool, in a sparse file. The load writes much less.
const PoolSize = 4 << 30

// NewPool makes an image of an empty pool.
func NewPool(ctx context.Context, image string) error {
	return testkit.Loop{File: image}.Make(ctx, PoolSize)
}
