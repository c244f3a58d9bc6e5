package btrfs

import (
	"encoding/binary"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unsafe"

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs/btrfstest"
	"golang.org/x/sys/unix"
)

func setFlags(t testing.TB, path string, flags uint32) {
	t.Helper()
	must(t, withDir("set flags of", path, func(fd int) error { return changeInodeFlags(fd, flags, 0) }))
}

// TestDestroyTakesAllThatIsNested builds what a privileged pod may leave behind. It sets
// flags and read-only last, from the inside out.
func TestDestroyTakesAllThatIsNested(t *testing.T) {
	t.Parallel()
	mnt := btrfstest.Mount(t)
	for _, test := range []struct {
		name  string
		build func(t *testing.T, volume string)
	}{
		{"nothing", func(t *testing.T, volume string) {}},
		{"more than one ROOTREF buffer", func(t *testing.T, volume string) {
			for i := range 300 {
				create(t, volume, fmt.Sprint(i))
			}
		}},
		{"exactly one ROOTREF buffer", func(t *testing.T, volume string) {
			for i := range maxRootRefs {
				create(t, volume, fmt.Sprint(i))
			}
		}},
		{"a tree", func(t *testing.T, volume string) {
			for _, path := range []string{"a", "a/b", "a/b/c", "a/d", "e", "e/f"} {
				subvolume, _ := create(t, volume, path)
				create(t, mkdir(t, subvolume, "some", "dir"), "more")
			}
		}},
		{"read-only volume", func(t *testing.T, volume string) {
			create(t, volume, "nested")
			must(t, SetReadOnly(volume, true))
		}},
		{"read-only all the way", func(t *testing.T, volume string) {
			a, _ := create(t, volume, "a")
			b, _ := create(t, a, "b")
			must(t, SetReadOnly(b, true))
			must(t, SetReadOnly(a, true))
			must(t, SetReadOnly(volume, true))
		}},
		{"immutable volume", func(t *testing.T, volume string) { setFlags(t, volume, fsImmutable) }},
		{"append-only volume with nested", func(t *testing.T, volume string) {
			create(t, volume, "nested")
			setFlags(t, volume, fsAppend)
		}},
		{"immutable nested", func(t *testing.T, volume string) {
			nested, _ := create(t, volume, "nested")
			setFlags(t, nested, fsImmutable)
		}},
		{"immutable directory around nested", func(t *testing.T, volume string) {
			dir := mkdir(t, volume, "x/y/z")
			create(t, dir, "nested")
			setFlags(t, dir, fsImmutable)
			setFlags(t, filepath.Dir(dir), fsImmutable)
		}},
		{"append-only directory around nested", func(t *testing.T, volume string) {
			dir := mkdir(t, volume, "dir")
			create(t, dir, "nested")
			setFlags(t, dir, fsAppend)
		}},
		{"everything at once", func(t *testing.T, volume string) {
			a, _ := create(t, mkdir(t, volume, "dir"), "a")
			b, _ := create(t, mkdir(t, a, "dir"), "b")
			for _, subvolume := range []string{b, a, volume} {
				if subvolume != b {
					setFlags(t, filepath.Join(subvolume, "dir"), fsImmutable|fsAppend)
				}
				setFlags(t, subvolume, fsImmutable|fsAppend)
				must(t, SetReadOnly(subvolume, true))
			}
		}},
		{"name of 255 bytes", func(t *testing.T, volume string) { create(t, volume, strings.Repeat("n", 255)) }},
		{"name not of UTF-8", func(t *testing.T, volume string) { create(t, volume, "\xff\xfe \n") }},
		{"snapshots", func(t *testing.T, volume string) {
			nested, _ := create(t, volume, "nested")
			create(t, nested, "deeper")
			must(t, Snapshot(filepath.Join(volume, "s"), nested, true))
			must(t, Snapshot(filepath.Join(nested, "of itself"), volume, true))
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			volume, _ := create(t, mnt, "volume")
			test.build(t, volume)
			must(t, Destroy(volume))
			if ids := liveIDs(t, mnt); len(ids) != 0 {
				t.Errorf("still there: %v", ids)
			}
			wantError(t, Destroy(volume), fs.ErrNotExist)
		})
	}
}

func TestDestroyLeavesOthersAlone(t *testing.T) {
	t.Parallel()
	mnt := btrfstest.Mount(t)
	volume, _ := create(t, mnt, "volume")
	create(t, volume, "nested")
	neighbour, _ := create(t, mnt, "neighbour")
	create(t, neighbour, "nested")
	must(t, Snapshot(filepath.Join(mnt, "snapshot"), volume, true))
	must(t, Destroy(volume))
	if got := len(liveIDs(t, mnt)); got != 3 {
		t.Errorf("%d subvolumes left, wanted 3", got)
	}
	value(NestedSubvolumes(neighbour))(t)
}

// TestDestroyFindsWhatMoved: destroyOne keeps a subvolume that has moved out of its parent
// since it was listed.
func TestDestroyFindsWhatMoved(t *testing.T) {
	t.Parallel()
	mnt := btrfstest.Mount(t)
	volume, id := create(t, mnt, "volume")
	nested, nestedID := create(t, volume, "nested")
	must(t, os.Rename(nested, filepath.Join(mnt, "moved")))
	must(t, withDir("", mnt, func(fd int) error {
		return destroyOne(fd, nestedSubvolume{id: nestedID, parent: id})
	}))
	if !value(Exists(mnt, nestedID))(t) {
		t.Error("destroyed outside of the volume")
	}
}

// nest makes a chain of nested subvolumes and returns the ID of the last. It uses
// descriptors, because the path becomes too long.
func nest(t testing.TB, volume string, depth int, name string) uint64 {
	t.Helper()
	fd := value(openDirAt(unix.AT_FDCWD, volume))(t)
	for range depth {
		must(t, Create(fdPath(fd, name)))
		child := value(openDirAt(fd, name))(t)
		must(t, unix.Close(fd))
		fd = child
	}
	defer unix.Close(fd)
	return value(subvolInfo(fd))(t).treeID
}

func TestDestroyDeeperThanAPath(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name  string
		depth int
		entry string
	}{
		{"long names", 20, strings.Repeat("x", 250)},
		{"many levels", 1000, "some name"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			mnt := btrfstest.Mount(t)
			volume, _ := create(t, mnt, "volume")
			last := nest(t, volume, test.depth, test.entry)
			if got := len(liveIDs(t, mnt)); got != test.depth+1 {
				t.Fatalf("%d subvolumes made, wanted %d", got, test.depth+1)
			}
			// This is why Destroy removes by name in a directory that it opens by handle.
			wantError(t, destroyByID(t, mnt, last), unix.ENAMETOOLONG)
			must(t, Destroy(volume))
			if ids := liveIDs(t, mnt); len(ids) != 0 {
				t.Errorf("still there: %v", ids)
			}
		})
	}
}

// destroyByID calls SNAP_DESTROY_V2 with BTRFS_SUBVOL_SPEC_BY_ID.
func destroyByID(t testing.TB, path string, id uint64) error {
	t.Helper()
	args := volArgsV2{flags: 1 << 4}
	binary.NativeEndian.PutUint64(args.name[:], id)
	return withDir("destroy by ID in", path, func(fd int) error {
		_, err := ioctl(fd, iocSnapDestroyV2, unsafe.Pointer(&args))
		return err
	})
}
