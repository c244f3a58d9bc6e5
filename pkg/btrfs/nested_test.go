package btrfs

import (
	"fmt"
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
		t.Errorf("an empty volume holds %v", nested)
	}
	want := map[uint64]string{}
	for i := range 300 { // more than one ioctl returns
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
	fd := value(openDir(volume))(t)
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
