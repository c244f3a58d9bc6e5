package btrfs

// #cgo LDFLAGS: -lpthread
// #include <stdlib.h>
// #include "snapshots.h"
import "C"

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime/cgo"
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// snapshotsUnderWay are those that are in the kernel, or on their way there.
var snapshotsUnderWay atomic.Int64

// snapCreate is the ioctl SNAP_CREATE_V2, which lasts as long as a commit. One that
// is alone is run as any system call. Beside others it is run by a thread of C: Go
// lets no more of its own into the kernel at a time than there are processors,
// until it notices, tens of microseconds later or milliseconds, that one of them
// stays there. Until then nobody else would come as far as the kernel, to share the
// commit that is open.
func snapCreate(dir int, args *volArgsV2) error {
	defer snapshotsUnderWay.Add(-1)
	if snapshotsUnderWay.Add(1) > 1 {
		if ended, err := endings(); err == nil {
			return snapCreateBeside(dir, args, ended)
		}
	}
	return snapCreateAlone(dir, args)
}

func snapCreateAlone(dir int, args *volArgsV2) error {
	_, err := ioctl(dir, iocSnapCreateV2, unsafe.Pointer(args))
	return err
}

func snapCreateBeside(dir int, args *volArgsV2, ended int) error {
	s := (*C.struct_snapshot)(C.calloc(1, C.sizeof_struct_snapshot))
	defer C.free(unsafe.Pointer(s))
	done := make(chan struct{})
	call := cgo.NewHandle(done)
	defer call.Delete()
	s.call, s.ended, s.dir = C.uintptr_t(call), C.int(ended), C.int(dir)
	*(*volArgsV2)(unsafe.Pointer(&s.args)) = *args
	if C.start_snapshot(s) != 0 {
		return snapCreateAlone(dir, args)
	}
	<-done
	if s.error != 0 {
		return unix.Errno(s.error)
	}
	return nil
}

// endings returns the pipe to which the threads write what has ended.
func endings() (int, error) {
	pipe.Lock()
	defer pipe.Unlock()
	if pipe.made {
		return pipe.in, nil
	}
	var ends [2]int
	err := unix.Pipe2(ends[:], unix.O_CLOEXEC)
	if err != nil {
		return -1, err
	}
	err = unix.SetNonblock(ends[0], true) // to be waited for without a thread
	if err != nil {
		return -1, errors.Join(err, unix.Close(ends[0]), unix.Close(ends[1]))
	}
	pipe.made, pipe.in = true, ends[1]
	go hear(bufio.NewReader(os.NewFile(uintptr(ends[0]), "snapshots")))
	return pipe.in, nil
}

// pipe is made by the first that needs it, and stays.
var pipe struct {
	sync.Mutex // protects what follows
	made       bool
	in         int
}

// hear wakes those whose snapshot has ended.
func hear(ended io.Reader) {
	var call [C.sizeof_uintptr_t]byte
	for {
		if _, err := io.ReadFull(ended, call[:]); err != nil {
			// They write to memory that would be freed.
			panic(fmt.Sprintf("the threads that take snapshots cannot be heard: %v", err))
		}
		close(cgo.Handle(binary.NativeEndian.Uint64(call[:])).Value().(chan struct{}))
	}
}
