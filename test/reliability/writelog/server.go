package writelog

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/rpc"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// environment is the variable by which a server learns the directory to serve in.
const environment = "RELIABILITY_WRITELOG"

// mountName is the directory of the disks.
const mountName = "disks"

// Main serves disks and exits, if Start has started the process. Otherwise it returns. The program calls it first.
func Main() {
	dir := os.Getenv(environment)
	if dir == "" {
		return
	}
	if err := serve(filepath.Join(dir, mountName), stdio{os.Stdin, os.Stdout}); err != nil {
		fmt.Fprintln(os.Stderr, "writelog:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// stdio is the connection to the parent process.
type stdio struct {
	io.Reader
	io.WriteCloser
}

// serve mounts the disks and serves requests until there are no more.
func serve(at string, client io.ReadWriteCloser) error {
	root := &fs.Inode{}
	server, err := fs.Mount(at, root, &fs.Options{MountOptions: fuse.MountOptions{
		DirectMountStrict: true, Name: "writelog", FsName: "writelog", MaxBackground: 64, MaxWrite: 1 << 20,
	}})
	if err != nil {
		return err
	}
	requests := rpc.NewServer()
	if err := requests.RegisterName("Disks", &disks{root: root, stores: map[int]*store{}}); err != nil {
		return errors.Join(err, server.Unmount())
	}
	requests.ServeConn(client)
	return server.Unmount() // if that fails the mount ends with the process
}

// disks are the disks of a server. Server and Disk call its methods.
type disks struct {
	root *fs.Inode

	mu     sync.Mutex // protects what follows
	next   int
	stores map[int]*store
}

// Restore is the request for a disk with a state of another one.
type Restore struct {
	Of int
	State
}

// Ready returns when the server can serve disks.
func (d *disks) Ready(struct{}, *struct{}) error { return nil }

// Open makes a disk over a file.
func (d *disks) Open(path string, id *int) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	info, err := f.Stat()
	if err != nil {
		return err
	}
	return d.add(newStore(file{f}, info.Size()), id)
}

// Restore makes a disk.
func (d *disks) Restore(r Restore, id *int) error {
	of, err := d.get(r.Of)
	if err != nil {
		return err
	}
	return d.add(newStore(view{of, r.State}, of.size), id)
}

func (d *disks) add(s *store, id *int) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.next++
	*id = d.next
	d.stores[*id] = s
	inode := d.root.NewPersistentInode(context.Background(), &node{store: s}, fs.StableAttr{Mode: fuse.S_IFREG})
	if !d.root.AddChild(strconv.Itoa(*id), inode, false) {
		return fmt.Errorf("disk %d is there already", *id)
	}
	return nil
}

func (d *disks) get(id int) (*store, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	s := d.stores[id]
	if s == nil {
		return nil, fmt.Errorf("there is no disk %d", id)
	}
	return s, nil
}

// locked runs fn on a disk without concurrent reads and writes.
func (d *disks) locked(id int, fn func(*store)) error {
	s, err := d.get(id)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	fn(s)
	return nil
}

// Length returns the length of the log.
func (d *disks) Length(id int, length *int) error {
	return d.locked(id, func(s *store) { *length = len(s.log) })
}

// Log returns the log, without the data.
func (d *disks) Log(id int, log *[]Entry) error {
	return d.locked(id, func(s *store) { *log = append(*log, s.log...) })
}

// Reads returns the pages of the image that were read.
func (d *disks) Reads(id int, pages *[]int64) error {
	return d.locked(id, func(s *store) { *pages = slices.AppendSeq(*pages, maps.Keys(s.reads)) })
}

// Drop removes a disk. Disks that were restored from it stay.
func (d *disks) Drop(id int, _ *struct{}) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.stores, id)
	d.root.RmChild(strconv.Itoa(id))
	return nil
}

// node is the file of a disk. The kernel caches nothing of it.
type node struct {
	fs.Inode
	store *store
}

var (
	_ fs.NodeOpener    = (*node)(nil)
	_ fs.NodeGetattrer = (*node)(nil)
	_ fs.NodeReader    = (*node)(nil)
	_ fs.NodeWriter    = (*node)(nil)
	_ fs.NodeFsyncer   = (*node)(nil)
	_ fs.NodeAllocater = (*node)(nil)
)

func (n *node) Open(context.Context, uint32) (fs.FileHandle, uint32, syscall.Errno) {
	return nil, fuse.FOPEN_DIRECT_IO, 0
}

func (n *node) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	size := uint64(n.store.size)
	out.Mode, out.Size, out.Blocks = fuse.S_IFREG|0o600, size, size/512
	return 0
}

func (n *node) Read(_ context.Context, _ fs.FileHandle, to []byte, offset int64) (fuse.ReadResult, syscall.Errno) {
	to = to[:max(0, min(int64(len(to)), n.store.size-offset))]
	return fuse.ReadResultData(to), fs.ToErrno(n.store.readAt(to, offset))
}

func (n *node) Write(_ context.Context, _ fs.FileHandle, from []byte, offset int64) (uint32, syscall.Errno) {
	if offset+int64(len(from)) > n.store.size {
		return 0, syscall.ENOSPC
	}
	return uint32(len(from)), fs.ToErrno(n.store.writeAt(from, offset))
}

func (n *node) Fsync(context.Context, fs.FileHandle, uint32) syscall.Errno {
	n.store.flush()
	return 0
}

func (n *node) Allocate(_ context.Context, _ fs.FileHandle, offset, size uint64, mode uint32) syscall.Errno {
	if mode&(unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_ZERO_RANGE) == 0 {
		return syscall.EOPNOTSUPP
	}
	return fs.ToErrno(n.store.zero(int64(offset), int64(size)))
}
