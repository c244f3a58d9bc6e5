package pool

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs"
	"github.com/btrfs-csi/btrfs-csi/pkg/mount"
)

// subvolumeName is the name of the subvolume in each slot.
const subvolumeName = "fs"

// root is the Directory of a pool on a real btrfs. It leads to the pool's directory by its
// descriptor, so no unmount can redirect it.
type root struct {
	disk   *disk
	dir    *os.File
	path   string // leads to dir
	users  int    // operations that share it; protected by disk.mu
	opened time.Time
}

var _ Directory = (*root)(nil)

// freshRoot is how long new operations share a descriptor. Because it is limited, a pool that is
// always busy notices a detached mount too.
const freshRoot = time.Second

// Open opens the pool's directory and verifies that it is still the same one, or shares the
// descriptor of an operation that has just done so.
func (d *disk) Open() (Directory, error) {
	if r := d.join(); r != nil {
		return r, nil
	}
	r, err := d.openRoot() // without d.mu, which Close needs: it may wait for the disk
	if err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.shared = r
	return r, nil
}

// join returns the directory if another operation has just opened it, else nil.
func (d *disk) join() *root {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.shared == nil || time.Since(d.shared.opened) > freshRoot {
		return nil
	}
	d.shared.users++
	return d.shared
}

// openRoot opens the pool's directory for one user.
func (d *disk) openRoot() (*root, error) {
	r, is, err := d.openAny()
	if err == nil && is != d.place {
		r.dir.Close()
		err = d.displaced()
	}
	if err != nil {
		// Not wrapped: if the pool's directory does not exist, its volumes are not absent.
		return nil, fmt.Errorf("%w: %s", ErrAway, err.Error())
	}
	return r, nil
}

// openAny is openRoot for whatever directory is at the pool's path.
func (d *disk) openAny() (r *root, is place, err error) {
	dir, err := os.OpenFile(d.path, unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, is, err
	}
	if is, err = placeOf(int(dir.Fd())); err != nil {
		dir.Close()
		return nil, is, fmt.Errorf("stat %s: %w", d.path, err)
	}
	return &root{disk: d, dir: dir, path: fmt.Sprintf("/proc/self/fd/%d", dir.Fd()), users: 1, opened: time.Now()}, is, nil
}

func (r *root) Close() {
	r.disk.mu.Lock()
	defer r.disk.mu.Unlock()
	if r.users--; r.users > 0 {
		return
	}
	r.dir.Close()
	if r.disk.shared == r {
		r.disk.shared = nil
	}
}

func (r *root) area(a Area) string { return filepath.Join(r.path, string(a)) }

func (r *root) slot(s Slot) string { return filepath.Join(r.path, string(s.Area), s.Name) }

// subvolume returns the path of the subvolume in a slot.
func (r *root) subvolume(s Slot) string {
	return filepath.Join(r.path, string(s.Area), s.Name, subvolumeName)
}

// namedError is an error whose text has the pool's path instead of the path of a descriptor. The
// number of the descriptor differs each time, so that the same error would look new.
type namedError struct {
	err  error
	text string
}

func (n *namedError) Error() string { return n.text }
func (n *namedError) Unwrap() error { return n.err }

// Named replaces the path of the descriptor in an error by the pool's path.
func (r *root) Named(err error) error {
	if err == nil || !strings.Contains(err.Error(), r.path+"/") {
		return err
	}
	return &namedError{err, strings.ReplaceAll(err.Error(), r.path+"/", r.disk.path+"/")}
}

// place identifies a directory, so that another one moved or mounted to its path is noticed. The
// device number distinguishes the subvolumes of one filesystem. It does not distinguish
// filesystems: after an unmount the kernel gives it to the next one.
type place struct {
	device uint64    // st_dev
	inode  uint64    // st_ino
	mount  uint64    // unique ID of the mount since boot; 0 before Linux 6.8
	fsid   unix.Fsid // of the filesystem, if mount is 0; a copy has the same
}

func placeOf(fd int) (p place, err error) {
	var stx unix.Statx_t
	err = unix.Statx(fd, "", unix.AT_EMPTY_PATH, unix.STATX_INO|unix.STATX_MNT_ID_UNIQUE, &stx)
	if err == nil && stx.Mask&unix.STATX_MNT_ID_UNIQUE != 0 {
		return place{device: unix.Mkdev(stx.Dev_major, stx.Dev_minor), inode: stx.Ino, mount: stx.Mnt_id}, nil
	}
	return oldPlaceOf(fd)
}

// oldPlaceOf is placeOf for kernels without unique mount IDs.
func oldPlaceOf(fd int) (p place, err error) {
	var st unix.Stat_t
	var stfs unix.Statfs_t
	err = errors.Join(unix.Fstat(fd, &st), unix.Fstatfs(fd, &stfs))
	return place{device: st.Dev, inode: st.Ino, fsid: stfs.Fsid}, err
}

// displaced returns why the pool is not at its path any more.
func (d *disk) displaced() error {
	mounted, err := mount.IsPoint(d.path)
	switch {
	case err != nil:
		return err
	case mounted:
		return fmt.Errorf("%s: another filesystem is mounted there", d.path)
	case d.mounted:
		return fmt.Errorf("%s: its filesystem is not mounted there any more", d.path)
	}
	return fmt.Errorf("%s: another directory is there", d.path)
}

func (r *root) Thawed() error { return btrfs.AwaitThaw(r.dir) }

// Room reports a pool as read-only until its quota could be turned on, which happens when it is
// opened again. A volume that is made before would have no limit, and keep none.
func (r *root) Room() (btrfs.Room, error) {
	room, err := btrfs.RoomOf(r.dir, r.disk.node.state)
	room.ReadOnly = room.ReadOnly || r.disk.quotaOff
	return room, err
}

func (r *root) Space() (btrfs.Space, error) { return btrfs.SpaceOf(r.dir, r.disk.node.state) }

func (r *root) Devices() ([]btrfs.Device, error) { return btrfs.Devices(r.dir) }
