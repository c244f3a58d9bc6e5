package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	"k8s.io/mount-utils"

	"github.com/btrfs-csi/btrfs-csi/pkg/pool"
)

// demoPoolSize is the size of the demo's sparse image, in bytes.
const demoPoolSize = 4 << 30

// rig is a driver of the demo's own: this binary as a child process, on a pool
// in a sparse file, with nothing in common with a driver that serves here.
type rig struct {
	dir     string
	mounter mount.Interface
	driver  *exec.Cmd
	log     bytes.Buffer
	conn    *grpc.ClientConn

	csi.ControllerClient
	csi.NodeClient
}

// newRig makes and mounts the pool. close undoes all of it.
func newRig(ctx context.Context) (*rig, error) {
	dir, err := os.MkdirTemp("", "btrfs-csi-demo-")
	if err != nil {
		return nil, err
	}
	if dir, err = filepath.EvalSymlinks(dir); err != nil { // as the mount table has it
		return nil, err
	}
	r := &rig{dir: dir, mounter: mount.NewWithoutSystemd("")}
	for _, d := range []string{r.pool(), r.kubelet()} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return r, err
		}
	}
	// A pool of its own in any case: quota is a setting of a whole filesystem.
	image := filepath.Join(dir, loopImage)
	if err := makeImage(ctx, image, demoPoolSize); err != nil {
		return r, err
	}
	return r, r.mounter.Mount(image, r.pool(), "btrfs", []string{"loop"})
}

func (r *rig) state() string   { return filepath.Join(r.dir, "state") }
func (r *rig) pool() string    { return filepath.Join(r.state(), "pools", pool.Default) }
func (r *rig) kubelet() string { return filepath.Join(r.dir, "kubelet") }
func (r *rig) socket() string  { return filepath.Join(r.dir, "csi.sock") }

// start runs the driver and waits until it is ready.
func (r *rig) start(ctx context.Context) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	r.driver = exec.Command(self, "serve", "--node-id=demo", "--state-dir="+r.state(), "--endpoint=unix://"+r.socket(), "--kubelet-dir="+r.kubelet())
	r.driver.Stdout, r.driver.Stderr = &r.log, &r.log
	// Ctrl-C is for the demo, which then stops the driver.
	r.driver.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := r.driver.Start(); err != nil {
		return err
	}
	// A second is grpc's least patience after a failed attempt.
	quick := grpc.ConnectParams{MinConnectTimeout: 10 * time.Second, Backoff: backoff.Config{BaseDelay: 5 * time.Millisecond, Multiplier: 1, MaxDelay: 5 * time.Millisecond}}
	r.conn, err = grpc.NewClient("unix://"+r.socket(), grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithConnectParams(quick))
	if err != nil {
		return err
	}
	r.ControllerClient, r.NodeClient = csi.NewControllerClient(r.conn), csi.NewNodeClient(r.conn)
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	probe, err := csi.NewIdentityClient(r.conn).Probe(ctx, &csi.ProbeRequest{}, grpc.WaitForReady(true))
	if err != nil || !probe.GetReady().GetValue() {
		return fmt.Errorf("driver is not ready: %w; it said:\n%s", err, r.log.String())
	}
	return nil
}

// kill ends the driver as an OOM killer would.
func (r *rig) kill() error { return errors.Join(r.driver.Process.Kill(), r.wait()) }

// stop ends the driver as a kubelet does.
func (r *rig) stop() error {
	if r.driver == nil || r.driver.ProcessState != nil {
		return nil
	}
	return errors.Join(r.driver.Process.Signal(os.Interrupt), r.wait())
}

// wait is for the driver's end; how it ended is known already.
func (r *rig) wait() error {
	err := r.driver.Wait()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		err = nil
	}
	return errors.Join(err, r.conn.Close())
}

