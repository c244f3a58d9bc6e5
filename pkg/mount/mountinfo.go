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

// procfs reads the table from /proc/self/mountinfo. The kernel may give the ID of a removed
// mount to a new one.
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

// again reads the whole table. A mount with a reused ID on another device is left out.
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
		if m.id == id { // the ID is not reused while fd is open
			return m, nil
		}
	}
	return Info{}, errNoMount
}

// oldMountOf returns the mount ID of an open file, as mountinfo shows it.
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

// options reads the whole table, so any disk that does not answer blocks it.
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

// fastest returns the reader by system calls. It returns the reader of mountinfo if the
// kernel lacks these calls or a seccomp profile forbids them. The kernel rejects a request
// of size 0 before it looks at any mount.
func fastest() reader {
	for _, call := range []uintptr{unix.SYS_LISTMOUNT, unix.SYS_STATMOUNT} {
		var none mountRequest
		if _, _, errno := unix.Syscall6(call, uintptr(unsafe.Pointer(&none)), 0, 0, 0, 0, 0); errno != unix.EINVAL {
			return procfs{}
		}
	}
	return syscalls{}
}
