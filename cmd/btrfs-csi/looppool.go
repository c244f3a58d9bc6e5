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
	grown, err := growImage(image, want)
	if err != nil {
		return fmt.Errorf("loop pool: %w", err)
	}
	if !mounted {
		klog.FromContext(ctx).Info("Mounting the loop pool", "image", image, "target", target)
		if err := mount.NewWithoutSystemd("").Mount(image, target, "btrfs", []string{"loop"}); err != nil {
			return fmt.Errorf("loop pool: %w", err)
		}
	} else if grown {
		if err := growDevices(target); err != nil {
			return fmt.Errorf("loop pool: %w", err)
		}
	}
	return btrfs.GrowToDevice(target)
}

// makeImage makes the filesystem under another name first, so that an image of
// the right name is always whole.
func makeImage(ctx context.Context, image string, size int64) error {
	if _, err := os.Lstat(image); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(image), loopImage+".*")
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

// growImage raises the size of the file; it never lowers it.
func growImage(image string, want int64) (grown bool, err error) {
	st, err := os.Stat(image)
	if err != nil || st.Size() >= want {
		return false, err
	}
	return true, os.Truncate(image, want)
}

// growDevices tells the loop device below a mounted filesystem that its file has
// grown.
func growDevices(target string) error {
	devices, err := btrfs.Devices(target)
	if err != nil {
		return err
	}
	for _, d := range devices {
		f, err := os.OpenFile(d.Path, os.O_RDONLY, 0)
		if err != nil {
			return err
		}
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), unix.LOOP_SET_CAPACITY, 0)
		f.Close()
		if errno != 0 {
			return fmt.Errorf("grow %s: %w", d.Path, errno)
		}
	}
	return nil
}
