package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"k8s.io/klog/v2"
	"k8s.io/klog/v2/textlogger"

	"github.com/btrfs-csi/btrfs-csi/pkg/driver"
	"github.com/btrfs-csi/btrfs-csi/pkg/meta/index"
	"github.com/btrfs-csi/btrfs-csi/pkg/pool"
	"github.com/btrfs-csi/btrfs-csi/pkg/pool/pooltest"
	"github.com/btrfs-csi/btrfs-csi/pkg/snapshot"
	"github.com/btrfs-csi/btrfs-csi/test/testkit"
)

// inside is a driver in this process.
type inside struct {
	engine *snapshot.Engine
	client *testkit.Client
	cancel context.CancelFunc
	ended  chan struct{} // closed when Serve has returned; nil if it was not called
	served error         // what Serve has returned
	log    *os.File
}

// ServeInside starts a driver in this process, and waits until it serves. The driver calls around
// instead of each step of an operation; see pooltest.Around.
func (n *Node) ServeInside(ctx context.Context, around func(pooltest.Step, func() error) error) error {
	unix.Umask(0o022)
	log, err := os.OpenFile(n.Log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	logger := textlogger.NewLogger(textlogger.NewConfig(textlogger.Output(log)))
	ctx, cancel := context.WithCancel(klog.NewContext(context.WithoutCancel(ctx), logger))
	in := &inside{cancel: cancel, log: log}
	d, err := in.open(ctx, n, around)
	if err == nil {
		in.client, err = testkit.Dial(n.Socket)
	}
	if err != nil {
		return errors.Join(err, in.close())
	}
	in.ended = make(chan struct{})
	go func() {
		defer close(in.ended)
		in.served = d.Serve(ctx, "unix://"+n.Socket)
	}()
	n.inside = in
	n.Driver.Store(&testkit.Driver{Node: n.Node, Client: in.client})
	return in.await(ctx)
}

// open opens the pools and makes the driver.
func (in *inside) open(ctx context.Context, n *Node, around func(pooltest.Step, func() error) error) (*driver.Driver, error) {
	host, err := pool.NewHost(n.State, n.Quota)
	if err != nil {
		return nil, err
	}
	index, _, err := index.Open(n.Index())
	if err != nil {
		return nil, err
	}
	in.engine, err = snapshot.Open(ctx, pooltest.Around(host, around), index, snapshot.Patience(time.Minute))
	if err != nil {
		return nil, errors.Join(err, index.Close())
	}
	return driver.New(in.engine, driver.Options{NodeID: testkit.NodeID, Version: "inside", KubeletDir: n.Kubelet})
}

// await waits until the driver serves. It fails if the driver ends.
func (in *inside) await(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, testkit.Patience)
	defer cancel()
	answered := make(chan error, 1)
	go func() {
		_, err := in.client.Probe(ctx, &csi.ProbeRequest{}, grpc.WaitForReady(true))
		answered <- err
	}()
	select {
	case err := <-answered:
		return err
	case <-in.ended:
		return fmt.Errorf("the driver does not serve: %w", in.served)
	}
}

// BreakOff breaks off the requests to the driver in this process. Their callers get no answer, as
// when a driver is killed. The caller ends the driver by end.
func (n *Node) BreakOff() (end func() error) {
	n.Driver.Store(nil)
	_ = n.inside.client.Close()
	return n.inside.close
}

// close ends the driver as SIGTERM does.
func (in *inside) close() error {
	in.cancel()
	var err error
	if in.ended != nil {
		<-in.ended
		err = in.served
		_ = in.client.Close() // it is closed already where the driver was killed
	}
	if in.engine != nil {
		err = errors.Join(err, in.engine.Close())
	}
	return errors.Join(err, in.log.Close())
}
