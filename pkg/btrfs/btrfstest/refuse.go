package btrfstest

import (
	"errors"
	"fmt"
	"runtime"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Call is a system call that is refused with an error, as a kernel does that lacks it.
type Call struct {
	Number uint32
	// Second is the value of the second argument, the request of an ioctl, with which the
	// call is refused. 0: with any.
	Second uint32
	Err    unix.Errno
}

// Offsets in struct seccomp_data. The lower half of an argument comes first on amd64 and arm64.
const (
	numberAt = 0
	secondAt = 16 + 8
)

// Refuse makes the kernel refuse calls of this process and its children, until they end.
func Refuse(calls ...Call) error { return refuse(unix.SECCOMP_FILTER_FLAG_TSYNC, calls) }

// WhileRefused runs fn on a thread whose calls are refused. The thread ends with fn.
func WhileRefused(t testing.TB, fn func(), calls ...Call) {
	t.Helper()
	var err error
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // for good: the filter stays with the thread
		if err = refuse(0, calls); err == nil {
			fn()
		}
	}()
	<-done
	if err != nil {
		t.Fatal(err)
	}
}

func refuse(flags uintptr, calls []Call) error {
	load := func(at uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: at}
	}
	unless := func(value uint32, skip uint8) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: skip, K: value}
	}
	answer := func(action uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: action}
	}
	var program []unix.SockFilter
	for _, call := range calls {
		refusal := []unix.SockFilter{answer(unix.SECCOMP_RET_ERRNO | uint32(call.Err))}
		if call.Second != 0 {
			refusal = append([]unix.SockFilter{load(secondAt), unless(call.Second, 1)}, refusal...)
		}
		program = append(program, load(numberAt), unless(call.Number, uint8(len(refusal))))
		program = append(program, refusal...)
	}
	program = append(program, answer(unix.SECCOMP_RET_ALLOW))
	filter := unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}
	thread, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, flags, uintptr(unsafe.Pointer(&filter)))
	switch {
	case errno != 0:
		return fmt.Errorf("seccomp: %w", errno)
	case thread != 0:
		return errors.New("seccomp: a thread has another filter")
	}
	return nil
}
