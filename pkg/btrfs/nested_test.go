package btrfs

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs/btrfstest"
	"golang.org/x/sys/unix"
)

func TestNestedSubvolumes(t *testing.T) {
	t.Parallel()
	mnt := btrfstest.Mount(t)
	volume, _ := create(t, mnt, "volume")
	if nested := value(NestedSubvolumes(volume))(t); len(nested) != 0 {
		t.Errorf("an empty volume contains %v", nested)
	}
	want := map[uint64]string{}
	for i := range 300 { // too many for one ioctl
		dir := fmt.Sprintf("dir%d/%d", i%7, i)
		mkdir(t, volume, dir)
		name := dir + "/nested"
		if i%2 == 0 {
			name = fmt.Sprint("direct", i)
		}
		_, id := create(t, volume, name)
		want[id] = name
	}
	create(t, volume, "direct0", "deeper")

	last := uint64(0)
	nested := value(NestedSubvolumes(volume))(t)
	for _, n := range nested {
		made := value(CreatedTransid(mnt, n.ID))(t)
		if info := value(Info(volume + "/" + n.Path))(t); made == 0 || made != info.CreatedTransid {
			t.Errorf("%q was made in %d, not %d", n.Path, made, info.CreatedTransid)
		}
		if n.Path != want[n.ID] || n.ID <= last {
			t.Errorf("%d is %q, wanted %q; after %d", n.ID, n.Path, want[n.ID], last)
		}
		last = n.ID
	}
	if len(nested) != len(want) {
		t.Errorf("got %d, wanted %d", len(nested), len(want))
	}
}

func TestNestedSubvolumeTooDeepHasNoPath(t *testing.T) {
	t.Parallel()
	mnt := btrfstest.Mount(t)
	volume, _ := create(t, mnt, "volume")
	fd := value(openDirAt(unix.AT_FDCWD, volume))(t)
	name := strings.Repeat("d", 250)
	for range 20 {
		must(t, unix.Mkdirat(fd, name, 0o755))
		child := value(openDirAt(fd, name))(t)
		must(t, unix.Close(fd))
		fd = child
	}
	defer unix.Close(fd)
	must(t, Create(fdPath(fd, "nested")))
	nested := value(NestedSubvolumes(volume))(t)
	if len(nested) != 1 || nested[0].Path != "" || nested[0].ID == 0 {
		t.Errorf("got %v", nested)
	}
	must(t, Destroy(volume))
}

// TestEntries finds each subvolume at its place, and new ones by the largest ID before
// them.
func TestEntries(t *testing.T) {
	t.Parallel()
	mnt := btrfstest.Mount(t)
	pool, around := create(t, mnt, "pool")
	mkdir(t, pool, "slots", "a")
	mkdir(t, pool, "slots", "b")
	_, a := create(t, pool, "slots/a/fs")
	_, b := create(t, pool, "slots/b/fs")
	_, in := create(t, pool, "slots/b/fs", strings.Repeat("n", 255))
	inodes := value(Inodes(pool + "/slots"))(t)
	if len(inodes) != 2 {
		t.Errorf("listed %v", inodes)
	}
	want := []Entry{
		{around, topLevelSubvol, firstFree, "pool"},
		{a, around, inodes["a"], "fs"},
		{b, around, inodes["b"], "fs"},
		{in, b, firstFree, strings.Repeat("n", 255)},
	}
	if got := value(EntriesSince(mnt, 0))(t); !slices.Equal(got, want) {
		t.Errorf("got %v, wanted %v", got, want)
	}
	if got := value(EntriesSince(mnt, b+1))(t); !slices.Equal(got, want[3:]) {
		t.Errorf("since the last: got %v", got)
	}
	if got := value(Around(pool + "/slots"))(t); got != around {
		t.Errorf("around is %d, not %d", got, around)
	}
	must(t, Destroy(pool+"/slots/b/fs"))
	if got := value(EntriesSince(mnt, 0))(t); !slices.Equal(got, want[:2]) { // at once: the cleaner has not run
		t.Errorf("after a removal: got %v", got)
	}
	if got := value(EntriesSince(mnt, in+1))(t); len(got) != 0 {
		t.Errorf("nothing is new, got %v", got)
	}
}

// TestInodesOfMany lists more entries than one system call returns.
func TestInodesOfMany(t *testing.T) {
	t.Parallel()
	mnt := btrfstest.Mount(t)
	for i := range 3000 {
		must(t, unix.Mkdir(fmt.Sprintf("%s/directory-of-some-name-%d", mnt, i), 0o755))
	}
	inodes := value(Inodes(mnt))(t)
	for name, inode := range inodes {
		var st unix.Stat_t
		if must(t, unix.Lstat(mnt+"/"+name, &st)); st.Ino != inode {
			t.Fatalf("%s is %d, not %d", name, st.Ino, inode)
		}
	}
	if len(inodes) != 3000 {
		t.Errorf("got %d", len(inodes))
	}
}
