package btrfs

// #cgo LDFLAGS: -lpthread
// #include <stdlib.h>
// #include "snapshots.h"
import "C"

import (
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Copy is a snapshot to be taken; see Snapshot.
type Copy struct {
	Dst, Src string
	ReadOnly bool
}

// Snapshots takes several snapshots, each as Snapshot does, at once, so that they
// share as few commits as the kernel allows: two, however many they are. It calls
// done with the index of each when that has ended, one after the other, and returns
// after the last.
//
// The threads are those of C. Go lets no more of its own into the kernel at a time
// than there are processors, until it notices that one of them stays there; by then
// the first would have committed without the others.
func Snapshots(copies []Copy, done func(i int, err error)) {
	switch len(copies) {
	case 0:
		return
	case 1:
		done(0, Snapshot(copies[0].Dst, copies[0].Src, copies[0].ReadOnly))
		return
	}
	ended, end, err := os.Pipe()
	if err != nil {
		for i := range copies {
			done(i, fmt.Errorf("take snapshots: %w", err))
		}
		return
	}
	defer ended.Close()
	defer end.Close()
	memory := C.calloc(C.size_t(len(copies)), C.sizeof_struct_snapshot)
	defer C.free(memory)
	snapshots := unsafe.Slice((*C.struct_snapshot)(memory), len(copies))
	var started []int // what each of them is in copies
	var opened []int
	defer func() {
		for _, fd := range opened {
			unix.Close(fd)
		}
	}()
	for i, c := range copies {
		s := &snapshots[len(started)]
		fds, err := c.open(s)
		opened = append(opened, fds...)
		if err != nil {
			done(i, c.explain(err))
			continue
		}
		s.number, s.ended = C.int(len(started)), C.int(end.Fd())
		started = append(started, i)
	}
	C.take_snapshots(&snapshots[0], C.int(len(started)))
	for range started {
		s := &snapshots[next(ended)]
		i := started[s.number]
		if s.error == 0 {
			done(i, nil)
		} else {
			done(i, copies[i].explain(unix.Errno(s.error)))
		}
	}
}

func (c Copy) explain(err error) error {
	return fmt.Errorf("snapshot %q to %q: %w", c.Src, c.Dst, err)
}

// next returns the number that a thread writes when it has ended.
func next(ended *os.File) int {
	var number [C.sizeof_int]byte
	_, err := io.ReadFull(ended, number[:])
	if err != nil {
		// They write to memory that would be freed.
		panic(fmt.Sprintf("the threads that take snapshots cannot be heard: %v", err))
	}
	return int(binary.NativeEndian.Uint32(number[:]))
}

// open fills in what a thread needs, and returns what it has opened.
func (c Copy) open(s *C.struct_snapshot) (opened []int, err error) {
	parent, name := filepath.Split(c.Dst)
	if name == "" || name == "." || name == ".." {
		return nil, unix.EINVAL
	}
	source, err := openDir(c.Src)
	if err != nil {
		return nil, err
	}
	if err := requireSubvolume(source); err != nil {
		return []int{source}, err
	}
	dir, err := openDir(parent)
	if err != nil {
		return []int{source}, err
	}
	opened = []int{source, dir}
	args, err := snapArgs(source, name, c.ReadOnly)
	if err != nil {
		return opened, err
	}
	s.dir = C.int(dir)
	*(*volArgsV2)(unsafe.Pointer(&s.args)) = *args
	return opened, nil
}
