package mount

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"strings"
	"unsafe"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// procfs reads the table from /proc/self/mountinfo. A mount is numbered by an ID that
// another one may get when it is gone.
type procfs struct{}

func (procfs) all([]Info) ([]Info, error) {
	f, err := os.Open(tableFile)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	lines, err := mountinfo.GetMountsFromReader(f, nil)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", tableFile, err)
	}
	mounts := make([]Info, len(lines))
	for i, line := range lines {
		fsType, _, _ := strings.Cut(line.FSType, ".")
		mounts[i] = newInfo(uint64(line.ID), uint32(line.Major), uint32(line.Minor), fsType, line.Root, line.Mountpoint)
	}
	return mounts, nil
}

// again reads them all, and leaves out what has the ID of one that is gone.
func (p procfs) again(mounts []Info) ([]Info, error) {
	wanted := map[[2]uint64]bool{}
	for _, m := range mounts {
		wanted[[2]uint64{m.id, m.Device}] = true
	}
	all, err := p.all(nil)
	var found []Info
	for _, m := range all {
		if wanted[[2]uint64{m.id, m.Device}] {
			found = append(found, m)
		}
	}
	return found, err
}

func (p procfs) of(fd int) (Info, error) {
	id, err := oldMountOf(fd)
	if err != nil {
		return Info{}, err
	}
	all, err := p.all(nil)
	if err != nil {
		return Info{}, err
	}
	for _, m := range all {
		if m.id == id { // which stays that of this mount while fd is open
			return m, nil
		}
	}
	return Info{}, errNoMount
}

// oldMountOf returns the ID in the file of the mount that an open file is on.
func oldMountOf(fd int) (uint64, error) {
	var st unix.Statx_t
	if err := unix.Statx(fd, "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, unix.STATX_MNT_ID, &st); err != nil {
		return 0, os.NewSyscallError("statx", err)
	}
	if st.Mask&unix.STATX_MNT_ID == 0 {
		return 0, errors.New("the kernel does not number its mounts: Linux 5.8 or later is wanted")
	}
	return st.Mnt_id, nil
}

// options reads the whole table, for which one disk that does not answer is enough to wait.
func (procfs) options(fd int) ([]string, error) {
	return ask(func() ([]string, error) {
		id, err := oldMountOf(fd)
		if err != nil {
			return nil, err
		}
		f, err := os.Open(tableFile)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		lines, err := mountinfo.GetMountsFromReader(f, func(line *mountinfo.Info) (skip, stop bool) { return uint64(line.ID) != id, false })
		if err != nil || len(lines) == 0 {
			return nil, cmp.Or(err, errNoMount)
		}
		return splitOptions(lines[0].VFSOptions), nil
	})
}

func splitOptions(options string) []string {
	return strings.FieldsFunc(options, func(r rune) bool { return r == ',' })
}

// fastest returns the reader by system calls, or that of the file where the kernel has no
// such calls, or a seccomp profile forbids them. A request of no size is refused before
// the kernel looks at any mount.
func fastest() reader {
	for _, call := range []uintptr{unix.SYS_LISTMOUNT, unix.SYS_STATMOUNT} {
		var none mountRequest
		if _, _, errno := unix.Syscall6(call, uintptr(unsafe.Pointer(&none)), 0, 0, 0, 0, 0); errno != unix.EINVAL {
			return procfs{}
		}
	}
	return syscalls{}
}
