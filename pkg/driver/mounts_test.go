package driver

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs/btrfstest"
)

func TestVolumeOfAMount(t *testing.T) {
	for root, want := range map[string]struct {
		id    string
		whole bool
	}{
		"/pools/default/active/pvc-1/fs":      {"pvc-1", true},
		"/@state/pools/default/view/pvc-1/fs": {"pvc-1", true},
		"/active/pvc-1/fs":                    {"pvc-1", true},
		"/active/pvc-1/fs//deleted":           {"pvc-1", true},
		"/removing/active-pvc-1/fs//deleted":  {"pvc-1", true},
		"/removing/view-pvc-1/fs":             {"pvc-1", true},
		"/active/pvc-1/fs/sub/dir":            {"pvc-1", false},
		"/active/pvc-1/fs/sub\ndir":           {"pvc-1", false},
		"/active/pvc-1/fs/active/pvc-2/fs":    {"pvc-1", false},
		"/committed/s-1/fs":                   {"", false},
		"/removing/committed-s-1/fs":          {"", false},
		"/active/pvc-1":                       {"", false},
		"/active/pvc-1/fsx":                   {"", false},
		"/":                                   {"", false},
		"/srv/active-pvc-1/fs":                {"", false},
	} {
		id, whole := mounted{root: root, fsType: "btrfs"}.parse()
		if id != want.id || whole != want.whole {
			t.Errorf("%s: want %v, got %q, %v", root, want, id, whole)
		}
	}
	if id, _ := (mounted{root: "/active/pvc-1/fs", fsType: "ext4"}).parse(); id != "" {
		t.Errorf("on ext4: got %q", id)
	}
}

func TestFlagsOverThoseOfThePool(t *testing.T) {
	for name, test := range map[string]struct {
		asked []string
		pool  flagSet
		want  string
	}{
		"none":          {nil, unix.ST_RELATIME, "relatime,rw"},
		"added":         {[]string{"nodev"}, unix.ST_RELATIME | unix.ST_NOSUID, "nodev,nosuid,relatime,rw"},
		"noatime":       {[]string{"noatime"}, unix.ST_RELATIME, "noatime,rw"},
		"relatime":      {[]string{"relatime"}, unix.ST_NOATIME, "relatime,rw"},
		"neither":       {nil, 0, "rw"},
		"others' flags": {nil, unix.ST_MANDLOCK | unix.ST_SYNCHRONOUS | 0x20, "rw"},
	} {
		asked, err := flagsOf(test.asked)
		if got := asked.over(test.pool).String(); err != nil || got != test.want {
			t.Errorf("%s: want %s, got %s, %v", name, test.want, got, err)
		}
	}
	if got := flagSet(0).attributes(); got.Attr_set != unix.MOUNT_ATTR_STRICTATIME || got.Attr_clr&unix.MOUNT_ATTR_RDONLY == 0 {
		t.Errorf("without flags: %+v", got)
	}
}

// Both ways to open a path must refuse the same.
func TestOpenBelowTheKubeletDir(t *testing.T) {
	dir := t.TempDir()
	mkdir(t, filepath.Join(dir, "a", "b"))
	write(t, filepath.Join(dir, "file"), "")
	must(t, os.Symlink("a", filepath.Join(dir, "inside")))
	must(t, os.Symlink("/", filepath.Join(dir, "outside")))
	must(t, os.Symlink("/proc/self/fd/0", filepath.Join(dir, "magic")))
	root, err := unix.Open(dir, pathOnly, 0)
	must(t, err)
	defer unix.Close(root)
	before := openFiles(t)
	for rel, want := range map[string]error{
		".": nil, "a": nil, "a/b": nil, "file": nil,
		"absent": unix.ENOENT, "a/absent": unix.ENOENT, "file/x": unix.ENOTDIR,
		"inside": unix.ELOOP, "inside/b": unix.ELOOP, "outside": unix.ELOOP, "outside/etc": unix.ELOOP, "magic": unix.ELOOP,
		"..": unix.EXDEV, "../x": unix.EXDEV,
	} {
		for name, open := range map[string]func(int, string) (int, error){"openat2": openBeneath, "openat": walkBeneath} {
			fd, err := open(root, rel)
			if !errors.Is(err, want) {
				t.Errorf("%s of %s: want %v, got %v", name, rel, want, err)
			}
			if err == nil {
				_ = unix.Close(fd)
			}
		}
	}
	if after := openFiles(t); after != before {
		t.Errorf("%d descriptors before, %d after", before, after)
	}
}

func openFiles(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	return len(entries)
}

func TestDirectoriesAreMadeOneLevelDeepAndRemovedEmpty(t *testing.T) {
	dir := t.TempDir()
	all, err := newTargets(dir)
	must(t, err)
	at, err := all.parse("target_path", filepath.Join(all.resolved, "pod", "mount"))
	must(t, err)
	_, err = at.ensureDir()
	wantCode(t, err, codes.FailedPrecondition, "pod")
	mkdir(t, filepath.Join(dir, "pod"))
	for _, want := range []bool{true, false} {
		if made, err := at.ensureDir(); made != want || err != nil {
			t.Errorf("want made %v, got %v, %v", want, made, err)
		}
	}
	info, err := os.Stat(at.path)
	must(t, err)
	if info.Mode().Perm()&^0o750 != 0 {
		t.Errorf("mode %v", info.Mode())
	}
	write(t, filepath.Join(at.path, "file"), "data")
	wantCode(t, at.removeDir(), codes.FailedPrecondition, at.path)
	wantFile(t, filepath.Join(at.path, "file"), "data")
	must(t, os.Remove(filepath.Join(at.path, "file")))
	must(t, at.removeDir())
	must(t, at.removeDir())
	wantGone(t, at.path)
}

// TestMountTableFollows mounts and unmounts many times: a table that is kept has to
// show each.
func TestMountTableFollows(t *testing.T) {
	btrfstest.RequireRoot(t)
	dir := t.TempDir()
	at := func() int {
		table, err := mountTable()
		must(t, err)
		n := 0
		for _, m := range table {
			if m.at == dir {
				n++
			}
		}
		return n
	}
	for range 300 {
		must(t, unix.Mount("none", dir, "tmpfs", 0, ""))
		if n := at(); n != 1 {
			t.Fatalf("mounted once, seen %d times", n)
		}
		must(t, unix.Unmount(dir, 0))
		if n := at(); n != 0 {
			t.Fatalf("unmounted, seen %d times", n)
		}
	}
}
