package reliability

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs/btrfstest"
)

const (
	// poolSize is that of a pool, sparse: many times what the load writes.
	poolSize = 4 << 30
	// shelfSize is that of the filesystem that pools and their copies lie on, sparse.
	shelfSize = 12 << 30
)

// shelf is an XFS in a sparse file, on which the images of pools lie.
type shelf struct{ image, dir string }

// newShelf makes one in a directory.
func newShelf(ctx context.Context, dir string) (*shelf, error) {
	s := &shelf{image: filepath.Join(dir, "xfs.img"), dir: filepath.Join(dir, "xfs")}
	if err := os.Mkdir(s.dir, 0o700); err != nil {
		return nil, err
	}
	if err := sparse(s.image, shelfSize); err != nil {
		return nil, err
	}
	if err := command(ctx, "mkfs.xfs", "-q", "-K", "-m", "reflink=1", s.image); err != nil {
		return nil, err
	}
	return s, mountLoop(ctx, "xfs", s.image, s.dir)
}

func (s *shelf) close() error {
	return errors.Join(btrfstest.Unmount(s.dir), os.Remove(s.image))
}

// newPool makes an image of an empty pool.
func newPool(ctx context.Context, image string) error {
	if err := sparse(image, poolSize); err != nil {
		return err
	}
	return command(ctx, "mkfs.btrfs", "-q", "-K", image)
}

func sparse(path string, size int64) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(f.Truncate(size), f.Close())
}

// reflink copies a file as it is at one instant: XFS lets nobody write to it
// meanwhile.
func reflink(from, to string) error {
	source, err := os.Open(from)
	if err != nil {
		return err
	}
	defer source.Close()
	target, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	if err := unix.IoctlFileClone(int(target.Fd()), int(source.Fd())); err != nil {
		err = fmt.Errorf("reflink %s: %w", from, err)
		return errors.Join(err, target.Close())
	}
	return target.Close()
}

// mountLoop mounts an image. Its loop device is freed by the last unmount. Direct
// I/O keeps a second copy of everything out of the page cache, where it can be had.
func mountLoop(ctx context.Context, fsType, image, at string) error {
	return mountLoopWith(ctx, "on", fsType, image, at)
}

// mountLoopWith is mountLoop with direct I/O on or off at first.
func mountLoopWith(ctx context.Context, directIO, fsType, image, at string) (err error) {
	for range 5 { // others may take the free device that it saw first
		var out []byte
		out, err = exec.CommandContext(ctx, "losetup", "--find", "--show", "--direct-io="+directIO, image).Output()
		if err != nil {
			directIO, err = "off", fmt.Errorf("losetup %s: %w", image, err)
			continue
		}
		device := strings.TrimSpace(string(out))
		err = command(ctx, "mount", "-t", fsType, device, at)
		always := context.WithoutCancel(ctx)
		if err != nil && fsType == "btrfs" {
			// Of a filesystem that is mounted already, and this is its copy, the kernel now
			// and then refuses the second, and holds it for what is on the device from then on.
			err = errors.Join(err, command(always, "btrfs", "device", "scan", "--forget", device))
		}
		if detached := command(always, "losetup", "--detach", device); err == nil || detached != nil {
			return errors.Join(err, detached)
		}
	}
	return err
}

// command runs a program and tells what it said when it fails.
func command(ctx context.Context, name string, args ...string) error {
	if out, err := exec.CommandContext(ctx, name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}

// mounted is what is mounted below a directory: the root within its filesystem, by
// path. A path that is mounted twice has both.
func mountedBelow(dir string) (map[string]string, error) {
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	points := map[string]string{}
	for line := range strings.Lines(string(table)) {
		fields := strings.Fields(line)
		if len(fields) < 5 || !strings.HasPrefix(fields[4], dir+"/") {
			continue
		}
		if other, twice := points[fields[4]]; twice {
			fields[3] = other + " and " + fields[3]
		}
		points[fields[4]] = fields[3]
	}
	return points, nil
}

// loops returns the files that loop devices are on, each as often as one is.
func loops() ([]string, error) {
	devices, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		return nil, err
	}
	var files []string
	for _, device := range devices {
		file, err := os.ReadFile(device)
		if err != nil {
			continue // it was freed
		}
		files = append(files, strings.TrimSpace(string(file)))
	}
	return files, nil
}
