package btrfs

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs/btrfstest"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { os.Exit(btrfstest.Main(m.Run)) }

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// value is must for functions with a result.
func value[T any](v T, err error) func(t testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		must(t, err)
		return v
	}
}

func wantError(t testing.TB, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("got error %v, wanted %v", err, want)
	}
}

// create makes a subvolume and returns its path and ID.
func create(t testing.TB, elem ...string) (string, uint64) {
	t.Helper()
	path := filepath.Join(elem...)
	must(t, Create(path))
	return path, value(Info(path))(t).ID
}

func mkdir(t testing.TB, elem ...string) string {
	t.Helper()
	path := filepath.Join(elem...)
	must(t, os.MkdirAll(path, 0o755))
	return path
}

// writeFile writes a file to the disk. Quota counts only data on disk.
func writeFile(path string, size int) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.Write(make([]byte, size)); err != nil {
		return err
	}
	return f.Sync()
}

func liveIDs(t testing.TB, path string) []uint64 {
	t.Helper()
	var ids []uint64
	must(t, WalkSubvolumeIDs(path, func(id uint64) error {
		ids = append(ids, id)
		return nil
	}))
	return ids
}

func TestIsBtrfs(t *testing.T) {
	t.Parallel()
	mnt := btrfstest.Mount(t)
	link := filepath.Join(t.TempDir(), "link")
	must(t, os.Symlink(mnt, link))
	for _, test := range []struct {
		name, path string
		want       bool
		err        error
	}{
		{"btrfs", mnt, true, nil},
		{"link to btrfs", link, true, nil},
		{"proc", "/proc", false, nil},
		{"absent", filepath.Join(mnt, "absent"), false, fs.ErrNotExist},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := IsBtrfs(test.path)
			if got != test.want || !errors.Is(err, test.err) {
				t.Errorf("got %v, %v; wanted %v, %v", got, err, test.want, test.err)
			}
		})
	}
}

func TestInfoTellsLineage(t *testing.T) {
	t.Parallel()
	mnt := btrfstest.Mount(t)
	before := time.Now().Add(-time.Second)
	volume, id := create(t, mnt, "volume")
	must(t, Snapshot(filepath.Join(mnt, "snapshot"), volume, true))
	must(t, Snapshot(filepath.Join(mnt, "clone"), filepath.Join(mnt, "snapshot"), false))

	v := value(Info(volume))(t)
	s := value(Info(filepath.Join(mnt, "snapshot")))(t)
	c := value(Info(filepath.Join(mnt, "clone")))(t)
	if v.ID != id || v.UUID.IsZero() || !v.ParentUUID.IsZero() || !v.ReceivedUUID.IsZero() || v.ReadOnly {
		t.Errorf("volume: %+v", v)
	}
	if s.ParentUUID != v.UUID || !s.ReadOnly || s.CreatedTransid < v.CreatedTransid {
		t.Errorf("snapshot: %+v of %+v", s, v)
	}
	if c.ParentUUID != s.UUID || c.ReadOnly || c.CreatedTransid <= s.CreatedTransid {
		t.Errorf("clone: %+v of %+v", c, s)
	}
	if v.Created.Before(before) || v.Created.After(time.Now().Add(time.Second)) {
		t.Errorf("created at %v", v.Created)
	}
	if text := v.UUID.String(); len(text) != 36 || strings.Count(text, "-") != 4 || (UUID{}).String() != "" {
		t.Errorf("UUID %q", text)
	}
}

func TestOnlySubvolumesAreTaken(t *testing.T) {
	t.Parallel()
	mnt := btrfstest.Mount(t)
	volume, _ := create(t, mnt, "volume")
	plain := mkdir(t, volume, "plain")
	link := filepath.Join(mnt, "link")
	must(t, os.Symlink(volume, link))
	file := filepath.Join(mnt, "file")
	must(t, os.WriteFile(file, nil, 0o644))

	paths := []struct {
		name, path string
		want       error
	}{
		{"plain directory", plain, ErrNotSubvolume},
		{"link to a subvolume", link, unix.ENOTDIR},
		{"file", file, unix.ENOTDIR},
		{"absent", filepath.Join(mnt, "absent"), fs.ErrNotExist},
		{"not btrfs", "/proc/sys", ErrNotSubvolume},
	}
	operations := map[string]func(path string) error{
		"info":     func(path string) error { _, err := Info(path); return err },
		"nested":   func(path string) error { _, err := NestedSubvolumes(path); return err },
		"readonly": func(path string) error { return SetReadOnly(path, true) },
		"snapshot": func(path string) error { return Snapshot(filepath.Join(mnt, "new"), path, true) },
		"destroy":  Destroy,
	}
	for name, operation := range operations {
		for _, test := range paths {
			t.Run(name+"/"+test.name, func(t *testing.T) {
				err := operation(test.path)
				wantError(t, err, test.want)
				if err != nil && !strings.Contains(err.Error(), test.path) {
					t.Errorf("no path in %q", err)
				}
			})
		}
	}
	if _, err := Info(volume); err != nil {
		t.Errorf("the volume suffered: %v", err)
	}
}

