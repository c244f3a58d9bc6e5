package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/btrfs-csi/btrfs-csi/test/testkit"
)

// rig is a pool in a sparse file and a driver that serves it.
type rig struct {
	*testkit.Driver // the running driver
	node            testkit.Node
	dir, binary     string
}

// newRig makes and mounts the pool. close undoes that.
func newRig(ctx context.Context, binary string) (*rig, error) {
	dir, err := os.MkdirTemp("", "btrfs-csi-demo-")
	if err != nil {
		return nil, err
	}
	if dir, err = filepath.EvalSymlinks(dir); err != nil { // as in the mount table
		return nil, err
	}
	r := &rig{node: testkit.NewNode(dir), dir: dir, binary: binary}
	// Always a separate filesystem, since quota is a setting of a whole filesystem.
	disk := testkit.Loop{File: filepath.Join(dir, "btrfs.img")}
	if err := errors.Join(r.node.Make(), disk.Make(ctx, poolSize)); err != nil {
		return r, err
	}
	return r, disk.Mount(ctx, r.node.Pool())
}

// start runs the driver and waits until it is ready.
func (r *rig) start(ctx context.Context) error {
	d, err := r.node.Start(ctx, r.node.Command(r.binary))
	if err == nil {
		r.Driver = d
	}
	return err
}

// close removes everything, also after a failure half-way.
func (r *rig) close() error {
	if r.Driver != nil {
		select {
		case <-r.Ended(): // the demo has killed it
		default:
			if err := r.End(os.Interrupt); err != nil {
				return err
			}
		}
	}
	return testkit.RemoveAll(r.dir)
}

var capability = testkit.Capability(csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER, "noatime")

// create creates a volume, from a source unless that is nil.
func (r *rig) create(ctx context.Context, name string, bytes int64, source *csi.VolumeContentSource) error {
	_, err := r.CreateVolume(ctx, &csi.CreateVolumeRequest{
		Name: name, VolumeCapabilities: []*csi.VolumeCapability{capability}, VolumeContentSource: source,
		CapacityRange: &csi.CapacityRange{RequiredBytes: bytes},
	})
	return err
}

// remove unmounts a volume and deletes it.
func (r *rig) remove(ctx context.Context, volume string) error {
	if err := r.Unmount(ctx, volume); err != nil {
		return err
	}
	_, err := r.DeleteVolume(ctx, &csi.DeleteVolumeRequest{VolumeId: volume})
	return err
}

// fill writes a file of pseudo-random bytes from a seed.
func fill(path string, bytes int64, seed byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE, 0o644)
	if err != nil {
		return err
	}
	_, err = io.CopyN(f, rand.NewChaCha8([32]byte{seed}), bytes)
	return errors.Join(err, f.Sync(), f.Close())
}

// fillSmall writes many small files, a hundred in each directory.
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

// checksum returns the checksum of all names and contents below root, and the number of files.
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
