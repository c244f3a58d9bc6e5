package btrfs

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unsafe"

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs/btrfstest"
	"github.com/containerd/btrfs/v2"
	"golang.org/x/sys/unix"
)

// The tests in this file prove the facts about the kernel that this package and
// docs/design.md rely on. They count and compare, but do not measure time.

// commits returns the number of commits since the filesystem was mounted.
func commits(t testing.TB, path string) int {
	t.Helper()
	btrfstest.CommitStats.Need(t)
	text, err := os.ReadFile("/sys/fs/btrfs/" + value(Filesystem(path))(t).FSID.String() + "/commit_stats")
	must(t, err)
	var n int
	if _, err := fmt.Sscanf(string(text), "commits %d", &n); err != nil {
		t.Fatalf("commit_stats %q: %v", text, err)
	}
	return n
}

// noCommits prevents the periodic commits of the kernel during a test.
var noCommits = btrfstest.MountOptions("commit=86400")

// syncFilesystem is sync -f. Its ioctl also wakes the cleaner, and syncfs(2) does not.
func syncFilesystem(path string) error {
	return withDir("sync filesystem of", path, func(fd int) error {
		_, err := ioctl(fd, iocSync, nil)
		return err
	})
}

// eventually waits for work that the kernel does in the background.
func eventually(t testing.TB, what string, done func() bool) {
	t.Helper()
	btrfstest.Eventually(t, what, done)
}

