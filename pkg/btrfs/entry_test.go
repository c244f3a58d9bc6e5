package btrfs

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs/btrfstest"
	"golang.org/x/sys/unix"
)

// TestRolledBack replaces a subvolume by its snapshot. The nested subvolume is then a stub,
// and is found by its name outside.
func TestRolledBack(t *testing.T) {
	t.Parallel()
	top := btrfstest.Mount(t)
	root, _ := create(t, top, "root")
	mkdir(t, root, "a/b")
	_, volume := create(t, root, "a/b/fs")
	broken := filepath.Join(top, "broken")
	must(t, unix.Rename(root, broken))
	must(t, Snapshot(root, broken, false))

	stub := filepath.Join(root, "a/b/fs")
	if is := value(IsStub(stub))(t); !is {
		t.Errorf("%s is no stub", stub)
	}
	for _, other := range []string{filepath.Join(broken, "a/b/fs"), filepath.Join(root, "a/b"), root} {
		if is := value(IsStub(other))(t); is {
			t.Errorf("%s is a stub", other)
		}
	}
	if _, err := IsStub(stub + "2"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v", err)
	}
	if _, err := Info(stub); !errors.Is(err, ErrNotSubvolume) {
		t.Errorf("a stub is reported as a subvolume: %v", err)
	}

	create(t, top, "fs2")
	parent := value(Info(broken))(t).ID
	entries := slices.DeleteFunc(value(EntriesSince(root, 0))(t), func(e Entry) bool { return e.Name != "fs" })
	if len(entries) != 1 || entries[0].ID != volume || entries[0].Parent != parent {
		t.Fatalf("got %+v, wanted %d in %d", entries, volume, parent)
	}
	if path := value(PathOf(root, volume))(t); path != "broken/a/b/fs" {
		t.Errorf("path is %q", path)
	}
	if path := value(PathFromTop(filepath.Join(root, "a/b")))(t); path != "root/a/b" {
		t.Errorf("path is %q", path)
	}
	if path := value(PathFromTop(top))(t); path != "" {
		t.Errorf("path is %q", path)
	}
	if _, err := PathOf(root, 4711); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v", err)
	}
	dir := value(OpenDirectory(root, parent, entries[0].Directory))(t)
	defer dir.Close()
	if names := value(dir.Readdirnames(-1))(t); len(names) != 1 || names[0] != "fs" {
		t.Errorf("it contains %v", names)
	}
	inode := entries[0].Directory
	for _, want := range []string{"b", "a"} {
		up, name, err := ParentDirectory(root, parent, inode)
		must(t, err)
		if name != want {
			t.Errorf("got %q, wanted %q", name, want)
		}
		inode = up
	}
	if _, _, err := ParentDirectory(root, parent, inode); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the root is in a directory: %v", err)
	}

	must(t, os.Remove(stub))
	must(t, unix.Rename(filepath.Join(broken, "a/b/fs"), stub))
	if back := value(Info(stub))(t); back.ID != volume {
		t.Errorf("%d is back, wanted %d", back.ID, volume)
	}
}
