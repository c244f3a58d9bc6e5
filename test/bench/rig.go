package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs"
	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs/btrfstest"
	"github.com/btrfs-csi/btrfs-csi/pkg/pool"
)

// imageSize is that of every filesystem's sparse image, in bytes.
const imageSize = 48 << 30

// rig is a filesystem of its own, fresh, in a sparse file. It is mounted where the
// driver looks for its pool; what belongs to no side lies beside it, not in it.
type rig struct {
	dir   string
	quota btrfs.QuotaMode
	info  btrfs.FilesystemInfo
}

// newRig makes and mounts a filesystem below parent. close takes all away again.
func newRig(ctx context.Context, parent string, quota btrfs.QuotaMode, options ...string) (_ *rig, err error) {
	dir, err := os.MkdirTemp(parent, "rig-")
	if err != nil {
		return nil, err
	}
	r := &rig{dir: dir, quota: quota}
	defer func() {
		if err != nil {
			err = errors.Join(err, r.close())
		}
	}()
	for _, d := range []string{r.pool(), r.kubelet()} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return r, err
		}
	}
	if err := makeImage(ctx, r.image()); err != nil {
		return r, err
	}
	if err := mountImage(ctx, r.image(), r.pool(), options); err != nil {
		return r, err
	}
	if quota != btrfs.QuotaNone {
		if err := errors.Join(btrfs.EnableQuota(r.pool(), quota), waitRescan(r.pool(), quota)); err != nil {
			return r, err
		}
	}
	r.info, err = btrfs.Filesystem(r.pool())
	return r, err
}

func (r *rig) image() string   { return filepath.Join(r.dir, "btrfs.img") }
func (r *rig) state() string   { return filepath.Join(r.dir, "state") }
func (r *rig) pool() string    { return filepath.Join(r.state(), "pools", pool.Default) }
func (r *rig) kubelet() string { return filepath.Join(r.dir, "kubelet") }
func (r *rig) socket() string  { return filepath.Join(r.dir, "csi.sock") }
func (r *rig) log() string     { return filepath.Join(r.dir, "driver.log") }

func makeImage(ctx context.Context, path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	if err := errors.Join(f.Truncate(imageSize), f.Close()); err != nil {
		return err
	}
	return command(ctx, "mkfs.btrfs", "-q", "-f", "-K", path)
}

// mountImage mounts by a loop device that passes I/O on without a page cache of
// its own, as a disk would, where the filesystem below can do that. The device
// is freed by the last unmount.
func mountImage(ctx context.Context, image, at string, options []string) error {
	out, err := exec.CommandContext(ctx, "losetup", "--find", "--show", "--direct-io=on", image).Output()
	if err != nil {
		if out, err = exec.CommandContext(ctx, "losetup", "--find", "--show", image).Output(); err != nil {
			return fmt.Errorf("losetup %s: %w", image, err)
		}
	}
	device := strings.TrimSpace(string(out))
	args := []string{"-t", "btrfs", device, at}
	if len(options) > 0 {
		args = append([]string{"-o", strings.Join(options, ",")}, args...)
	}
	err = command(ctx, "mount", args...)
	return errors.Join(err, command(context.WithoutCancel(ctx), "losetup", "--detach", device))
}

func waitRescan(path string, quota btrfs.QuotaMode) error {
	if quota != btrfs.QuotaFull {
		return nil
	}
	return btrfs.WaitRescan(path)
}

// command runs a program and tells what it said when it fails.
func command(ctx context.Context, name string, args ...string) error {
	if out, err := exec.CommandContext(ctx, name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}

// close unmounts all that is mounted below the rig and removes it.
func (r *rig) close() error {
	points, err := mountsBelow(r.dir)
	for i := len(points) - 1; i >= 0; i-- {
		err = errors.Join(err, btrfstest.Unmount(points[i]))
	}
	if err != nil {
		return fmt.Errorf("%s is left behind: %w", r.dir, err)
	}
	return os.RemoveAll(r.dir)
}

// mountsBelow returns what is mounted in a directory, in the order of mounting.
func mountsBelow(dir string) ([]string, error) {
	table, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return nil, err
	}
	var points []string
	for line := range strings.Lines(string(table)) {
		if fields := strings.Fields(line); len(fields) > 1 && strings.HasPrefix(fields[1], dir+"/") {
			points = append(points, fields[1])
		}
	}
	return points, nil
}

// commits is how many transactions the filesystem has committed.
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

// settle returns when nothing of what was done before can cost what comes next:
// everything is on the device, and the kernel's cleaner has dropped every tree
// that was destroyed.
func (r *rig) settle(ctx context.Context) error {
	return btrfstest.Settle(ctx, r.pool(), btrfs.DyingIDs)
}
