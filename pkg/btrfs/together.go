package btrfs

// #include "together.h"
import "C"

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/btrfs-csi/btrfs-csi/internal/kernel"
)

// Pair is a subvolume and the snapshot that is to be made of it.
type Pair struct{ Dst, Src string }

// mostLead bounds how long SnapshotTogether waits for a commit to begin, in ms. The kernel's
// thread may miss its wake-up, and would then begin one after the commit interval only.
const mostLead = 50

// SnapshotTogether takes read-only snapshots, each like Snapshot, and tries to have all of them in
// one transaction of the filesystem around dir. They show one instant if their CreatedTransid is
// equal, and only then. Each Dst needs a directory of its own. After an error some may have been
// made.
//
// A snapshot ioctl joins the open transaction and requests its commit. The first request closes
// the transaction, unless an earlier transaction is still being committed: then the new one stays
// open until that commit has ended, and all ioctls that begin until then share it. So
// SnapshotTogether begins a commit (START_SYNC, which returns when nobody can join that
// transaction any more), and then all snapshots at once. That commit may take less than a
// millisecond. Go lets only as many goroutines into system calls as there are processors until it
// notices that one stays there, which may take ten. So the ioctls are called by threads of C.
//
// An ioctl writes the buffered data of its source first, which may last longer than the commit. So
// that is done before.
//
// Before Linux 6.6 each ioctl commits a transaction of its own, and SnapshotTogether of several
// fails with ErrUnsupported.
func SnapshotTogether(dir *os.File, pairs ...Pair) error {
	if len(pairs) > 1 && !SnapshotsShare() {
		return fmt.Errorf("several snapshots of one instant are %w: Linux 6.6 or later is wanted, found %s", ErrUnsupported, kernel.Release())
	}
	flushAll(pairs)
	all := newCalls(len(pairs))
	defer all.close()
	for i, p := range pairs {
		err := all.prepare(i, p)
		if err != nil {
			return err
		}
	}
	return all.run(dir, pairs)
}

// calls are snapshot ioctls that are called at once.
type calls struct {
	opened    []int
	args      []volArgsV2
	snapshots []C.struct_snapshot
	pinned    runtime.Pinner // args, while C has their addresses
}

func newCalls(n int) *calls {
	return &calls{args: make([]volArgsV2, n), snapshots: make([]C.struct_snapshot, n)}
}

func (c *calls) close() {
	c.pinned.Unpin()
	for _, fd := range c.opened {
		_ = unix.Close(fd)
	}
}

func (c *calls) open(path string) (int, error) {
	fd, err := openDirAt(unix.AT_FDCWD, path)
	if err == nil {
		c.opened = append(c.opened, fd)
	}
	return fd, err
}

// prepare opens what a call needs.
func (c *calls) prepare(i int, p Pair) error {
	source, err := c.open(p.Src)
	if err == nil {
		err = requireSubvolume(source) // see Snapshot
	}
	if err != nil {
		return fmt.Errorf("snapshot %q: %w", p.Src, err)
	}
	parent, name := filepath.Split(p.Dst)
	dir, err := c.open(parent)
	if err == nil && len(name) > subvolNameMax {
		err = unix.ENAMETOOLONG
	}
	if err != nil {
		return fmt.Errorf("snapshot to %q: %w", p.Dst, err)
	}
	c.args[i] = volArgsV2{fd: int64(source), flags: subvolRDOnly}
	copy(c.args[i].name[:], name)
	c.pinned.Pin(&c.args[i])
	c.snapshots[i] = C.struct_snapshot{dir: C.int(dir), args: unsafe.Pointer(&c.args[i])}
	return nil
}

func (c *calls) run(filesystem *os.File, pairs []Pair) error {
	C.snapshots_together(C.int(filesystem.Fd()), &c.snapshots[0], C.size_t(len(c.snapshots)),
		C.ulong(iocStartSync), C.ulong(iocSnapCreateV2), mostLead)
	errs := make([]error, len(pairs))
	for i, p := range pairs {
		if e := c.snapshots[i].error; e != 0 {
			errs[i] = fmt.Errorf("snapshot %q: to %q: %w", p.Src, p.Dst, unix.Errno(e))
		}
	}
	return errors.Join(errs...)
}

// flushAll writes the buffered data of all sources to the disk, as far as that works: the snapshots
// report what is wrong.
func flushAll(pairs []Pair) {
	var all sync.WaitGroup
	for _, p := range pairs {
		all.Go(func() { _ = flush(p.Src) })
	}
	all.Wait()
}

// flush writes the buffered data of a subvolume to the disk, without a commit. The kernel has no
// call for that. The snapshot ioctl does it before it looks whether its destination exists, which
// the subvolume itself does.
func flush(subvolume string) error {
	err := Snapshot(subvolume, subvolume, true)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	return err
}
