package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs/btrfstest"
	"github.com/btrfs-csi/btrfs-csi/pkg/mount"
	"github.com/btrfs-csi/btrfs-csi/test/testkit"
)

// olderVariable names what the kernel of a command refuses, as a kernel refuses what it lacks.
const olderVariable = "BTRFS_CSI_TEST_OLDER"

const quotaCtl = 0xc0109428 // BTRFS_IOC_QUOTA_CTL

var older = map[string]btrfstest.Call{
	"mount_setattr":    {Number: unix.SYS_MOUNT_SETATTR, Err: unix.ENOSYS},           // before 5.12
	"compression none": {Number: unix.SYS_FSETXATTR, Err: unix.EINVAL},               // before 5.14
	"simple quota":     {Number: unix.SYS_IOCTL, Second: quotaCtl, Err: unix.EINVAL}, // before 6.7
}

func becomeOlder() {
	if what := os.Getenv(olderVariable); what != "" {
		if err := btrfstest.Refuse(older[what]); err != nil {
			panic(err)
		}
	}
}

func TestKernelBelowTheFloor(t *testing.T) {
	state := btrfstest.Mount(t)
	startDriver(t, state).stop(t)
	t.Setenv(olderVariable, "mount_setattr")
	want := "the system call mount_setattr (function not implemented): Linux " + mount.Floor + " or later is wanted, found "
	fresh := filepath.Join(t.TempDir(), "state")
	_, stderr, code := run(t, "serve", "--state-dir", fresh, "--endpoint", filepath.Join(t.TempDir(), "s"))
	if code != 1 || !strings.Contains(stderr, want) {
		t.Errorf("serve: exit code %d: %s, want %q", code, stderr, want)
	}
	if _, err := os.Lstat(fresh); !os.IsNotExist(err) {
		t.Errorf("serve has made something first: %v", err)
	}
	stdout, stderr, code := run(t, "check", "--state-dir", state)
	if code != 1 || !strings.Contains(stderr, want) || !strings.Contains(stdout, "Nothing is wrong.") {
		t.Errorf("check: exit code %d: %s%s, want %q", code, stdout, stderr, want)
	}
}

// TestKernelWithoutSimpleQuota: each pool that wants it is refused with one line in the log,
// however often the driver tries again.
func TestKernelWithoutSimpleQuota(t *testing.T) {
	state := btrfstest.Mount(t)
	t.Setenv(olderVariable, "simple quota")
	d := startDriver(t, state, "--quota=simple")
	reason := func(pool string) string {
		return `quota simple: enable simple quota on "` + filepath.Join(state, "pools", pool) + `": simple quota needs Linux 6.7: not supported by this kernel (invalid argument)`
	}
	logged := func(pool string) int {
		return strings.Count(d.LogText(), strings.ReplaceAll(reason(pool), `"`, `\"`))
	}
	for _, pool := range []string{"default", "second", "third"} { // each look at a new pool retries the earlier ones
		dir := filepath.Join(state, "pools", pool)
		if pool != "default" {
			if err := os.Mkdir(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			tool(t, "mount", "--bind", btrfstest.Mount(t), dir)
			t.Cleanup(func() { btrfstest.UnmountAll(t, dir) })
		}
		btrfstest.Eventually(t, "the log has why "+pool+" is not used", func() bool { return logged(pool) > 0 })
	}
	if got := logged("default"); got != 1 {
		t.Errorf("%d lines about one pool:\n%s", got, d.LogText())
	}
	for _, text := range []string{"Quota enabled", "/proc/self/fd"} {
		if strings.Contains(d.LogText(), text) {
			t.Errorf("the log has %q:\n%s", text, d.LogText())
		}
	}
	for _, command := range []string{"pools", "check"} {
		if stdout, stderr, _ := run(t, command, "--state-dir", state); !strings.Contains(stdout, reason("default")) {
			t.Errorf("%s: %q is not in %s%s", command, reason("default"), stdout, stderr)
		}
	}
	_, err := d.CreateVolume(t.Context(), &csi.CreateVolumeRequest{Name: "pvc", VolumeCapabilities: []*csi.VolumeCapability{testkit.Writer}})
	if status.Code(err) != codes.ResourceExhausted || !strings.Contains(err.Error(), reason("default")) {
		t.Errorf("got %v", err)
	}
}

func TestKernelWithoutCompressionNone(t *testing.T) {
	state := btrfstest.Mount(t)
	t.Setenv(olderVariable, "compression none")
	d := startDriver(t, state)
	_, err := d.CreateVolume(t.Context(), &csi.CreateVolumeRequest{
		Name: "pvc", VolumeCapabilities: []*csi.VolumeCapability{testkit.Writer}, Parameters: map[string]string{"compression": "none"},
	})
	if status.Code(err) != codes.ResourceExhausted || !strings.Contains(err.Error(), "compression none needs Linux 5.14") || strings.Contains(err.Error(), "/proc/self/fd") {
		t.Errorf("got %v", err)
	}
	if stdout, stderr, code := run(t, "check", "--state-dir", state); code != 0 {
		t.Errorf("something is left: exit code %d: %s%s", code, stdout, stderr)
	}
}
