package testkit

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
)

// Build builds the driver from its source. binary must be an absolute path.
func Build(ctx context.Context, source, binary string, flags ...string) error {
	args := []string{"build", "-C", source, "-trimpath", "-buildvcs=false", "-tags", "netgo osusergo", "-o", binary}
	return Run(ctx, "go", append(append(args, flags...), "./cmd/btrfs-csi")...)
}

// Patience is how long a driver may take to become ready, or to end.
const Patience = 2 * time.Minute

// Client is a CSI client.
type Client struct {
	csi.IdentityClient
	csi.ControllerClient
	csi.NodeClient
	conn *grpc.ClientConn
}

// Dial returns a client for a socket. The driver may start to serve it later.
func Dial(socket string) (*Client, error) {
	const between = time.Millisecond // between two attempts
	quick := grpc.ConnectParams{
		Backoff:           backoff.Config{BaseDelay: between, Multiplier: 1, MaxDelay: between},
		MinConnectTimeout: Patience, // the default would be the delay
	}
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithConnectParams(quick))
	if err != nil {
		return nil, err
	}
	return &Client{csi.NewIdentityClient(conn), csi.NewControllerClient(conn), csi.NewNodeClient(conn), conn}, nil
}

// Close ends the connection.
func (c *Client) Close() error { return c.conn.Close() }

// Driver is a process of the driver.
type Driver struct {
	Node
	*Client
	Cmd   *exec.Cmd
	Ready time.Duration // time from the start of the process until it was ready

	began  time.Time
	doomed atomic.Bool // the test has asked it to end
	ended  chan struct{}
	fell   error // why it ended by itself. Set before ended is closed
}

// Launch starts a driver and does not wait until it is ready. The driver is killed when this
// process ends. A Ctrl-C does not reach it, so that this process can end it properly.
func (n Node) Launch(cmd *exec.Cmd) (*Driver, error) {
	log, err := os.OpenFile(n.Log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	client, err := Dial(n.Socket)
	if err != nil {
		return nil, err
	}
	d := &Driver{Node: n, Client: client, Cmd: cmd, began: time.Now(), ended: make(chan struct{})}
	if err := cmd.Start(); err != nil {
		return nil, errors.Join(err, client.Close())
	}
	go func() {
		defer close(d.ended)
		err := cmd.Wait()
		if !d.doomed.Load() {
			d.fell = fmt.Errorf("the driver has ended by itself: %w", err)
		}
	}()
	return d, nil
}

// Start starts a driver and waits until it is ready.
func (n Node) Start(ctx context.Context, cmd *exec.Cmd) (*Driver, error) {
	d, err := n.Launch(cmd)
	if err != nil {
		return nil, err
	}
	if err := d.await(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("the driver does not serve: %w; it said:\n%s", err, n.LastWords()), d.End(os.Kill))
	}
	d.Ready = time.Since(d.began)
	return d, nil
}

// await waits until the driver is ready or has ended.
func (d *Driver) await(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, Patience)
	defer cancel()
	go func() {
		defer cancel()
		select {
		case <-d.ended:
		case <-ctx.Done():
		}
	}()
	probe, err := d.Probe(ctx, &csi.ProbeRequest{}, grpc.WaitForReady(true))
	if err == nil && !probe.GetReady().GetValue() {
		err = errors.New("it is not ready")
	}
	return err
}

// Ended returns a channel that is closed when the process has ended.
func (d *Driver) Ended() <-chan struct{} { return d.ended }

// Fell returns an error if the driver has ended by itself.
func (d *Driver) Fell() error {
	select {
	case <-d.ended:
		return d.fell
	default:
		return nil
	}
}

// Signal sends the driver a signal that should end it.
func (d *Driver) Signal(signal os.Signal) error {
	d.doomed.Store(true)
	return d.Cmd.Process.Signal(signal)
}

// End ends the driver by a signal. It returns an error if the driver had ended before or does not
// end, whatever the exit code is.
func (d *Driver) End(signal os.Signal) error {
	err := d.Signal(signal)
	select {
	case <-d.ended:
		return errors.Join(d.fell, err, d.Close())
	case <-time.After(Patience):
		return errors.Join(fmt.Errorf("the driver does not end by the signal %v", signal), err, d.Cmd.Process.Kill())
	}
}