func absent(t testing.TB, path string) bool {
	t.Helper()
	_, err := os.Lstat(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	return err != nil
}

func TestKernelCreateAndDestroyDoNotCommitAndSyncAndCommitDo(t *testing.T) {
	t.Parallel()
	btrfstest.CreateWithoutSync.Need(t)
	mnt := btrfstest.Mount(t, noCommits)
	dir := mkdir(t, mnt, "dir")
	base := commits(t, mnt)
	for i, step := range []struct {
		name string
		do   func() error
		want int // commits since the start
	}{
		{"create", func() error { return Create(dir + "/fs") }, 0},
		{"sync", func() error { return Sync(dir) }, 1},
		{"sync again", func() error { return Sync(dir) }, 1},
		{"destroy", func() error { return Destroy(dir + "/fs") }, 1},
		{"sync", func() error { return Sync(dir) }, 2},
		{"sync again", func() error { return Sync(dir) }, 2},
		{"create", func() error { return Create(dir + "/fs") }, 2},
		{"snapshot", func() error { return Snapshot(dir+"/s", dir+"/fs", true) }, 3},
		{"sync", func() error { return Sync(dir) }, 3},
		{"attribute", func() error { return unix.Setxattr(dir, "trusted.test", []byte("value"), 0) }, 3},
		{"sync", func() error { return Sync(dir) }, 3},
		{"commit", func() error { return Commit(dir) }, 4},
		{"commit again", func() error { return Commit(dir) }, 5},
	} {
		must(t, step.do())
		if got := commits(t, mnt) - base; got != step.want {
			t.Errorf("step %d, %s: %d commits so far, wanted %d", i, step.name, got, step.want)
		}
	}
}

// TestKernelShareOneCommit: callers that come at the same time share a commit.
func TestKernelShareOneCommit(t *testing.T) {
	t.Parallel()
	btrfstest.CreateWithoutSync.Need(t) // else nothing is left to commit
	for name, call := range map[string]func(string) error{"sync": Sync[string], "commit": Commit[string]} {
		t.Run(name, func(t *testing.T) {
			mnt := btrfstest.Mount(t, noCommits)
			got := fewestCommits(t, mnt, func(round int) func() {
				dirs := make([]string, 32)
				for i := range dirs {
					dirs[i] = mkdir(t, mnt, fmt.Sprintf("%d-%d", round, i))
					must(t, Create(dirs[i]+"/fs"))
				}
				return func() {
					results := make(chan error)
					for _, dir := range dirs {
						go func() { results <- call(dir) }()
					}
					for range dirs {
						must(t, <-results)
					}
				}
			})
			// One commit is the minimum. Without sharing there would be 32.
			if got < 1 || got > 16 {
				t.Errorf("%d commits for 32 directories", got)
			}
		})
	}
}

// TestKernelSnapshotsShareCommitsInSeparateDirectories proves why each subvolume has a
// directory of its own.
func TestKernelSnapshotsShareCommitsInSeparateDirectories(t *testing.T) {
	t.Parallel()
	const many = 32
	for name, test := range map[string]struct {
		path        func(mnt, name string) string
		least, most int
	}{
		"one directory":        {func(mnt, name string) string { return filepath.Join(mnt, "one", name) }, many, 2 * many},
		"separate directories": {func(mnt, name string) string { return filepath.Join(mkdir(t, mnt, name), "fs") }, 1, many / 2},
	} {
		t.Run(name, func(t *testing.T) {
			btrfstest.SnapshotsShare.Need(t)
			mnt := btrfstest.Mount(t, noCommits)
			source, _ := create(t, mnt, "source")
			mkdir(t, mnt, "one")
			got := fewestCommits(t, mnt, func(round int) func() {
				paths := make([]string, many)
				for i := range paths {
					paths[i] = test.path(mnt, fmt.Sprintf("%d-%d", round, i))
				}
				return func() {
					results := make(chan error)
					for _, path := range paths {
						go func() { results <- Snapshot(path, source, true) }()
					}
					for range paths {
						must(t, <-results)
					}
				}
			})
			if got < test.least || got > test.most {
				t.Errorf("%d snapshots took %d commits, want %d to %d", many, got, test.least, test.most)
			}
		})
	}
}

// fewestCommits returns the smallest number of commits that run took in several rounds. A
// snapshot that starts after the first commit has begun needs another one, and a busy
// machine delays some of them. prepare returns the run of a round.
func fewestCommits(t *testing.T, mnt string, prepare func(round int) (run func())) int {
	t.Helper()
	fewest := math.MaxInt
	for round := range 5 {
		must(t, Sync(mnt))
		run := prepare(round)
		base := commits(t, mnt)
		run()
		fewest = min(fewest, commits(t, mnt)-base)
	}
	return fewest
}

func TestKernelPowerCut(t *testing.T) {
	t.Parallel()
	mnt := btrfstest.Mount(t, noCommits)
	mkdir(t, mnt, "synced")
	mkdir(t, mnt, "lost")
	destroyed, _ := create(t, mkdir(t, mnt, "destroyed"), "fs")
	must(t, Sync(mnt))
	must(t, Sync(filepath.Dir(destroyed)))

	must(t, Create(mnt+"/synced/fs"))
	must(t, Sync(mnt+"/synced"))
	must(t, Create(mnt+"/lost/fs"))
	must(t, Destroy(destroyed))
	after := btrfstest.PowerCut(t, mnt)
	committed := !btrfstest.CreateWithoutSync.Holds()
	for path, want := range map[string]bool{"/synced/fs": true, "/lost/fs": committed, "/destroyed/fs": true} {
		if got := !absent(t, after+path); got != want {
			t.Errorf("after a power cut %s is there: %v", path, got)
		}
	}

	must(t, Sync(filepath.Dir(destroyed)))
	after = btrfstest.PowerCut(t, mnt)
	if !absent(t, after+"/destroyed/fs") {
		t.Error("destroyed and synced, yet there after a power cut")
	}
}

func TestKernelSnapshotIsDurableWithItsData(t *testing.T) {
	t.Parallel()
	mnt := btrfstest.Mount(t, noCommits)
	volume, _ := create(t, mnt, "volume")
	must(t, os.WriteFile(volume+"/file", []byte("written, not synced"), 0o644))
	must(t, Snapshot(mnt+"/snapshot", volume, true))
	text, err := os.ReadFile(btrfstest.PowerCut(t, mnt) + "/snapshot/file")
	if err != nil || string(text) != "written, not synced" {
		t.Errorf("got %q, %v", text, err)
	}
}

func TestKernelCopyMountsBesideItsOriginal(t *testing.T) {
	t.Parallel()
	btrfstest.CopyBeside.Need(t)
	mnt := btrfstest.Mount(t)
	other := btrfstest.Copy(t, mnt)
	a, b := value(Filesystem(mnt))(t).FSID, value(Filesystem(other))(t).FSID
	if a == b {
		t.Errorf("both are %s", a)
	}
	create(t, other, "volume")
	if !absent(t, mnt+"/volume") {
		t.Error("it is the same filesystem")
	}
}

// TestKernelDestroyOpensNoDirectory watches a directory of a volume with inotify. As a
// control, the removal of the library walks the directory.
func TestKernelDestroyOpensNoDirectory(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name   string
		remove func(string) error
		opened bool
	}{
		{"Destroy", Destroy, false},
		{"SubvolDelete of containerd", btrfs.SubvolDelete, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			mnt := btrfstest.Mount(t)
			volume, _ := create(t, mnt, "volume")
			dir := mkdir(t, volume, "dir")
			must(t, os.WriteFile(dir+"/file", nil, 0o644))
			create(t, volume, "nested")
			fd := value(unix.InotifyInit1(unix.IN_NONBLOCK | unix.IN_CLOEXEC))(t)
			defer unix.Close(fd)
			value(unix.InotifyAddWatch(fd, dir, unix.IN_OPEN|unix.IN_ACCESS))(t)
			must(t, test.remove(volume))
			n, err := unix.Read(fd, make([]byte, 4096))
			if opened := err == nil && n > 0; opened != test.opened {
				t.Errorf("opened: %v, wanted %v (%v)", opened, test.opened, err)
			}
		})
	}
}

