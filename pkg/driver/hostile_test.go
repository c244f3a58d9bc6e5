package driver

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs"
	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs/btrfstest"
	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
)

// TestHostilePod changes the root of a volume as a privileged pod can. The volume can still
// be copied, published and deleted. Files outside that the pod points at do not change.
func TestHostilePod(t *testing.T) {
	for name, do := range map[string]func(t *testing.T, root string){
		"immutable root":       func(t *testing.T, root string) { chattr(t, root, unix.STATX_ATTR_IMMUTABLE) },
		"append-only root":     func(t *testing.T, root string) { chattr(t, root, unix.STATX_ATTR_APPEND) },
		"root for nobody":      func(t *testing.T, root string) { must(t, os.Chmod(root, 0)) },
		"root of another user": func(t *testing.T, root string) { must(t, os.Chown(root, 1000, 1000)) },
		"read-only property":   func(t *testing.T, root string) { must(t, btrfs.SetReadOnly(root, true)) },
		"compression property": func(t *testing.T, root string) { must(t, btrfs.SetCompression(root, "zlib")) },
		"nodatacow":            func(t *testing.T, root string) { must(t, btrfs.SetNoDataCow(root, true)) },
		"record of its own": func(t *testing.T, root string) {
			must(t, unix.Setxattr(root, meta.LedgerXattr, []byte("noise"), 0))
		},
		"immutable file": func(t *testing.T, root string) {
			write(t, filepath.Join(root, "file"), "data")
			chattr(t, filepath.Join(root, "file"), unix.STATX_ATTR_IMMUTABLE)
		},
		"names": func(t *testing.T, root string) {
			for _, name := range []string{"new\nline", "\xff\xfe", "..\\", strings.Repeat("n", 255)} {
				mkdir(t, filepath.Join(root, name))
			}
		},
		"deep": func(t *testing.T, root string) {
			mkdir(t, filepath.Join(root, strings.Repeat(strings.Repeat("d", 100)+"/", 35)))
		},
		"device node": func(t *testing.T, root string) {
			must(t, unix.Mknod(filepath.Join(root, "null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
		},
		"symbolic links": func(t *testing.T, root string) {
			for i, to := range []string{"/", "..", "../../..", "fs", "/proc/self/root"} {
				must(t, os.Symlink(to, filepath.Join(root, fmt.Sprint(i))))
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, rigOptions{})
			volume, target := r.published("pvc-hostile")
			write(t, filepath.Join(target, "data"), "kept")
			do(t, target)

			again := r.targetPath("pod-2", volume)
			must(t, r.publish(volume, again, writer(), name == "read-only property")) // see TestMadeReadOnly for read-write
			wantFile(t, filepath.Join(again, "data"), "kept")
			must(t, r.unpublish(volume, again))
			taken := r.snapshot("snapshot-1", volume)
			for clone, parameters := range map[string]map[string]string{
				"pvc-clone": nil, "pvc-compressed": {"compression": "zstd"}, "pvc-nodatacow": {"nodatacow": "true"},
			} {
				id := r.createAs(&csi.CreateVolumeRequest{Name: clone, VolumeContentSource: fromSnapshot(taken), Parameters: parameters}).GetVolumeId()
				wantFile(t, filepath.Join(r.source(id), "data"), "kept")
				must(t, r.delete(id))
			}
			_, err := r.DeleteSnapshot(t.Context(), &csi.DeleteSnapshotRequest{SnapshotId: taken})
			must(t, err)
			must(t, r.unpublish(volume, target))
			must(t, r.unstage(volume))
			must(t, r.delete(volume))
			for _, area := range []string{"active", "committed", "removing"} {
				left, err := os.ReadDir(filepath.Join(r.state, "pools/default", area))
				must(t, err)
				if len(left) > 0 {
					t.Errorf("%s contains %v", area, left)
				}
			}
		})
	}
}

// printUser makes a copy of the test binary print its user ID.
const printUser = "BTRFS_CSI_TEST_TELL_USER"

func TestMain(m *testing.M) {
	if os.Getenv(printUser) == "1" {
		fmt.Print(os.Geteuid())
		return
	}
	os.Exit(btrfstest.Main(m.Run))
}

// TestSetuidAndDevices: a setuid program of root and a device node in a volume work by
// default, but not with nosuid and nodev.
func TestSetuidAndDevices(t *testing.T) {
	const nobody = "65534"
	for _, test := range []struct {
		name   string
		flags  []string
		user   string
		device error
	}{
		{"plain", nil, "0", nil},
		{"nosuid", []string{"nosuid"}, nobody, nil},
		{"nodev", []string{"nodev"}, "0", unix.EACCES},
		{"both", []string{"nosuid", "nodev"}, nobody, unix.EACCES},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, rigOptions{})
			volume := r.create("pvc-1")
			target, c := r.targetPath("pod-1", volume), capability(nodeWriter, test.flags...)
			must(t, r.stage(volume, c))
			must(t, r.publish(volume, target, c, false))
			if got := runSetuid(t, target); got != test.user {
				t.Errorf("a setuid program runs as user %s, want %s", got, test.user)
			}
			device := filepath.Join(target, "null")
			must(t, unix.Mknod(device, unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
			f, err := os.OpenFile(device, os.O_WRONLY, 0)
			if err == nil {
				must(t, f.Close())
			}
			if !errors.Is(err, test.device) {
				t.Errorf("the device opens with %v, want %v", err, test.device)
			}
		})
	}
}

// runSetuid makes nobody run a setuid program of root in dir, and returns its effective
// user. It uses a descriptor, because nobody may not enter the directories of the test.
func runSetuid(t *testing.T, dir string) string {
	t.Helper()
	self, err := os.Executable()
	must(t, err)
	program := filepath.Join(dir, "program")
	command(t, "cp", self, program)
	must(t, os.Chmod(program, os.ModeSetuid|0o755))
	f, err := os.Open(program)
	must(t, err)
	defer f.Close()
	cmd := exec.Command("/proc/self/fd/3")
	cmd.ExtraFiles = []*os.File{f}
	cmd.Dir, cmd.Env = "/", []string{printUser + "=1"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return string(out)
}

// TestHeldByTheKernel: a subvolume that the kernel does not remove stays complete and
// usable. The error of its delete names the possible reasons. Afterwards the delete
// succeeds.
func TestHeldByTheKernel(t *testing.T) {
	for name, hold := range map[string]struct {
		begin func(t *testing.T, volume string) (end func())
		word  string
	}{
		"swap file": {func(t *testing.T, volume string) func() { return swapOn(t, filepath.Join(volume, "swap")) }, "swapoff"},
		"default subvolume": {
			func(t *testing.T, volume string) func() {
				command(t, "btrfs", "subvolume", "set-default", volume)
				return func() { command(t, "btrfs", "subvolume", "set-default", "5", volume) }
			},
			"set-default",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, rigOptions{})
			volume := r.createAs(&csi.CreateVolumeRequest{
				Name: "pvc-held", Parameters: map[string]string{"nodatacow": "true"}, CapacityRange: &csi.CapacityRange{RequiredBytes: 64 * mib},
			}).GetVolumeId()
			source := r.source(volume)
			nested := filepath.Join(source, "nested")
			must(t, btrfs.Create(nested))
			write(t, filepath.Join(nested, "file"), "inside")
			limit := func() int64 {
				usage, err := r.engine.Usage(t.Context(), meta.Volume(volume))
				must(t, err)
				return usage.Limit
			}
			before := limit()
			end := hold.begin(t, source)
			for range 2 {
				wantCode(t, r.delete(volume), codes.FailedPrecondition, hold.word)
			}
			wantFile(t, filepath.Join(nested, "file"), "inside")
			if found := limit(); found != before {
				t.Errorf("the qgroup limit was %d, is %d", before, found)
			}
			end()
			must(t, r.delete(volume))
			wantGone(t, filepath.Dir(source))
		})
	}
}

