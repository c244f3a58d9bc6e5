package reliability

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs/btrfstest"
	"github.com/btrfs-csi/btrfs-csi/test/testkit"
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
	xfs := testkit.Loop{File: s.image, Type: "xfs"}
	if err := xfs.Make(ctx, shelfSize, "-m", "reflink=1"); err != nil {
		return nil, err
	}
	return s, xfs.Mount(ctx, s.dir)
}

func (s *shelf) close() error {
	return errors.Join(btrfstest.Unmount(s.dir), os.Remove(s.image))
}

// newPool makes an image of an empty pool.
func newPool(ctx context.Context, image string) error {
	return testkit.Loop{File: image}.Make(ctx, poolSize)
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

// mountedBelow returns what is mounted below a directory: the root within its filesystem,
// by path. A path that is mounted twice has both.
func mountedBelow(dir string) (map[string]string, error) {
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir))
	points := map[string]string{}
	for _, m := range mounts {
		if other, twice := points[m.Mountpoint]; twice {
			m.Root = other + " and " + m.Root
		}
		points[m.Mountpoint] = m.Root
	}
	return points, err
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
