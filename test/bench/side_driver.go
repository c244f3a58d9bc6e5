package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
)

// driver is btrfs-csi as it is deployed: a process of its own, asked over gRPC.
type driver struct {
	rig     *rig
	process *exec.Cmd
	ended   chan struct{} // closed when the process has ended
	waitErr error         // why that could not be waited for; set before ended is closed
	conn    *grpc.ClientConn
	ready   time.Duration // from the start of the process until it served
	size    atomic.Int64  // the last size that a volume was expanded to

	csi.ControllerClient
	csi.NodeClient
}

var capability = &csi.VolumeCapability{
	AccessType: &csi.VolumeCapability_Mount{Mount: &csi.VolumeCapability_MountVolume{}},
	AccessMode: &csi.VolumeCapability_AccessMode{Mode: csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER},
}

var readOnlyCapability = &csi.VolumeCapability{
	AccessType: &csi.VolumeCapability_Mount{Mount: &csi.VolumeCapability_MountVolume{}},
	AccessMode: &csi.VolumeCapability_AccessMode{Mode: csi.VolumeCapability_AccessMode_MULTI_NODE_READER_ONLY},
}

// openDriver returns an opener that starts a binary.
func openDriver(binary string) opener {
	return func(ctx context.Context, r *rig) (side, error) { return startDriver(ctx, r, binary) }
}

