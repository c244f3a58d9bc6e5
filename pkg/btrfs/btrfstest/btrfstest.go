// Package btrfstest gives each test a real btrfs filesystem. It needs root, loop devices
// and btrfs-progs. Without them tests fail, unless BTRFS_CSI_SKIP_ROOT_TESTS=1 skips them:
// no suite passes because it tested nothing.
package btrfstest

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// SkipVariable is an environment variable. The value 1 skips the tests that need root.
const SkipVariable = "BTRFS_CSI_SKIP_ROOT_TESTS"

const defaultSize = 2 << 30

type config struct {
	size         int64
	dir          string
	mkfsArgs     []string
	mountOptions []string
}

// Option changes the filesystem that Mount makes.
type Option func(*config)

// Size sets the size of the sparse image in bytes. The default is 2 GiB, the minimum of
// mkfs.btrfs 109 MiB.
func Size(bytes int64) Option { return func(c *config) { c.size = bytes } }

// In places the image in dir instead of t.TempDir.
func In(dir string) Option { return func(c *config) { c.dir = dir } }

// MkfsArgs adds arguments to mkfs.btrfs.
func MkfsArgs(args ...string) Option {
	return func(c *config) { c.mkfsArgs = append(c.mkfsArgs, args...) }
}

// MountOptions adds mount options.
func MountOptions(options ...string) Option {
	return func(c *config) { c.mountOptions = append(c.mountOptions, options...) }
}

// images maps mount points to image files, for Image and PowerCut.
var images sync.Map

// RequireRoot fails the test unless it runs as root, or skips it when SkipVariable is 1.
func RequireRoot(t testing.TB) {
	t.Helper()
	if os.Getenv(SkipVariable) == "1" {
		t.Skipf("%s=1", SkipVariable)
	}
	if os.Geteuid() != 0 {
		t.Fatalf("needs root and btrfs; set %s=1 to skip this test", SkipVariable)
	}
}

// Mount makes a btrfs filesystem in a sparse file and returns its mount point. The end of
// the test unmounts it and frees its loop device.
func Mount(t testing.TB, options ...Option) string {
	t.Helper()
	RequireRoot(t)
	c := config{size: defaultSize}
	for _, option := range options {
		option(&c)
	}
	if c.dir == "" {
		c.dir = t.TempDir()
	}
	image := filepath.Join(c.dir, "btrfs.img")
	truncate(t, image, c.size)
	run(t, "mkfs.btrfs", append(append([]string{"-q", "-f", "-K"}, c.mkfsArgs...), image)...)
	return mountImage(t, image, c.mountOptions)
}

// Image returns the image file of a filesystem that Mount made.
func Image(t testing.TB, mountPoint string) string {
	t.Helper()
	image, ok := images.Load(mountPoint)
	if !ok {
		t.Fatalf("%s was not mounted by btrfstest", mountPoint)
	}
	return image.(string)
}

// PowerCut mounts a copy of a filesystem as a power cut would leave it now, and returns its
// mount point. The copy contains what is on the device, without the kernel's memory. The
// original stays mounted, and nothing may write to it meanwhile.
func PowerCut(t testing.TB, mountPoint string) string {
	t.Helper()
	image := copyImage(t, mountPoint)
	if err := Rename(image); err != nil {
		t.Fatal(err)
	}
	return mountImage(t, image, nil)
}

// Copy is PowerCut that mounts an exact copy, which needs CopyBeside.
func Copy(t testing.TB, mountPoint string) string {
	t.Helper()
	return mountImage(t, copyImage(t, mountPoint), nil)
}

func copyImage(t testing.TB, mountPoint string) string {
	t.Helper()
	image := filepath.Join(t.TempDir(), "copy.img")
	run(t, "cp", "--sparse=always", Image(t, mountPoint), image)
	return image
}

// Remount unmounts a filesystem that Mount made, and mounts it again, as a boot does.
func Remount(t testing.TB, mountPoint string) {
	t.Helper()
	image := Image(t, mountPoint)
	UnmountAll(t, mountPoint)
	run(t, "mount", "-t", "btrfs", "-o", "loop", image, mountPoint)
}

