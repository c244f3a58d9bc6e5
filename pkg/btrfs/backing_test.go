package btrfs

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs/btrfstest"
)

const mib = 1 << 20

// TestBackingBoundsRoom: a sparse file bounds the room of its btrfs if it may take more
// than its filesystem has left. A file with enough space does not.
func TestBackingBoundsRoom(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name      string
		host      int64
		allocated bool
		bounded   bool
	}{
		{name: "room for all of it", host: 1024 * mib},
		{name: "too little room", host: 300 * mib, bounded: true},
		{name: "no room and all allocated", host: 300 * mib, allocated: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			host, size := btrfstest.Ext4(t, c.host), int64(512*mib)
			if c.allocated {
				size = 200 * mib
			}
			mnt := btrfstest.Mount(t, btrfstest.In(host), btrfstest.Size(size))
			image := btrfstest.Image(t, mnt)
			if c.allocated {
				allocate(t, image, size)
				must(t, btrfstest.FillFile(filepath.Join(host, "other")))
			}
			left := hostRoom(t, host)
			room := value(RoomOf(mnt))(t)
			if !c.bounded {
				if room.Backing != nil || room.Available < size/2 {
					t.Errorf("the room is bounded by %+v: %+v", room.Backing, room)
				}
				return
			}
			if room.Backing == nil || room.Backing.Path != image || room.Backing.Size != size || room.Available > left || room.Metadata > left/2 {
				t.Errorf("got %+v, %+v, and its filesystem has %d bytes left", room, room.Backing, left)
			}
			if space := value(SpaceOf(mnt))(t); space.Backing == nil || space.Available != room.Available {
				t.Errorf("got %+v of the space, %+v of the room", space.Room, room)
			}
		})
	}
}

// TestBackingOfMirrors: two mirrored files in one filesystem need twice the space.
func TestBackingOfMirrors(t *testing.T) {
	t.Parallel()
	host := btrfstest.Ext4(t, 600*mib)
	var loops []string
	for _, name := range []string{"a", "b"} {
		loops = append(loops, attach(t, sparseFile(t, filepath.Join(host, name), 512*mib)))
	}
	must(t, exec.Command("mkfs.btrfs", append([]string{"-q", "-f", "-K", "-d", "raid1", "-m", "raid1"}, loops...)...).Run())
	mnt := mountOn(t, loops[0])
	room, left := value(RoomOf(mnt))(t), hostRoom(t, host)
	if room.Backing == nil || room.Available > left/2+mib || room.Available < left/2-16*mib {
		t.Errorf("got %+v, want half of the %d bytes that the filesystem below has left", room, left)
	}
	if files := value(Backings(mnt))(t); len(files) != 2 {
		t.Errorf("got the files %+v, want both", files)
	}
}

// TestBackingIsFound: the file is found below a partition, and when it was attached by a
// process in another mount namespace, such as a container that has ended.
func TestBackingIsFound(t *testing.T) {
	t.Parallel()
	t.Run("partition", func(t *testing.T) {
		t.Parallel()
		image := sparseFile(t, filepath.Join(t.TempDir(), "disk"), 512*mib)
		loop := attach(t, image)
		must(t, partition(loop, unix.BLKPG_ADD_PARTITION))
		t.Cleanup(func() { must(t, partition(loop, unix.BLKPG_DEL_PARTITION)) })
		must(t, exec.Command("mkfs.btrfs", "-q", "-f", "-K", loop+"p1").Run())
		if files := value(Backings(mountOn(t, loop+"p1")))(t); len(files) != 1 || files[0].Path != image || files[0].Device != loop {
			t.Errorf("got %+v, want %s", files, image)
		}
	})
	t.Run("another namespace", func(t *testing.T) {
		t.Parallel()
		state, inside := t.TempDir(), t.TempDir()
		image := sparseFile(t, filepath.Join(state, "pool.img"), 512*mib)
		must(t, exec.Command("mkfs.btrfs", "-q", "-f", "-K", image).Run())
		out, err := exec.Command("unshare", "--mount", "--propagation", "private", "sh", "-ec",
			`mount --bind "$1" "$2"; exec losetup --find --show "$2/pool.img"`, "sh", state, inside).Output()
		must(t, err)
		loop := strings.TrimSpace(string(out))
		t.Cleanup(func() { must(t, exec.Command("losetup", "--detach", loop).Run()) })
		mnt := mountOn(t, loop)
		if files := value(Backings(mnt))(t); len(files) != 0 {
			t.Errorf("found without a root: %+v", files)
		}
		if files := value(Backings(mnt, t.TempDir(), state))(t); len(files) != 1 || files[0].Path != image {
			t.Errorf("got %+v, want %s", files, image)
		}
	})
}