func startDriver(ctx context.Context, r *rig, binary string) (_ *driver, err error) {
	d := &driver{rig: r}
	d.size.Store(volumeSize)
	log, err := os.OpenFile(r.log(), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	d.process = exec.Command(binary, "serve", "--node-id=bench", "--endpoint=unix://"+r.socket(), "--state-dir="+r.state(),
		"--kubelet-dir="+r.kubelet(), "--quota="+string(r.quota))
	d.process.Stdout, d.process.Stderr = log, log
	// Ctrl-C is for the benchmark, which then stops the driver; and none outlives it.
	d.process.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	begin := time.Now()
	if err := d.process.Start(); err != nil {
		return nil, err
	}
	d.ended = make(chan struct{})
	go func() {
		defer close(d.ended)
		_, d.waitErr = d.process.Process.Wait()
	}()
	if err := d.connect(ctx); err != nil {
		text, _ := os.ReadFile(r.log())
		return nil, errors.Join(fmt.Errorf("driver is not ready: %w; it said: %s", err, text), d.close())
	}
	d.ready = time.Since(begin)
	return d, nil
}

// connect waits until the driver serves, or has ended.
func (d *driver) connect(ctx context.Context) (err error) {
	quick := grpc.ConnectParams{
		Backoff:           backoff.Config{BaseDelay: time.Millisecond, Multiplier: 1, MaxDelay: time.Millisecond},
		MinConnectTimeout: stopTime, // else it is the delay, too, within which a connection has to be made
	}
	d.conn, err = grpc.NewClient("unix://"+d.rig.socket(), grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithConnectParams(quick))
	if err != nil {
		return err
	}
	d.ControllerClient, d.NodeClient = csi.NewControllerClient(d.conn), csi.NewNodeClient(d.conn)
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	go func() {
		defer cancel()
		select {
		case <-d.ended:
		case <-ctx.Done():
		}
	}()
	probe, err := csi.NewIdentityClient(d.conn).Probe(ctx, &csi.ProbeRequest{}, grpc.WaitForReady(true))
	if err == nil && !probe.GetReady().GetValue() {
		err = errors.New("it says that it is not")
	}
	return err
}

// stopTime is how long the driver may take to end before it is killed.
const stopTime = 2 * time.Minute

func (d *driver) close() error {
	err := d.process.Process.Signal(os.Interrupt)
	impatience := time.AfterFunc(stopTime, func() { _ = d.process.Process.Kill() })
	defer impatience.Stop()
	<-d.ended
	err = errors.Join(err, d.waitErr)
	if d.conn != nil {
		err = errors.Join(err, d.conn.Close())
	}
	return err
}

func (d *driver) operations() map[string]operation {
	return map[string]operation{
		opCreate:        func(ctx context.Context, i int) error { return d.create(ctx, volumeName(i), nil, capability) },
		opSnapshot:      func(ctx context.Context, i int) error { return d.snapshot(ctx, i, i) },
		opSnapshotAgain: func(ctx context.Context, i int) error { return d.snapshot(ctx, i, 0) },
		opClone: func(ctx context.Context, i int) error {
			return d.create(ctx, cloneName(i), fromVolume(volumeName(i)), capability)
		},
		opRestore: func(ctx context.Context, i int) error {
			return d.create(ctx, restoredName(i), fromSnapshot(snapshotName(i)), capability)
		},
		opView: func(ctx context.Context, i int) error {
			return d.create(ctx, viewName(i), fromSnapshot(snapshotName(i)), readOnlyCapability)
		},
		opDelete:         func(ctx context.Context, i int) error { return d.delete(ctx, cloneName(i)) },
		opDeleteSnapshot: d.deleteSnapshot,
		opExpand:         d.expand,
		opStats:          d.stats,
		opList: func(ctx context.Context, _ int) error {
			_, err := d.ListVolumes(ctx, &csi.ListVolumesRequest{})
			return err
		},
		opPublish: func(ctx context.Context, i int) error {
			if i > 0 {
				return nil
			}
			_, err := d.publish(ctx, volumeName(0))
			return err
		},
		opTidy:  d.tidy,
		opClear: d.clear,
	}
}

// create makes a volume; with a source it has the size of that.
func (d *driver) create(ctx context.Context, name string, source *csi.VolumeContentSource, capability *csi.VolumeCapability) error {
	request := &csi.CreateVolumeRequest{Name: name, VolumeCapabilities: []*csi.VolumeCapability{capability}, VolumeContentSource: source}
	if source == nil {
		request.CapacityRange = &csi.CapacityRange{RequiredBytes: volumeSize}
	}
	_, err := d.CreateVolume(ctx, request)
	return err
}

func fromSnapshot(id string) *csi.VolumeContentSource {
	return &csi.VolumeContentSource{Type: &csi.VolumeContentSource_Snapshot{Snapshot: &csi.VolumeContentSource_SnapshotSource{SnapshotId: id}}}
}

func fromVolume(id string) *csi.VolumeContentSource {
	return &csi.VolumeContentSource{Type: &csi.VolumeContentSource_Volume{Volume: &csi.VolumeContentSource_VolumeSource{VolumeId: id}}}
}

func (d *driver) snapshot(ctx context.Context, i, of int) error {
	_, err := d.CreateSnapshot(ctx, &csi.CreateSnapshotRequest{Name: snapshotName(i), SourceVolumeId: volumeName(of)})
	return err
}

func (d *driver) delete(ctx context.Context, volume string) error {
	_, err := d.DeleteVolume(ctx, &csi.DeleteVolumeRequest{VolumeId: volume})
	return err
}

func (d *driver) deleteSnapshot(ctx context.Context, i int) error {
	_, err := d.DeleteSnapshot(ctx, &csi.DeleteSnapshotRequest{SnapshotId: snapshotName(i)})
	return err
}

// expand makes the volume larger than any was before, so that it always has
// something to do.
func (d *driver) expand(ctx context.Context, i int) error {
	_, err := d.ControllerExpandVolume(ctx, &csi.ControllerExpandVolumeRequest{
		VolumeId: volumeName(i), VolumeCapability: capability,
		CapacityRange: &csi.CapacityRange{RequiredBytes: d.size.Add(1 << 20)},
	})
	return err
}

func (d *driver) stats(ctx context.Context, _ int) error {
	_, err := d.NodeGetVolumeStats(ctx, &csi.NodeGetVolumeStatsRequest{VolumeId: volumeName(0), VolumePath: d.target(volumeName(0))})
	return err
}

func (d *driver) tidy(ctx context.Context, i int) error {
	for _, name := range copyNames(i) {
		if err := d.delete(ctx, name); err != nil {
			return err
		}
	}
	return nil
}

func (d *driver) clear(ctx context.Context, i int) error {
	if i == 0 {
		if err := d.unpublish(ctx, volumeName(0)); err != nil {
			return err
		}
	}
	if err := d.tidy(ctx, i); err != nil {
		return err
	}
	if err := d.delete(ctx, volumeName(i)); err != nil {
		return err
	}
	return d.deleteSnapshot(ctx, i)
}

func (d *driver) target(volume string) string {
	return filepath.Join(d.rig.kubelet(), "target-"+volume)
}

func (d *driver) staging(volume string) string {
	return filepath.Join(d.rig.kubelet(), "staging-"+volume)
}

// publish mounts a volume as a kubelet does for a pod, and returns where.
func (d *driver) publish(ctx context.Context, volume string) (string, error) {
	if err := os.MkdirAll(d.staging(volume), 0o750); err != nil {
		return "", err
	}
	_, err := d.NodeStageVolume(ctx, &csi.NodeStageVolumeRequest{
		VolumeId: volume, StagingTargetPath: d.staging(volume), VolumeCapability: capability,
	})
	if err != nil {
		return "", err
	}
	_, err = d.NodePublishVolume(ctx, &csi.NodePublishVolumeRequest{
		VolumeId: volume, StagingTargetPath: d.staging(volume), TargetPath: d.target(volume), VolumeCapability: capability,
	})
	return d.target(volume), err
}

func (d *driver) unpublish(ctx context.Context, volume string) error {
	_, err := d.NodeUnpublishVolume(ctx, &csi.NodeUnpublishVolumeRequest{VolumeId: volume, TargetPath: d.target(volume)})
	if err != nil {
		return err
	}
	_, err = d.NodeUnstageVolume(ctx, &csi.NodeUnstageVolumeRequest{VolumeId: volume, StagingTargetPath: d.staging(volume)})
	return err
}