// Grow makes the device of a filesystem larger, but not the filesystem.
func Grow(t testing.TB, mountPoint string, size int64) {
	t.Helper()
	image := Image(t, mountPoint)
	truncate(t, image, size)
	loop, err := exec.Command("losetup", "--noheadings", "--output", "NAME", "--associated", image).Output()
	if err != nil {
		t.Fatalf("loop device of %s: %v", image, err)
	}
	run(t, "losetup", "--set-capacity", strings.TrimSpace(string(loop)))
}

// Loop returns a loop device over a new sparse file of size bytes. The test unmounts
// filesystems on it; the end of the test frees it.
func Loop(t testing.TB, size int64) string {
	t.Helper()
	RequireRoot(t)
	image := filepath.Join(t.TempDir(), "loop.img")
	truncate(t, image, size)
	var out []byte
	var err error
	for range attempts { // another process may take the same free device
		if out, err = exec.Command("losetup", "--find", "--show", image).Output(); err == nil {
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	if err != nil {
		t.Fatalf("losetup %s: %v", image, err)
	}
	device := strings.TrimSpace(string(out))
	t.Cleanup(func() { run(t, "losetup", "--detach", device) })
	return device
}

// Ext4 mounts a new ext4 of size bytes and returns its mount point. Tests fill it to take
// the space below a pool. The end of the test unmounts it.
func Ext4(t testing.TB, size int64) string {
	t.Helper()
	device, dir := Loop(t, size), filepath.Join(t.TempDir(), "ext4")
	run(t, "mkfs.ext4", "-q", "-m", "0", device)
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	run(t, "mount", "-t", "ext4", device, dir)
	t.Cleanup(func() { UnmountAll(t, dir) })
	return dir
}

// FillFile appends to a file until its filesystem is full. It creates the file if
// necessary.
func FillFile(path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	for size := 64 << 10; size > 0 && err == nil; {
		if _, err = f.Write(make([]byte, size)); errors.Is(err, unix.ENOSPC) {
			size, err = size/2, nil
		}
	}
	return errors.Join(err, f.Sync(), f.Close())
}

// attempts is the number of attempts to get a free loop device. On a busy machine many
// tests search at the same time.
const attempts = 50

func mountImage(t testing.TB, image string, options []string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "mnt")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	// mount frees the loop device at the last unmount. Another process may take the same
	// free device first, so try again.
	args := []string{"-t", "btrfs", "-o", strings.Join(append([]string{"loop"}, options...), ","), image, dir}
	var out []byte
	var err error
	for range attempts {
		if out, err = exec.Command("mount", args...).CombinedOutput(); err == nil {
			break
		}
		// After a failed mount the kernel may remember the old filesystem of a device,
		// although the device has other content by now.
		run(t, "btrfs", "device", "scan", "--forget")
		time.Sleep(100 * time.Millisecond)
	}
	if err != nil {
		t.Fatalf("mount %s: %v: %s", strings.Join(args, " "), err, out)
	}
	images.Store(dir, image)
	t.Cleanup(func() {
		images.Delete(dir)
		UnmountAll(t, dir)
	})
	return dir
}

// UnmountAll removes all mounts at dir, if any. It waits for descriptors that the test, or
// a process forked by another test, closes late. After Patience it fails the test and
// detaches the mounts.
func UnmountAll(t testing.TB, dir string) {
	t.Helper()
	var err error
	unmounted := Comes(func() bool {
		// Several mounts may be stacked at dir.
		for err = unix.Unmount(dir, 0); err == nil; {
			err = unix.Unmount(dir, 0)
		}
		return errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT)
	})
	if !unmounted {
		t.Errorf("unmount %s: %v; detaching it", dir, err)
		_ = unix.Unmount(dir, unix.MNT_DETACH)
	}
}

func truncate(t testing.TB, path string, size int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
}

func run(t testing.TB, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %s: %v: %s", name, strings.Join(args, " "), err, out)
	}
}
