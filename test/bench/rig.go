package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs"
	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs/btrfstest"
	"github.com/btrfs-csi/btrfs-csi/test/testkit"
)

// imageSize is the size of each filesystem's sparse file, in bytes.
const imageSize = 48 << 30

// rig is a new filesystem in a sparse file. It is mounted where the driver looks for its pool. Files
// that belong to no side are beside it.
type rig struct {
	testkit.Node
	dir   string
	quota btrfs.QuotaMode
	info  btrfs.FilesystemInfo
}

// newRig makes and mounts a filesystem below parent. close removes it.
func newRig(ctx context.Context, parent string, quota btrfs.QuotaMode, options ...string) (_ *rig, err error) {
	dir, err := os.MkdirTemp(parent, "rig-")
	if err != nil {
		return nil, err
	}
	r := &rig{Node: testkit.NewNode(dir), dir: dir, quota: quota}
	defer func() {
		if err != nil {
			err = errors.Join(err, r.close())
		}
	}()
	disk := testkit.Loop{File: r.image(), Options: options}
	if err := errors.Join(r.Make(), disk.Make(ctx, imageSize)); err != nil {
		return r, err
	}
	if err := disk.Mount(ctx, r.Pool()); err != nil {
		return r, err
	}
	if quota != btrfs.QuotaNone {
		if err := errors.Join(btrfs.EnableQuota(r.Pool(), quota), waitRescan(r.Pool(), quota)); err != nil {
			return r, err
		}
	}
	r.info, err = btrfs.Filesystem(r.Pool())
	return r, err
}

func (r *rig) image() string { return filepath.Join(r.dir, "btrfs.img") }

func waitRescan(path string, quota btrfs.QuotaMode) error {
	if quota != btrfs.QuotaFull {
		return nil
	}
	return btrfs.WaitRescan(path)
}

// close unmounts all that is mounted below the rig and removes it.
func (r *rig) close() error { return testkit.RemoveAll(r.dir) }

// commits returns the number of commits of the filesystem.
func (r *rig) commits() (int, error) {
	text, err := os.ReadFile("/sys/fs/btrfs/" + r.info.FSID.String() + "/commit_stats")
	if err != nil {
		return 0, fmt.Errorf("kernel 5.18 or later is wanted, to count commits: %w", err)
	}
	var n int
	if _, err := fmt.Sscanf(string(text), "commits %d", &n); err != nil {
		return 0, fmt.Errorf("commit_stats %q: %w", text, err)
	}
	return n, nil
}

// settle waits until earlier work cannot slow down what follows: everything is on the device, and the
// kernel's cleaner has dropped all destroyed subvolumes.
func (r *rig) settle(ctx context.Context) error {
	return btrfstest.Settle(ctx, r.Pool(), btrfs.DyingIDs)
}