func TestKernelRenameOfReadOnlySubvolume(t *testing.T) {
	t.Parallel()
	mnt := btrfstest.Mount(t)
	subvolume, _ := create(t, mkdir(t, mnt, "a"), "fs")
	mkdir(t, mnt, "b")
	must(t, SetReadOnly(subvolume, true))
	must(t, os.Rename(mnt+"/a/fs", mnt+"/a/renamed"))
	wantError(t, os.Rename(mnt+"/a/renamed", mnt+"/b/fs"), unix.EROFS)
	must(t, os.Rename(mnt+"/a", mnt+"/b/a"))
	if !value(Info(mnt + "/b/a/renamed"))(t).ReadOnly {
		t.Error("not read-only")
	}
}

func TestKernelNestedSubvolumes(t *testing.T) {
	t.Parallel()
	mnt := btrfstest.Mount(t)
	volume, id := create(t, mnt, "volume")
	nested, _ := create(t, volume, "nested")
	must(t, os.WriteFile(nested+"/file", nil, 0o644))

	wantError(t, plainDestroy(mnt, "volume"), unix.ENOTEMPTY)
	wantError(t, destroyByID(t, mnt, id), unix.ENOTEMPTY)

	must(t, Snapshot(mnt+"/snapshot", volume, true))
	entries, err := os.ReadDir(mnt + "/snapshot/nested")
	if err != nil || len(entries) != 0 {
		t.Errorf("in a snapshot it contains %v, %v", entries, err)
	}
	_, err = Info(mnt + "/snapshot/nested")
	wantError(t, err, ErrNotSubvolume)
	if found := value(NestedSubvolumes(mnt + "/snapshot"))(t); len(found) != 0 {
		t.Errorf("the snapshot contains %v", found)
	}
	must(t, Destroy(mnt+"/snapshot"))
}

func plainDestroy(dir, name string) error {
	return withDir("destroy in", dir, func(fd int) error { return snapDestroy(fd, name) })
}

func TestKernelFullQuotaIsEscapedByNesting(t *testing.T) {
	t.Parallel()
	mnt := withQuota(t, QuotaFull)
	volume, id := create(t, mnt, "volume")
	must(t, LimitQgroup(mnt, NewQgroupID(0, id), 8<<20))
	nested, _ := create(t, volume, "nested")
	must(t, writeFile(nested+"/file", 32<<20))
	wantError(t, writeFile(volume+"/file", 32<<20), unix.EDQUOT)
}

func TestKernelFullQuotaChargesNoSnapshots(t *testing.T) {
	t.Parallel()
	mnt := withQuota(t, QuotaFull)
	volume, id := create(t, mnt, "volume")
	qgroup := NewQgroupID(0, id)
	must(t, LimitQgroup(mnt, qgroup, 12<<20))
	for i := range 4 { // each round replaces data that the snapshots reference
		must(t, writeFile(volume+"/file", 8<<20))
		must(t, Snapshot(fmt.Sprint(mnt, "/snapshot", i), volume, true))
		must(t, os.Remove(volume+"/file"))
		must(t, syncFilesystem(mnt))
	}
	if got := value(QgroupOf(mnt, qgroup))(t); got.Referenced > 1<<20 {
		t.Errorf("charged for snapshots: %+v", got)
	}
	if status := value(Quota(mnt))(t); status.Inconsistent {
		t.Errorf("got %+v", status)
	}
	// A snapshot starts with everything that its source references.
	must(t, Snapshot(mnt+"/restored", mnt+"/snapshot0", false))
	restored := NewQgroupID(0, value(Info(mnt+"/restored"))(t).ID)
	if got := value(QgroupOf(mnt, restored))(t); got.Referenced < 8<<20 {
		t.Errorf("restored: %+v", got)
	}
}

