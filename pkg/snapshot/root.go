package snapshot

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// root is the pool's directory, open while operations use it.
type root struct {
	fd     int
	path   string // to it, that no unmount can redirect
	users  int
	opened time.Time
}

// freshRoot is how long operations join others in the use of one descriptor. In a
// pool where they never cease, a detached mount is noticed too.
const freshRoot = time.Second

// enter opens the pool's directory, or joins others in its use. leave is to be
// called with it.
func (d *disk) enter() (*root, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.root == nil || time.Since(d.root.opened) > freshRoot {
		fd, err := d.open()
		if err != nil {
			return nil, err
		}
		d.root = &root{fd: fd, path: fmt.Sprintf("/proc/self/fd/%d", fd), opened: time.Now()}
	}
	d.root.users++
	return d.root, nil
}

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

func (d *disk) open() (int, error) {
	fd, err := unix.Open(d.path, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("%w: open %s: %w", ErrPoolAway, d.path, err)
	}
	var st unix.Stat_t
	if err = unix.Fstat(fd, &st); err == nil && st.Dev != d.device {
		err = errors.New("another filesystem is mounted there")
	}
	if err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("%w: stat %s: %w", ErrPoolAway, d.path, err)
	}
	return fd, nil
}

// Hold opens the pool's directory once for all that is done until release. What
// fails here fails again there.
func (d *disk) Hold() (release func()) {
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
	return fn(r.path)
}