func command(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
}

// chattr sets a flag of a file or directory.
func chattr(t *testing.T, path string, flag uint32) {
	t.Helper()
	f, err := os.Open(path)
	must(t, err)
	defer f.Close()
	flags, err := unix.IoctlGetUint32(int(f.Fd()), unix.FS_IOC_GETFLAGS)
	must(t, err)
	must(t, unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, int(flags|flag)))
}

// TestTargetsThatChange repeatedly replaces a directory above the target by a symbolic link
// while the driver works there. The driver may refuse, but must not mount, unmount or
// remove anything behind the link.
func TestTargetsThatChange(t *testing.T) {
	r := newRig(t, rigOptions{})
	volume := r.create("pvc-1")
	must(t, r.stage(volume, writer()))
	target := r.targetPath("pod-1", volume)
	outside := filepath.Join(t.TempDir(), "outside")
	decoy := filepath.Join(outside, "volumes", volume, "mount")
	mkdir(t, decoy)
	bindMount(t, r.source(volume), decoy) // looks like the volume at the target
	t.Cleanup(func() { unmountBelow(t, outside) })
	pod, link := filepath.Join(r.kubelet, "pods", "pod-1"), filepath.Join(r.kubelet, "pods", "link")
	must(t, os.Symlink(outside, link))

	stop, stopped := make(chan struct{}), make(chan struct{})
	exchanges := 0
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			default:
			}
			if err := unix.Renameat2(unix.AT_FDCWD, pod, unix.AT_FDCWD, link, unix.RENAME_EXCHANGE); err != nil {
				t.Errorf("exchange: %v", err)
				return
			}
			exchanges++
		}
	}()
	codesSeen := map[codes.Code]int{}
	for range 300 {
		codesSeen[status.Code(r.publish(volume, target, writer(), false))]++
		codesSeen[status.Code(r.unpublish(volume, target))]++
		if n := mountsAt(t, decoy); n != 1 {
			t.Fatalf("outside: want 1 mount, got %d", n)
		}
	}
	close(stop)
	<-stopped
	t.Logf("%d exchanges, answers %v", exchanges, codesSeen)
	if exchanges%2 == 1 {
		must(t, unix.Renameat2(unix.AT_FDCWD, pod, unix.AT_FDCWD, link, unix.RENAME_EXCHANGE))
	}
	must(t, r.unpublish(volume, target))
	wantGone(t, target)
	wantMounts(t, decoy, 1)
}