func TestKernelFullQuotaGroupIsVoidAfterSnapshot(t *testing.T) {
	t.Parallel()
	btrfstest.GroupIsVoid.Need(t)
	mnt := withQuota(t, QuotaFull)
	volume, id := create(t, mnt, "volume")
	group := NewQgroupID(1, id)
	must(t, CreateQgroup(mnt, group))
	value(AssignQgroup(mnt, NewQgroupID(0, id), group))(t)
	must(t, writeFile(volume+"/file", 1<<20))
	if value(Quota(mnt))(t).Inconsistent {
		t.Fatal("inconsistent before the snapshot")
	}
	must(t, Snapshot(mnt+"/snapshot", volume, true))
	if !value(Quota(mnt))(t).Inconsistent {
		t.Error("still consistent")
	}
}

func TestKernelSimpleQuotaGroupHoldsNested(t *testing.T) {
	t.Parallel()
	mnt := withQuota(t, QuotaSimple)
	volume, id := create(t, mnt, "volume")
	group := NewQgroupID(1, id)
	must(t, CreateQgroup(mnt, group))
	value(AssignQgroup(mnt, NewQgroupID(0, id), group))(t)
	must(t, LimitQgroup(mnt, group, 8<<20))

	nested, _ := create(t, mkdir(t, volume, "dir"), "nested")
	deeper, _ := create(t, nested, "deeper")
	must(t, Snapshot(volume+"/snapshot", nested, false))
	for _, path := range []string{nested, deeper, volume + "/snapshot"} {
		wantError(t, writeFile(path+"/file", 32<<20), unix.EDQUOT)
	}
	must(t, syncFilesystem(mnt))
	if got := value(QgroupOf(mnt, group))(t); got.Referenced > 8<<20 {
		t.Errorf("beyond its limit: %+v", got)
	}
}

// TestKernelDestroyAtTheLimit proves why a removal lifts the limit first. The kernel
// charges the metadata of a destroy to the subvolume that contains the entry. So a
// subvolume at its limit can be destroyed, but nothing nested in it can, on most kernels.
func TestKernelDestroyAtTheLimit(t *testing.T) {
	t.Parallel()
	eachQuota(t, func(t *testing.T, mode QuotaMode) {
		mnt := withQuota(t, mode)
		for _, test := range []struct {
			name   string
			nested bool
			want   error
		}{
			{"alone", false, nil},
			{"with nested", true, unix.EDQUOT},
		} {
			t.Run(test.name, func(t *testing.T) {
				volume, id := create(t, mnt, test.name)
				if test.nested {
					create(t, volume, "nested")
				}
				must(t, LimitQgroup(mnt, NewQgroupID(0, id), 8<<20))
				wantError(t, fillUp(volume), unix.EDQUOT)
				err := Destroy(volume)
				if err == nil { // Linux 7.2 and some updates of 6.12
					return
				}
				wantError(t, err, test.want)
				must(t, LimitQgroup(mnt, NewQgroupID(0, id), NoLimit))
				if test.want != nil {
					must(t, Destroy(volume))
				}
			})
		}
	})
}

// fillUp writes ever smaller pieces until the kernel refuses them. At the end not even a
// piece of metadata fits.
func fillUp(dir string) error {
	var last error
	for size := 1 << 20; size >= 4<<10; size /= 2 {
		for i := 0; i < 4096; i++ {
			if last = writeFile(fmt.Sprintf("%s/fill-%d-%d", dir, size, i), size); last != nil {
				break
			}
		}
	}
	return last
}

func TestKernelSimpleQuotaChargesTheWriter(t *testing.T) {
	t.Parallel()
	mnt := withQuota(t, QuotaSimple)
	volume, id := create(t, mnt, "volume")
	must(t, writeFile(volume+"/file", 8<<20))
	must(t, Snapshot(mnt+"/snapshot", volume, true))
	must(t, Snapshot(mnt+"/restored", mnt+"/snapshot", false))
	must(t, os.Remove(volume+"/file"))
	must(t, syncFilesystem(mnt))
	if got := value(QgroupOf(mnt, NewQgroupID(0, id)))(t); got.Referenced < 8<<20 {
		t.Errorf("the data of the snapshot is not charged to its writer: %+v", got)
	}
	restored := NewQgroupID(0, value(Info(mnt+"/restored"))(t).ID)
	if got := value(QgroupOf(mnt, restored))(t); got.Referenced > 1<<20 {
		t.Errorf("restored: %+v", got)
	}
}

