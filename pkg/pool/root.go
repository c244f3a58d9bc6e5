package pool

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/btrfs-csi/btrfs-csi/pkg/mount"
)

// root is the pool's directory, open while operations use it.
type root struct {
	fd     int
	path   string // leads to fd, so no unmount can redirect it
	users  int
	opened time.Time
}

// freshRoot is how long new operations share a descriptor. Because it is limited, a pool that is
// always busy notices a detached mount too.
const freshRoot = time.Second

// enter opens the pool's directory, or shares the one that is open. The caller must call leave.
func (d *disk) enter() (*root, error) {
	if r := d.join(); r != nil {
		return r, nil
	}
	fd, err := d.open() // without d.mu, which leave needs: open may wait for the disk
	if err != nil {
		return nil, err
	}
	r := &root{fd: fd, path: fdPath(fd), users: 1, opened: time.Now()}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.root = r
	return r, nil
}

// join returns the directory if another operation has just opened it, else nil.
func (d *disk) join() *root {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.root == nil || time.Since(d.root.opened) > freshRoot {
		return nil
	}
	d.root.users++
	return d.root
}

// fdPath returns a path to an open directory.
func fdPath(fd int) string { return fmt.Sprintf("/proc/self/fd/%d", fd) }

func (d *disk) leave(r *root) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if r.users--; r.users > 0 {
		return
	}
	unix.Close(r.fd)
	if d.root == r {
		d.root = nil
	}
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

func (d *disk) open() (int, error) {
	fd, is, err := d.openAny()
	if err == nil && is != d.place {
		unix.Close(fd)
		err = d.displaced()
	}
	if err != nil {
		// Not wrapped: if the pool's directory does not exist, its volumes are not absent.
		return -1, fmt.Errorf("%w: %s", ErrAway, err.Error())
	}
	return fd, nil
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

// openAny opens any directory at the pool's path.
func (d *disk) openAny() (fd int, is place, err error) {
	fd, err = unix.Open(d.path, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, is, fmt.Errorf("open %s: %w", d.path, err)
	}
	if is, err = placeOf(fd); err != nil {
		unix.Close(fd)
		return -1, is, fmt.Errorf("stat %s: %w", d.path, err)
	}
	return fd, is, nil
}

// Pin keeps the pool's directory open until release. It ignores errors, which the next call
// returns again.
func (d *disk) Pin() (release func()) {
	r, err := d.enter()
	if err != nil {
		return func() {}
	}
	return func() { d.leave(r) }
}

// within calls fn with a path to the pool's directory.
func (d *disk) within(fn func(root string) error) error {
	r, err := d.enter()
	if err != nil {
		return err
	}
	defer d.leave(r)
	return named(fn(r.path), r.path+"/", d.path+"/")
}

// namedError is an error whose text has the pool's path instead of the path of a descriptor. The
// number of the descriptor differs each time, so that the same error would look new.
type namedError struct {
	err  error
	text string
}

func (n *namedError) Error() string { return n.text }
func (n *namedError) Unwrap() error { return n.err }

// named replaces the path from in an error by to.
func named(err error, from, to string) error {
	if err == nil || !strings.Contains(err.Error(), from) {
		return err
	}
	return &namedError{err, strings.ReplaceAll(err.Error(), from, to)}
}
