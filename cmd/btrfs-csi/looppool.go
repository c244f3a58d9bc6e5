package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"
	"k8s.io/mount-utils"

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs"
	"github.com/btrfs-csi/btrfs-csi/pkg/pool"
)

// loopImage is the image file of the loop pool, in the state directory.
const loopImage = "default.img"

// minLoopPool is the smallest size of a loop pool, in bytes.
const minLoopPool = 256 << 20

// retryLoopPool is the delay between attempts to create or mount the loop pool.
const retryLoopPool = 3 * time.Second

// parseLoopPool returns the size of the loop pool in bytes, or 0 for none.
func parseLoopPool(text string) (int64, error) {
	if text == "" {
		return 0, nil
	}
	want, err := parseSize(text)
	if err != nil {
		return 0, fmt.Errorf("--loop-pool: %w", err)
	}
	if want < minLoopPool {
		return 0, fmt.Errorf("--loop-pool %s: at least 256Mi is wanted", text)
	}
	return want, nil
}

// keepLoopPool creates or mounts the loop pool, if want is not 0. After a failure it
// retries in the background until ctx ends.
func keepLoopPool(ctx context.Context, stateDir string, want int64) {
	if want == 0 {
		return
	}
	err := loopPool(ctx, stateDir, want)
	if err == nil {
		return
	}
	klog.FromContext(ctx).Error(err, "No loop pool", "retryAfter", retryLoopPool)
	go func() {
		for err != nil {
			select {
			case <-ctx.Done():
				return
			case <-time.After(retryLoopPool):
			}
			err = loopPool(ctx, stateDir, want)
		}
		klog.FromContext(ctx).Info("The loop pool is there")
	}()
}

// loopPool provides the pool "default" in a sparse image file if the state directory is not
// on btrfs. It mounts an existing image and grows it to want bytes, but never replaces or
// shrinks it. The mount outlives the driver, because pods use it. A btrfs that somebody
// else has mounted there stays.
func loopPool(ctx context.Context, stateDir string, want int64) error {
	if on, err := btrfs.IsBtrfs(stateDir); err != nil || on {
		return err // the engine creates pools/default
	}
	image := filepath.Join(stateDir, loopImage)
	target := filepath.Join(stateDir, "pools", pool.Default)
	if err := os.MkdirAll(target, 0o700); err != nil {
		return err
	}
	if err := removeUnfinished(image); err != nil {
		return err
	}
	mounted, err := btrfs.IsBtrfs(target)
	if err != nil {
		return err
	}
	if !mounted {
		if err := makeImage(ctx, image, want); err != nil {
			return err
		}
		klog.FromContext(ctx).Info("Mounting the loop pool", "image", image, "target", target)
		if err := mount.NewWithoutSystemd("").Mount(image, target, "btrfs", []string{"loop"}); err != nil {
			return err
		}
	}
	if err := growLoopPool(image, target, want); err != nil {
		klog.FromContext(ctx).Error(err, "The loop pool has not grown, which the next start tries again", "wantedBytes", want)
	}
	return nil
}

// makeImage makes an image, if there is none, under a temporary name. So an image with the
// final name is complete.
func makeImage(ctx context.Context, image string, size int64) error {
	if _, err := os.Lstat(image); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := roomForImage(filepath.Dir(image)); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(image), unfinishedImage+"*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // already renamed after success
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		return err
	}
	klog.FromContext(ctx).Info("Making the loop pool", "image", image, "bytes", size)
	if out, err := exec.CommandContext(ctx, "mkfs.btrfs", "-q", "-L", "btrfs-csi", f.Name()).CombinedOutput(); err != nil {
		return fmt.Errorf("mkfs.btrfs: %w: %s", err, strings.TrimSpace(string(out)))
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), image); err != nil {
		return err
	}
	return btrfs.Sync(filepath.Dir(image))
}

// roomForImage returns an error if less than minLoopPool is free, because the kernel stops
// a filesystem whose image gets no space. With less space than requested, the pool has the
// capacity of that space.
func roomForImage(dir string) error {
	var room unix.Statfs_t
	if err := unix.Statfs(dir, &room); err != nil {
		return &fs.PathError{Op: "statfs", Path: dir, Err: err}
	}
	if left := int64(room.Bavail) * room.Bsize; left < minLoopPool {
		return fmt.Errorf("loop pool: the filesystem of %s has %d bytes left, at least %d are wanted: free space there, or mount a btrfs filesystem at %s",
			dir, left, minLoopPool, filepath.Join(dir, "pools", pool.Default))
	}
	return nil
}

// unfinishedImage begins the name of an incomplete image.
const unfinishedImage = ".unfinished-" + loopImage + "-"

// removeUnfinished removes incomplete images of killed starts. A mkfs.btrfs that still runs
// then writes to an unlinked file.
func removeUnfinished(image string) error {
	left, err := filepath.Glob(filepath.Join(filepath.Dir(image), unfinishedImage+"*"))
	for _, file := range left {
		err = errors.Join(err, os.Remove(file))
	}
	return err
}

// growLoopPool grows the filesystem at target to want bytes, or to the size of its image: a
// driver may have died after it enlarged the image. Devices that somebody has added stay
// unchanged.
func growLoopPool(image, target string, want int64) error {
	var file unix.Stat_t
	err := unix.Stat(image, &file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // the mounted filesystem is not the loop pool
	}
	if err != nil {
		return &fs.PathError{Op: "stat", Path: image, Err: err}
	}
	device, loop, err := loopDevice(target, &file)
	if err != nil || loop == nil {
		return err
	}
	defer loop.Close()
	want = max(want, file.Size) // never shrink
	if device.Size >= want/sector*sector {
		return nil
	}
	if err := os.Truncate(image, want); err != nil {
		return err
	}
	if err := unix.IoctlSetInt(int(loop.Fd()), unix.LOOP_SET_CAPACITY, 0); err != nil {
		return fmt.Errorf("grow %s: %w", device.Path, err)
	}
	return btrfs.GrowToDevice(target, device.ID)
}

// sector is the unit of device sizes in btrfs, in bytes.
const sector = 4096

// loopDevice returns the device of a filesystem that is a loop device on file, and opens
// it. It returns nil if there is none.
func loopDevice(target string, file *unix.Stat_t) (btrfs.Device, *os.File, error) {
	devices, err := btrfs.Devices(target)
	for _, d := range devices {
		if d.Missing {
			continue
		}
		f, err := os.Open(d.Path)
		if err != nil {
			return d, nil, err
		}
		if loop, err := unix.IoctlLoopGetStatus64(int(f.Fd())); err == nil && loop.Inode == file.Ino && loop.Device == file.Dev {
			return d, f, nil
		}
		f.Close()
	}
	return btrfs.Device{}, nil, err
}
