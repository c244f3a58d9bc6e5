package cluster

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const disksDir = "disks"

// driverDir is the path of the driver's state directory, in the node and on the node's disk.
const driverDir = "btrfs-csi"

// Disk is a disk with a btrfs. It can be in one node at a time.
type Disk struct {
	image string
}

// pool is a disk in a node.
type pool struct {
	disk    *Disk
	options []string // of the mount
}

// NewDisk makes a disk of a size in bytes, in a sparse file.
func (c *Cluster) NewDisk(ctx context.Context, size int64, mkfsArgs ...string) (*Disk, error) {
	dir := filepath.Join(c.dir, disksDir)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	f, err := os.CreateTemp(dir, "*.img")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		return nil, err
	}
	return &Disk{f.Name()}, run(ctx, "mkfs.btrfs", append(append([]string{"-q", "-K"}, mkfsArgs...), f.Name())...)
}

// CopyDisk copies the present state of a disk, whether it is in use or not. The copy has the same IDs.
func (c *Cluster) CopyDisk(ctx context.Context, disk *Disk) (*Disk, error) {
	f, err := os.CreateTemp(filepath.Join(c.dir, disksDir), "*.img")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return &Disk{f.Name()}, copyDisk(ctx, disk.image, f.Name())
}

// AddPool mounts a disk as a pool of the node, with mount options, now and at each boot. The disk must not be
// in use as another pool.
func (n *Node) AddPool(ctx context.Context, name string, disk *Disk, options ...string) error {
	if other, ok := n.pools[name]; ok {
		return fmt.Errorf("%s has a pool %q, on %s; remove that first", n.Name, name, other.disk.image)
	}
	for _, node := range n.cluster.Nodes {
		for other, p := range node.pools {
			if p.disk == disk {
				return fmt.Errorf("disk %s is pool %q of %s; remove it there first", disk.image, other, node.Name)
			}
		}
	}
	n.pools[name] = pool{disk, options}
	if !n.Running() && n.boot.ID != "" {
		return nil // Start will mount it
	}
	return n.mountPool(ctx, name)
}

// RemovePool unmounts a pool and returns its disk, for another node. While a part of the filesystem is mounted
// or open anywhere, RemovePool fails and the pool stays: a second mount elsewhere would damage it. The
// directory stays.
func (n *Node) RemovePool(ctx context.Context, name string) (*Disk, error) {
	p, ok := n.pools[name]
	if !ok {
		return nil, fmt.Errorf("%s has no pool %q", n.Name, name)
	}
	if err := n.unmountPool(name); err != nil {
		return nil, err
	}
	if err := waitForDisk(p.disk); err != nil {
		return nil, errors.Join(fmt.Errorf("pool %q of %s: %w", name, n.Name, err), n.mountPool(ctx, name))
	}
	delete(n.pools, name)
	return p.disk, nil
}

// waitForDisk waits until the kernel has released the disk of an unmounted filesystem.
func waitForDisk(disk *Disk) error {
	id, err := identify(disk.image)
	if err != nil {
		return err
	}
	for deadline := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		loops, err := allLoops()
		if err != nil || !slices.ContainsFunc(loops, func(l loop) bool { return l.file == id }) {
			return err
		}
		if time.Now().After(deadline) {
			return errors.New("pods or loop devices use the filesystem; remove them first")
		}
	}
}

// poolDir returns the mount point of a pool in the lab. The mount propagates into the node.
func (n *Node) poolDir(name string) string {
	return filepath.Join(n.disk(), driverDir, "pools", name)
}

func (n *Node) mountPool(ctx context.Context, name string) (err error) {
	p, dir := n.pools[name], n.poolDir(name)
	if mounted, err := isMounted(dir); err != nil || mounted {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	options := strings.Join(append([]string{"loop"}, p.options...), ",")
	for range 50 { // mount fails if another process takes the loop device that mount has found free
		if err = run(ctx, "mount", "-t", "btrfs", "-o", options, p.disk.image, dir); err == nil {
			return nil
		}
		time.Sleep(100 * time.Millisecond)
	}
	return fmt.Errorf("pool %q of %s: %w", name, n.Name, err)
}

// unmountPool unmounts a pool. It waits a while for open descriptors.
func (n *Node) unmountPool(name string) (err error) {
	dir := n.poolDir(name)
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		mounted, e := isMounted(dir)
		if e != nil || !mounted {
			return e
		}
		if err = unix.Unmount(dir, 0); err != nil && !errors.Is(err, unix.EBUSY) {
			break
		}
	}
	if err != nil {
		return fmt.Errorf("unmount pool %q of %s: %w", name, n.Name, err)
	}
	return nil
}

// isMounted reports whether a directory is a mount point.
func isMounted(dir string) (bool, error) {
	var st, parent unix.Stat_t
	switch err := unix.Stat(dir, &st); {
	case errors.Is(err, unix.ENOENT):
		return false, nil
	case err != nil:
		return false, &os.PathError{Op: "stat", Path: dir, Err: err}
	}
	if err := unix.Stat(filepath.Dir(dir), &parent); err != nil {
		return false, &os.PathError{Op: "stat", Path: filepath.Dir(dir), Err: err}
	}
	return st.Dev != parent.Dev, nil
}

// loopFiles returns the files on which the node may have loop devices.
func (n *Node) loopFiles() []string {
	files := driverFiles(n.dir)
	for p := range maps.Values(n.pools) {
		files = append(files, p.disk.image)
	}
	return files
}

// driverFiles returns the files of the driver on the disks of nodes. Some may contain pools. nodes is a
// pattern for the directories of the nodes.
func driverFiles(nodes string) []string {
	above, _ := filepath.Glob(filepath.Join(nodes, "disk", driverDir, "*"))
	below, _ := filepath.Glob(filepath.Join(nodes, "disk", driverDir, "*", "*"))
	return append(above, below...)
}

// cutPool gives a pool's disk the state after a power cut, without the data that the kernel has only in
// memory. No process may use the pool any more. The filesystem is still mounted in the lab, because an
// unmount would have written that data.
func (n *Node) cutPool(ctx context.Context, name string) error {
	image := n.pools[name].disk.image
	cut := image + ".cut"
	err := copyDisk(ctx, image, cut)
	if err == nil {
		err = n.unmountPool(name)
	}
	if err == nil {
		// Loop devices on its files keep the filesystem alive.
		err = detachLoops(image)
	}
	if err == nil {
		err = os.Rename(cut, image)
	}
	if err != nil {
		return fmt.Errorf("cut the power of pool %q of %s: %w", name, n.Name, err)
	}
	return nil
}

// copyDisk copies the state of a disk at one moment. If the kernel commits a transaction meanwhile, the parts
// may not fit together, and copyDisk starts again.
func copyDisk(ctx context.Context, from, to string) error {
	for range 5 {
		before, err := generation(from)
		if err != nil {
			return err
		}
		if err := run(ctx, "cp", "--sparse=always", from, to); err != nil {
			return err
		}
		if after, err := generation(from); err != nil || after == before {
			return err
		}
	}
	return fmt.Errorf("%s: transactions are committed all the time, though no process is left", from)
}

// generation returns the number of the last transaction in the superblock of a btrfs.
func generation(image string) (uint64, error) {
	const superblock, offset = 64 << 10, 72
	f, err := os.Open(image)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	var number uint64
	err = binary.Read(io.NewSectionReader(f, superblock+offset, 8), binary.LittleEndian, &number)
	return number, err
}