// TestKernelQgroupsOfDestroyedSubvolumes shows which qgroups become stale, and why the
// driver sweeps them. Older kernels leave all of them.
func TestKernelQgroupsOfDestroyedSubvolumes(t *testing.T) {
	t.Parallel()
	dropped := func(t *testing.T, mnt string, id QgroupID) bool {
		must(t, syncFilesystem(mnt))
		_, err := QgroupOf(mnt, id)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
		return err != nil
	}
	eachQuota(t, func(t *testing.T, mode QuotaMode) {
		btrfstest.QgroupGoes.Need(t)
		mnt := withQuota(t, mode)
		// Without a snapshot the kernel removes the qgroup when the cleaner has dropped the
		// tree.
		alone, id := create(t, mnt, "alone")
		must(t, writeFile(alone+"/file", 4<<20))
		must(t, Destroy(alone))
		eventually(t, "qgroup removed", func() bool { return dropped(t, mnt, NewQgroupID(0, id)) })

		// While a snapshot exists, simple quota still charges the qgroup.
		volume, id := create(t, mnt, "volume")
		stale := NewQgroupID(0, id)
		must(t, writeFile(volume+"/file", 4<<20))
		must(t, Snapshot(mnt+"/snapshot", volume, true))
		snapshot := NewQgroupID(0, value(Info(mnt+"/snapshot"))(t).ID)
		must(t, Destroy(volume))
		if mode == QuotaFull {
			eventually(t, "qgroup removed", func() bool { return dropped(t, mnt, stale) })
			return
		}
		must(t, Destroy(mnt+"/snapshot"))
		eventually(t, "qgroup of the snapshot removed", func() bool { return dropped(t, mnt, snapshot) })
		eventually(t, "nothing charged", func() bool {
			must(t, syncFilesystem(mnt))
			q, err := QgroupOf(mnt, stale)
			if errors.Is(err, fs.ErrNotExist) {
				return true // the cleaner dropped the snapshot before the volume
			}
			return value(q, err)(t).Referenced == 0
		})
		must(t, RemoveQgroup(mnt, stale))
		must(t, RemoveQgroup(mnt, stale))
	})
}

func TestKernelStatfsIgnoresLimits(t *testing.T) {
	t.Parallel()
	eachQuota(t, func(t *testing.T, mode QuotaMode) {
		mnt := withQuota(t, mode)
		volume, id := create(t, mnt, "volume")
		must(t, LimitQgroup(mnt, NewQgroupID(0, id), 8<<20))
		pool, inside := value(SpaceOf(mnt))(t), value(SpaceOf(volume))(t)
		if inside.Size != pool.Size || inside.Available < pool.Available/2 {
			t.Errorf("inside %+v, pool %+v", inside, pool)
		}
	})
}

func TestKernelQuotaCountsWhatWasThere(t *testing.T) {
	t.Parallel()
	mnt := btrfstest.Mount(t)
	volume, id := create(t, mnt, "volume")
	must(t, writeFile(volume+"/file", 4<<20))
	must(t, EnableQuota(mnt, QuotaFull))
	must(t, WaitRescan(mnt))
	if got := value(QgroupOf(mnt, NewQgroupID(0, id)))(t); got.Referenced < 4<<20 {
		t.Errorf("got %+v", got)
	}
}

// TestKernelTreeSearchSeesTheRunningTransaction proves what Exists and file handles of new
// directories rely on.
func TestKernelTreeSearchSeesTheRunningTransaction(t *testing.T) {
	t.Parallel()
	const fsIocGetVersion = iocRead | 'v'<<8 | 1 | 8<<16 // FS_IOC_GETVERSION
	mnt := btrfstest.Mount(t, noCommits)
	volume, id := create(t, mnt, "volume")
	dir := mkdir(t, volume, strings.Repeat("d", 10))
	base := commits(t, mnt)
	var st unix.Stat_t
	must(t, unix.Stat(dir, &st))
	must(t, withDir("", mnt, func(fd int) error {
		opened, err := openInode(fd, id, st.Ino)
		if err != nil {
			return err
		}
		defer unix.Close(opened)
		var got uint32
		if _, err := ioctl(opened, fsIocGetVersion, unsafe.Pointer(&got)); err != nil {
			return err
		}
		want, err := inodeGeneration(fd, id, st.Ino)
		if uint64(got) != want {
			t.Errorf("generation %d, the handle carried %d", got, want)
		}
		return err
	}))
	if !value(Exists(mnt, id))(t) || commits(t, mnt) != base {
		t.Error("not seen before a commit")
	}
}
