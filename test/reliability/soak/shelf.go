package soak

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs/btrfstest"
	"github.com/btrfs-csi/btrfs-csi/test/testkit"
)

// shelfSize is the size of the filesystem of the pools and their copies, in a sparse file.
const shelfSize = 12 << 30

// shelf is an XFS in a sparse file, on which the images of pools lie.
type shelf struct{ image, dir string }

// newShelf makes a shelf in a directory.
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

// reflink copies the state of a file at one instant: XFS blocks writes to it meanwhile.
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
