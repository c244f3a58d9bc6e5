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

// snapshotsUnderWay is the number of snapshots in the kernel, or on their way there.
var snapshotsUnderWay atomic.Int64

// snapCreate calls SNAP_CREATE_V2, which takes as long as a commit. Only concurrent
// snapshots run on C threads: Go lets only GOMAXPROCS goroutines into system calls until it
// notices, after microseconds to milliseconds, that one stays there. Meanwhile the others
// would miss the open commit.
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

// endings returns the pipe into which the threads write the handles of finished snapshots.
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
	err = unix.SetNonblock(ends[0], true) // so that the runtime's poller waits, not a thread
	if err != nil {
		return -1, errors.Join(err, unix.Close(ends[0]), unix.Close(ends[1]))
	}
	pipe.made, pipe.in = true, ends[1]
	go hear(bufio.NewReader(os.NewFile(uintptr(ends[0]), "snapshots")))
	return pipe.in, nil
}

// pipe is created at the first concurrent snapshot and stays open.
var pipe struct {
	sync.Mutex // protects the fields below
	made       bool
	in         int
}

// hear wakes the callers whose snapshots have ended.
func hear(ended io.Reader) {
	var call [C.sizeof_uintptr_t]byte
	for {
		if _, err := io.ReadFull(ended, call[:]); err != nil {
			// The threads still write to memory that the callers would free.
			panic(fmt.Sprintf("the threads that take snapshots cannot be heard: %v", err))
		}
		close(cgo.Handle(binary.NativeEndian.Uint64(call[:])).Value().(chan struct{}))
	}
}
