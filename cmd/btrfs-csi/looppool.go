package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"
	"k8s.io/mount-utils"

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs"
	"github.com/btrfs-csi/btrfs-csi/pkg/snapshot"
)

// loopImage is the file of the loop-backed pool, in the state directory.
const loopImage = "default.img"

// minLoopPool is the least size that mkfs.btrfs makes a filesystem of, in bytes.
const minLoopPool = 256 << 20

// loopPool sees to it that there is a pool "default" where the state directory
// is not on btrfs: a filesystem of its own in a sparse file. An image that is
// there is mounted, and grown where a larger size is asked for; it is never made
// anew nor shrunk. The mount stays when the driver stops: pods use it.
func loopPool(ctx context.Context, stateDir, text string) error {
	if text == "" {
		return nil
	}
	want, err := parseSize(text)
	if err != nil {
		return fmt.Errorf("--loop-pool: %w", err)
	}
	if want < minLoopPool {
		return fmt.Errorf("--loop-pool %s: at least 256Mi is wanted", text)
	}
	if on, err := btrfs.IsBtrfs(stateDir); err != nil || on {
		return err // pools/default is made there
	}
	image := filepath.Join(stateDir, loopImage)
	target := filepath.Join(stateDir, "pools", snapshot.DefaultPool)
	if err := os.MkdirAll(target, 0o700); err != nil {
		return err
	}
	mounted, err := btrfs.IsBtrfs(target)
	if err != nil {
		return err
	}
	if err := makeImage(ctx, image, want); err != nil {
		return fmt.Errorf("loop pool: %w", err)
	}
	if err := growImage(image, want); err != nil {
		return fmt.Errorf("loop pool: %w", err)
	}
	if !mounted {
		klog.FromContext(ctx).Info("Mounting the loop pool", "image", image, "target", target)
		if err := mount.NewWithoutSystemd("").Mount(image, target, "btrfs", []string{"loop"}); err != nil {
			return fmt.Errorf("loop pool: %w", err)
		}
	} else if err := growDevice(image, target); err != nil {
		return fmt.Errorf("loop pool: %w", err)
	}
	return btrfs.GrowToDevice(target)
}

// makeImage makes the filesystem under another name first, so that an image of
// the right name is always whole.
func makeImage(ctx context.Context, image string, size int64) error {
	if err := removeUnfinished(image); err != nil {
		return err
	}
	if _, err := os.Lstat(image); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(image), unfinishedImage+"*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // gone already, if all went well
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

// unfinishedImage is how the name of an image begins that is not whole yet.
const unfinishedImage = ".unfinished-" + loopImage + "-"

// removeUnfinished removes what starts that were killed have left beside an image. A
// mkfs.btrfs that has outlived one goes on in a file that nobody sees.
func removeUnfinished(image string) error {
	left, err := filepath.Glob(filepath.Join(filepath.Dir(image), unfinishedImage+"*"))
	for _, file := range left {
		err = errors.Join(err, os.Remove(file))
	}
	return err
}

// growImage raises the size of the file; it never lowers it.
func growImage(image string, want int64) error {
	st, err := os.Stat(image)
	if err != nil || st.Size() >= want {
		return err
	}
	return os.Truncate(image, want)
}

// growDevice tells the loop device below a mounted filesystem that its file is larger,
// which the driver that made it so may have been too short-lived to do. What is no loop
// device on the image, as disks that others have added, is left alone.
func growDevice(image, target string) error {
	devices, err := btrfs.Devices(target)
	if err != nil {
		return err
	}
	var file unix.Stat_t
	if err := unix.Stat(image, &file); err != nil {
		return err
	}
	for _, d := range devices {
		if d.Missing {
			continue
		}
		if err := growIfOn(d.Path, &file); err != nil {
			return fmt.Errorf("grow %s: %w", d.Path, err)
		}
	}
	return nil
}

func growIfOn(device string, file *unix.Stat_t) error {
	f, err := os.OpenFile(device, os.O_RDONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	loop, err := unix.IoctlLoopGetStatus64(int(f.Fd()))
	if err != nil || loop.Inode != file.Ino || loop.Device != file.Dev {
		return nil
	}
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil || size >= file.Size { // never shrunk
		return err
	}
	return unix.IoctlSetInt(int(f.Fd()), unix.LOOP_SET_CAPACITY, 0)
}