// TestKernelStopped: the kernel stops a filesystem whose sparse file gets no space. A
// read-only remount is a different state.
func TestKernelStopped(t *testing.T) {
	t.Parallel()
	host := btrfstest.Ext4(t, 300*mib)
	mnt := btrfstest.Mount(t, btrfstest.In(host), btrfstest.Size(1024*mib))
	must(t, btrfstest.RemountReadOnly(mnt))
	if room := value(RoomOf(mnt))(t); !room.ReadOnly || room.Stopped {
		t.Errorf("remounted read-only: %+v", room)
	}
	must(t, unix.Mount("", mnt, "", unix.MS_REMOUNT, ""))
	must(t, unix.Mount("", mnt, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, ""))
	if room := value(RoomOf(mnt))(t); !room.ReadOnly || room.Stopped {
		t.Errorf("this mount read-only: %+v", room)
	}
	must(t, unix.Mount("", mnt, "", unix.MS_REMOUNT|unix.MS_BIND, ""))
	must(t, btrfstest.FillFile(filepath.Join(host, "other")))
	for n := 0; n < 100 && !value(RoomOf(mnt))(t).ReadOnly; n++ {
		_ = writeFile(filepath.Join(mnt, "file"), 8*mib) // until it fails
		_ = btrfstest.Sync(mnt)
	}
	if room := value(RoomOf(mnt))(t); !room.ReadOnly || !room.Stopped || room.Backing == nil {
		t.Errorf("the file below has no space: %+v", room)
	}
}

func hostRoom(t *testing.T, path string) int64 {
	t.Helper()
	var room unix.Statfs_t
	must(t, unix.Statfs(path, &room))
	return int64(room.Bavail) * room.Bsize
}

func allocate(t *testing.T, path string, size int64) {
	t.Helper()
	f := value(os.OpenFile(path, os.O_WRONLY, 0))(t)
	defer f.Close()
	must(t, unix.Fallocate(int(f.Fd()), 0, 0, size))
}

func sparseFile(t *testing.T, path string, size int64) string {
	t.Helper()
	must(t, os.WriteFile(path, nil, 0o600))
	must(t, os.Truncate(path, size))
	return path
}

// attach returns a loop device over a file. The end of the test detaches it.
func attach(t *testing.T, image string) string {
	t.Helper()
	btrfstest.RequireRoot(t)
	loop := strings.TrimSpace(string(value(exec.Command("losetup", "--find", "--show", image).Output())(t)))
	t.Cleanup(func() { must(t, exec.Command("losetup", "--detach", loop).Run()) })
	return loop
}

func mountOn(t *testing.T, device string) string {
	t.Helper()
	mnt := mkdir(t, t.TempDir(), "mnt")
	must(t, unix.Mount(device, mnt, "btrfs", 0, ""))
	t.Cleanup(func() { btrfstest.UnmountAll(t, mnt) })
	return mnt
}

// partition adds or removes partition 1 of a device, as addpart does, which Debian 13 lacks.
func partition(device string, operation int32) error {
	f, err := os.OpenFile(device, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	part := unix.BlkpgPartition{Start: mib, Length: 300 * mib, Pno: 1}
	arg := unix.BlkpgIoctlArg{Op: operation, Datalen: int32(unsafe.Sizeof(part)), Data: (*byte)(unsafe.Pointer(&part))}
	_, err = ioctl(int(f.Fd()), unix.BLKPG, unsafe.Pointer(&arg))
	return err
}
