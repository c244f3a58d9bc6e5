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

// driverDir is the driver's state directory, in the node and below its disk.
const driverDir = "btrfs-csi"

// Disk is a disk with a btrfs filesystem, which can be in one node at a time.
type Disk struct {
	image string
}

// pool is where a node has a disk.
type pool struct {
	disk    *Disk
	options []string // of its mount
}

// NewDisk makes a disk of a size in bytes, of which it takes what is written.
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

// CopyDisk makes a copy of a disk as it is at this moment, in use or not, with all of
// the IDs that are on it.
func (c *Cluster) CopyDisk(ctx context.Context, disk *Disk) (*Disk, error) {
	f, err := os.CreateTemp(filepath.Join(c.dir, disksDir), "*.img")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return &Disk{f.Name()}, copyDisk(ctx, disk.image, f.Name())
}

// AddPool mounts a disk as a pool of the node, with mount options, and again at each
// boot. It must not be in use as another pool.
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
		return nil // Start will
	}
	return n.mountPool(ctx, name)
}

// RemovePool unmounts a pool and returns its disk, for another node. It fails, and the
// pool stays, while anything has a part of the filesystem mounted or open: mounted
// elsewhere as well, it would be damaged. The directory stays, as on any machine.
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

// waitForDisk waits until the kernel is done with a filesystem that was unmounted.
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

// poolDir is where the lab mounts a pool, to be seen in the node.
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
	for range 50 { // others may take the free loop device that mount saw first
		if err = run(ctx, "mount", "-t", "btrfs", "-o", options, p.disk.image, dir); err == nil {
			return nil
		}
		time.Sleep(100 * time.Millisecond)
	}
	return fmt.Errorf("pool %q of %s: %w", name, n.Name, err)
}

// unmountPool waits a while for descriptors that are closed late.
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

// isMounted reports whether something is mounted at a directory.
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

// loopFiles are the files of which the node may have loop devices.
func (n *Node) loopFiles() []string {
	files := driverFiles(n.dir)
	for p := range maps.Values(n.pools) {
		files = append(files, p.disk.image)
	}
	return files
}

// driverFiles are those that the driver has on the disks of nodes, a pattern: it can
// make pools in files.
func driverFiles(nodes string) []string {
	above, _ := filepath.Glob(filepath.Join(nodes, "disk", driverDir, "*"))
	below, _ := filepath.Glob(filepath.Join(nodes, "disk", driverDir, "*", "*"))
	return append(above, below...)
}

// cutPool leaves a pool's disk as a power cut leaves it, with what has reached it
// and without what the kernel holds in memory. No process may use it any more. The
// filesystem is still mounted here: unmounted, it would have written all of that.
func (n *Node) cutPool(ctx context.Context, name string) error {
	image := n.pools[name].disk.image
	cut := image + ".cut"
	err := copyDisk(ctx, image, cut)
	if err == nil {
		err = n.unmountPool(name)
	}
	if err == nil {
		// What is on files of it keeps the filesystem going.
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

// copyDisk copies a disk as it is at one moment. The kernel may still commit a
// transaction: then what was copied before and after may not fit, and it is copied
// again.
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

// generation returns the number of a btrfs' last transaction, from its superblock.
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
