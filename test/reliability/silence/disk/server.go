package disk

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// MostSilence is the time after which the server of a silent disk ends the silence.
const MostSilence = 8 * time.Second

// These are the orders to the server and its replies, a line each.
const (
	silence = "silence"
	answer  = "answer"
	silent  = "silent"
	answers = "answers"
	late    = "late" // the silence had ended before
)

// environment is the variable by which a server learns the directory to serve in.
const environment = "RELIABILITY_DISK"

// Main serves a disk and exits, if Start has started the process. Otherwise it returns. TestMain calls
// it first.
func Main() {
	dir := os.Getenv(environment)
	if dir == "" {
		return
	}
	if err := serve(dir, os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "disk:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// serve mounts the disk and follows orders until there are no more.
func serve(dir string, commands io.Reader, replies io.Writer) error {
	below, err := os.OpenFile(filepath.Join(dir, belowName), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer below.Close()
	info, err := below.Stat()
	if err != nil {
		return err
	}
	g := &gate{}
	file := &file{gate: g, below: below, size: uint64(info.Size())}
	root := &fs.Inode{}
	server, err := fs.Mount(filepath.Join(dir, mountName), root, &fs.Options{
		MountOptions: fuse.MountOptions{DirectMountStrict: true, Name: "disk", FsName: dir, MaxBackground: 64},
		OnAdd: func(ctx context.Context) {
			root.AddChild(fileName, root.NewPersistentInode(ctx, file, fs.StableAttr{Mode: fuse.S_IFREG}), false)
		},
	})
	if err != nil {
		return err
	}
	fmt.Fprintln(replies, answers)
	for lines := bufio.NewScanner(commands); lines.Scan(); {
		switch lines.Text() {
		case silence:
			g.shut()
			fmt.Fprintln(replies, silent)
		case answer:
			if g.open() {
				fmt.Fprintln(replies, answers)
			} else {
				fmt.Fprintln(replies, late)
			}
		}
	}
	g.open()
	return server.Unmount() // if that fails the mount ends with the process
}

// gate stops requests while the disk is silent.
type gate struct {
	mu     sync.Mutex    // protects what follows
	opened chan struct{} // nil if the gate is open
	guard  *time.Timer
}

func (g *gate) shut() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.opened == nil {
		g.opened = make(chan struct{})
		g.guard = time.AfterFunc(MostSilence, func() { g.open() })
	}
}

// open reports whether the gate was shut.
func (g *gate) open() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.opened == nil {
		return false
	}
	g.guard.Stop()
	close(g.opened)
	g.opened = nil
	return true
}

func (g *gate) pass() {
	g.mu.Lock()
	opened := g.opened
	g.mu.Unlock()
	if opened != nil {
		<-opened
	}
}

// file is the disk. The kernel caches nothing of it.
type file struct {
	fs.Inode
	gate  *gate
	below *os.File
	size  uint64
}

var (
	_ fs.NodeOpener    = (*file)(nil)
	_ fs.NodeGetattrer = (*file)(nil)
	_ fs.NodeReader    = (*file)(nil)
	_ fs.NodeWriter    = (*file)(nil)
	_ fs.NodeFsyncer   = (*file)(nil)
	_ fs.NodeAllocater = (*file)(nil)
)

func (f *file) Open(context.Context, uint32) (fs.FileHandle, uint32, syscall.Errno) {
	return nil, fuse.FOPEN_DIRECT_IO, 0
}

func (f *file) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	out.Mode, out.Size, out.Blocks = fuse.S_IFREG|0o600, f.size, f.size/512
	return 0
}

func (f *file) Read(_ context.Context, _ fs.FileHandle, data []byte, offset int64) (fuse.ReadResult, syscall.Errno) {
	f.gate.pass()
	n, err := f.below.ReadAt(data, offset)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return fuse.ReadResultData(data[:n]), fs.ToErrno(err)
}

func (f *file) Write(_ context.Context, _ fs.FileHandle, data []byte, offset int64) (uint32, syscall.Errno) {
	f.gate.pass()
	n, err := f.below.WriteAt(data, offset)
	return uint32(n), fs.ToErrno(err)
}

func (f *file) Fsync(context.Context, fs.FileHandle, uint32) syscall.Errno {
	f.gate.pass()
	return fs.ToErrno(f.below.Sync())
}

func (f *file) Allocate(_ context.Context, _ fs.FileHandle, offset, size uint64, mode uint32) syscall.Errno {
	f.gate.pass()
	return fs.ToErrno(unix.Fallocate(int(f.below.Fd()), mode, int64(offset), int64(size)))
}
