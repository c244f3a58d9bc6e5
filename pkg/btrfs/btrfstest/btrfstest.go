// Package btrfstest gives tests a real btrfs filesystem of their own. It needs
// root, loop devices and btrfs-progs. A test fails without them unless
// BTRFS_CSI_SKIP_ROOT_TESTS=1 says that it may be skipped: a suite that passes
// because it did nothing is worse than one that fails.
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

// SkipVariable is the environment variable that, set to 1, skips the tests that
// need root.
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

// Size sets the size in bytes; 2 GiB without it. The image is sparse. btrfs wants
// 114 MiB at least.
func Size(bytes int64) Option { return func(c *config) { c.size = bytes } }

// In has the image lie in a directory, instead of one below t.TempDir.
func In(dir string) Option { return func(c *config) { c.dir = dir } }

// MkfsArgs adds arguments to mkfs.btrfs.
func MkfsArgs(args ...string) Option {
	return func(c *config) { c.mkfsArgs = append(c.mkfsArgs, args...) }
}

// MountOptions adds mount options.
func MountOptions(options ...string) Option {
	return func(c *config) { c.mountOptions = append(c.mountOptions, options...) }
}

// images are the image files by mount point, for Image and PowerCut.
var images sync.Map

// RequireRoot fails the test unless it runs as root, or skips it when
// SkipVariable says so.
func RequireRoot(t testing.TB) {
	t.Helper()
	if os.Getenv(SkipVariable) == "1" {
		t.Skipf("%s=1", SkipVariable)
	}
	if os.Geteuid() != 0 {
		t.Fatalf("needs root and btrfs; set %s=1 to skip this test", SkipVariable)
	}
}

// Mount makes a btrfs filesystem in a sparse file below t.TempDir and returns
// where it is mounted. It is unmounted, and its loop device freed, when the test
// ends, however it ends.
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

// Image returns the file behind a filesystem that Mount made.
func Image(t testing.TB, mountPoint string) string {
	t.Helper()
	image, ok := images.Load(mountPoint)
	if !ok {
		t.Fatalf("%s was not mounted by btrfstest", mountPoint)
	}
	return image.(string)
}

// PowerCut returns where a copy of a filesystem is mounted as a power cut at this
// moment would leave it: with what has reached its device, without what the
// kernel holds in memory. The original lives on. No one may write to it meanwhile.
// It needs kernel 6.7, where a copy is mounted beside its original.
func PowerCut(t testing.TB, mountPoint string) string {
	t.Helper()
	image := filepath.Join(t.TempDir(), "powercut.img")
	run(t, "cp", "--sparse=always", Image(t, mountPoint), image)
	return mountImage(t, image, nil)
}

// Remount unmounts a filesystem that Mount made and mounts it again, as a boot does.
func Remount(t testing.TB, mountPoint string) {
	t.Helper()
	image := Image(t, mountPoint)
	UnmountAll(t, mountPoint)
	run(t, "mount", "-t", "btrfs", "-o", "loop", image, mountPoint)
}

// Grow makes the device under a filesystem larger, not the filesystem.
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

// Loop returns a loop device of its own over a new sparse file, for filesystems
// of several devices. It is freed when the test ends; what is mounted from it is
// the test's to unmount before.
func Loop(t testing.TB, size int64) string {
	t.Helper()
	RequireRoot(t)
	image := filepath.Join(t.TempDir(), "loop.img")
	truncate(t, image, size)
	var out []byte
	var err error
	for range attempts { // others may take the free device that it saw first
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

// Ext4 returns where an ext4 of its own is mounted, for what is to run out of space below a
// pool. It is unmounted when the test ends.
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

// FillFile appends to a file, made if need be, until its filesystem has no room left.
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

// attempts are how often a free loop device is looked for: on a busy machine many tests do
// at the same time.
const attempts = 50

func mountImage(t testing.TB, image string, options []string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "mnt")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	// mount frees the loop device with the last unmount. Others may take the free
	// device that it saw first, hence the attempts.
	args := []string{"-t", "btrfs", "-o", strings.Join(append([]string{"loop"}, options...), ","), image, dir}
	var out []byte
	var err error
	for range attempts {
		if out, err = exec.Command("mount", args...).CombinedOutput(); err == nil {
			break
		}
		// Of a mount that has failed, the kernel may hold that filesystem for what is on
		// the device, whatever is by now.
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

// UnmountAll takes away whatever is mounted at dir, which may be nothing. It waits a while
// for descriptors that are closed late: by the test, or by a process that another test has
// just forked. After that it detaches, so that nothing outlives the test, and fails it.
func UnmountAll(t testing.TB, dir string) {
	t.Helper()
	var err error
	unmounted := Comes(func() bool {
		// More may have been mounted on top, or it may be unmounted already.
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