func TestPathsThroughDescriptors(t *testing.T) {
	t.Parallel()
	mnt := btrfstest.Mount(t)
	dir, err := os.Open(mnt)
	must(t, err)
	defer dir.Close()
	root := fmt.Sprintf("/proc/self/fd/%d", dir.Fd())

	volume, _ := create(t, root, "volume")
	must(t, Snapshot(root+"/snapshot", volume, true))
	must(t, Sync(root+"/."))
	must(t, SetReadOnly(root+"/snapshot", false))
	must(t, Destroy(root+"/snapshot"))
	value(SpaceOf(root + "/."))(t)
	wantError(t, Sync(root), unix.ENOTDIR)
}

func TestCreateAndSnapshotErrors(t *testing.T) {
	t.Parallel()
	mnt := btrfstest.Mount(t)
	volume, _ := create(t, mnt, "volume")
	other := btrfstest.Mount(t)
	for _, test := range []struct {
		name string
		err  error
		want error
	}{
		{"create existing", Create(volume), fs.ErrExist},
		{"create in absent directory", Create(filepath.Join(mnt, "absent", "fs")), fs.ErrNotExist},
		{"create without a name", Create(mnt + "/"), unix.EINVAL},
		{"create elsewhere", Create("/proc/fs"), unix.ENOTTY},
		{"name too long", Create(filepath.Join(mnt, strings.Repeat("x", 256))), unix.ENAMETOOLONG},
		{"snapshot across filesystems", Snapshot(filepath.Join(other, "s"), volume, true), unix.EXDEV},
		{"destroy absent", Destroy(filepath.Join(mnt, "absent")), fs.ErrNotExist},
		{"sync absent", Sync(filepath.Join(mnt, "absent")), fs.ErrNotExist},
	} {
		t.Run(test.name, func(t *testing.T) { wantError(t, test.err, test.want) })
	}
}

func TestSetReadOnly(t *testing.T) {
	t.Parallel()
	mnt := btrfstest.Mount(t)
	volume, _ := create(t, mnt, "volume")
	file := filepath.Join(volume, "file")
	for range 2 { // the second call changes nothing
		must(t, SetReadOnly(volume, true))
		if !value(Info(volume))(t).ReadOnly {
			t.Error("not read-only")
		}
	}
	wantError(t, os.WriteFile(file, nil, 0o644), unix.EROFS)
	for range 2 {
		must(t, SetReadOnly(volume, false))
	}
	must(t, os.WriteFile(file, nil, 0o644))
}

func TestExistsForgetsAtOnce(t *testing.T) {
	t.Parallel()
	mnt := btrfstest.Mount(t)
	volume, id := create(t, mnt, "volume")
	must(t, Snapshot(filepath.Join(mnt, "snapshot"), volume, true))
	snapshot := value(Info(filepath.Join(mnt, "snapshot")))(t).ID
	must(t, Sync(mnt))

	// An open directory keeps the cleaner from dropping the root item.
	opened, err := os.Open(volume)
	must(t, err)
	defer opened.Close()
	must(t, Destroy(volume))

	check := func(when string) {
		for _, test := range []struct {
			name string
			id   uint64
			want bool
		}{
			{"destroyed", id, false},
			{"snapshot of it", snapshot, true},
			{"top level", topLevelSubvol, true},
			{"never made", snapshot + 100, false},
			{"a tree that is no subvolume", quotaTree, false},
		} {
			if got := value(Exists(mnt, test.id))(t); got != test.want {
				t.Errorf("%s: %s: got %v, wanted %v", when, test.name, got, test.want)
			}
		}
		if ids := liveIDs(t, mnt); !slices.Equal(ids, []uint64{snapshot}) {
			t.Errorf("%s: live: %v, wanted %d", when, ids, snapshot)
		}
	}
	check("before the commit")
	must(t, Sync(mnt))
	check("after the commit")
}

func TestWalkSubvolumeIDs(t *testing.T) {
	t.Parallel()
	mnt := btrfstest.Mount(t)
	var want []uint64
	for i := range 500 { // several buffers
		_, id := create(t, mnt, fmt.Sprint(i))
		want = append(want, id)
	}
	_, id := create(t, mnt, "0", "nested")
	want = append(want, id)
	if got := liveIDs(t, mnt); !slices.Equal(got, want) {
		t.Errorf("got %d: %v, wanted %d", len(got), got, len(want))
	}
	stop := errors.New("stop")
	calls := 0
	wantError(t, WalkSubvolumeIDs(mnt, func(uint64) error { calls++; return stop }), stop)
	if calls != 1 {
		t.Errorf("called %d times after an error", calls)
	}
}