// close takes everything away, also after a failure half-way.
func (r *rig) close() error {
	errs := []error{r.stop()}
	table, err := r.mounter.List()
	errs = append(errs, err)
	for i := len(table) - 1; i >= 0; i-- {
		if mount.PathWithinBase(table[i].Path, r.dir) {
			errs = append(errs, r.mounter.Unmount(table[i].Path))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return err // what is mounted there must not be removed with it
	}
	return os.RemoveAll(r.dir)
}

var demoCapability = &csi.VolumeCapability{
	AccessType: &csi.VolumeCapability_Mount{Mount: &csi.VolumeCapability_MountVolume{MountFlags: []string{"noatime"}}},
	AccessMode: &csi.VolumeCapability_AccessMode{Mode: csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER},
}

// create makes a volume; from nothing without a source.
func (r *rig) create(ctx context.Context, name string, bytes int64, source *csi.VolumeContentSource) error {
	_, err := r.CreateVolume(ctx, &csi.CreateVolumeRequest{
		Name: name, VolumeCapabilities: []*csi.VolumeCapability{demoCapability}, VolumeContentSource: source,
		CapacityRange: &csi.CapacityRange{RequiredBytes: bytes},
	})
	return err
}

func fromSnapshot(id string) *csi.VolumeContentSource {
	return &csi.VolumeContentSource{Type: &csi.VolumeContentSource_Snapshot{Snapshot: &csi.VolumeContentSource_SnapshotSource{SnapshotId: id}}}
}

func fromVolume(id string) *csi.VolumeContentSource {
	return &csi.VolumeContentSource{Type: &csi.VolumeContentSource_Volume{Volume: &csi.VolumeContentSource_VolumeSource{VolumeId: id}}}
}

func (r *rig) staging(volume string) string { return filepath.Join(r.kubelet(), "staging-"+volume) }
func (r *rig) target(volume string) string  { return filepath.Join(r.kubelet(), "target-"+volume) }

// publish does what a kubelet does for a pod, and returns where the volume is.
func (r *rig) publish(ctx context.Context, volume string) (string, error) {
	if err := os.MkdirAll(r.staging(volume), 0o750); err != nil {
		return "", err
	}
	_, err := r.NodeStageVolume(ctx, &csi.NodeStageVolumeRequest{VolumeId: volume, StagingTargetPath: r.staging(volume), VolumeCapability: demoCapability})
	if err != nil {
		return "", err
	}
	_, err = r.NodePublishVolume(ctx, &csi.NodePublishVolumeRequest{
		VolumeId: volume, StagingTargetPath: r.staging(volume), TargetPath: r.target(volume), VolumeCapability: demoCapability,
	})
	return r.target(volume), err
}

// remove unpublishes a volume and deletes it.
func (r *rig) remove(ctx context.Context, volume string) error {
	if _, err := r.NodeUnpublishVolume(ctx, &csi.NodeUnpublishVolumeRequest{VolumeId: volume, TargetPath: r.target(volume)}); err != nil {
		return err
	}
	if _, err := r.NodeUnstageVolume(ctx, &csi.NodeUnstageVolumeRequest{VolumeId: volume, StagingTargetPath: r.staging(volume)}); err != nil {
		return err
	}
	_, err := r.DeleteVolume(ctx, &csi.DeleteVolumeRequest{VolumeId: volume})
	return err
}

// fill writes a file of random bytes that seed determines.
func fill(path string, bytes int64, seed byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE, 0o644)
	if err != nil {
		return err
	}
	_, err = io.CopyN(f, rand.NewChaCha8([32]byte{seed}), bytes)
	return errors.Join(err, f.Sync(), f.Close())
}

// fillSmall writes many small files in directories of a hundred.
func fillSmall(root string, files int) error {
	for i := range files {
		dir := filepath.Join(root, "small", fmt.Sprint(i/100))
		if i%100 == 0 {
			if err := os.MkdirAll(dir, 0o755); err != nil {
				return err
			}
		}
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprint(i)), []byte(fmt.Sprintln("file", i)), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// checksum reads everything below root, names and content, and counts the files.
func checksum(root string) (sum string, files int, err error) {
	h := sha256.New()
	err = filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() {
			return err
		}
		files++
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		fmt.Fprintln(h, path[len(root):])
		_, err = io.Copy(h, f)
		return err
	})
	return fmt.Sprintf("%x", h.Sum(nil))[:16], files, err
}
