package mount

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestOpenBeneath: openat2 and walkBeneath refuse the same paths.
func TestOpenBeneath(t *testing.T) {
	dir := t.TempDir()
	mkdir(t, filepath.Join(dir, "a", "b"))
	must(t, os.WriteFile(filepath.Join(dir, "file"), nil, 0o600))
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
	all, err := NewTargets(dir)
	must(t, err)
	at, err := all.Parse(filepath.Join(all.resolved, "pod", "mount"))
	must(t, err)
	_, err = at.EnsureDir()
	wantInTheWay(t, err, "pod")
	mkdir(t, filepath.Join(dir, "pod"))
	for _, want := range []bool{true, false} {
		if made, err := at.EnsureDir(); made != want || err != nil {
			t.Errorf("want made %v, got %v, %v", want, made, err)
		}
	}
	info, err := os.Stat(at.path)
	must(t, err)
	if info.Mode().Perm()&^0o750 != 0 {
		t.Errorf("mode %v", info.Mode())
	}
	must(t, os.WriteFile(filepath.Join(at.path, "file"), nil, 0o600))
	wantInTheWay(t, at.Remove(), at.path)
	must(t, os.Remove(filepath.Join(at.path, "file")))
	must(t, at.Remove())
	must(t, at.Remove())
	if _, err := os.Lstat(at.path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("want it gone, got %v", err)
	}
}

func wantInTheWay(t *testing.T, err error, word string) {
	t.Helper()
	if !errors.Is(err, ErrInTheWay) || !strings.Contains(err.Error(), word) {
		t.Errorf("want ErrInTheWay with %q, got %v", word, err)
	}
}

// FuzzTargetPath proves that no path leads out of the directory of targets.
func FuzzTargetPath(f *testing.F) {
	for _, path := range []string{
		"/kubelet/pods/p/mount", "/data/kubelet/x", "/kubelet", "/kubelet/", "/kubelet/..", "/kubelet/../etc", "/kubelet//x", "/kubeletx/y", "", "x", "/", "/kubelet/a\x00b", "/kubelet/a\nb",
	} {
		f.Add(path)
	}
	f.Fuzz(func(t *testing.T, path string) {
		at, err := (&Targets{given: "/kubelet", resolved: "/data/kubelet"}).Parse(path)
		if err != nil {
			if !errors.Is(err, ErrInvalid) {
				t.Error(err)
			}
			return
		}
		rel, ok := strings.CutPrefix(at.path, "/data/kubelet/")
		if !ok || rel != at.rel || rel == "." || !filepath.IsLocal(rel) || filepath.Clean(at.path) != at.path || !strings.HasSuffix(path, "/"+rel) {
			t.Errorf("%q leads to %+v", path, at)
		}
	})
}
