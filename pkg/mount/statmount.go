package mount

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// syscalls reads the table with listmount(2) and statmount(2), since Linux 6.8. The kernel
// does not reuse a mount ID before the next boot.
type syscalls struct{}

// mountRequest is the first version of struct mnt_id_req in linux/mount.h.
type mountRequest struct {
	size  uint32
	_     uint32
	id    uint64
	param uint64
}

// rootOfNamespace requests all mounts below the root directory (LSMT_ROOT).
const rootOfNamespace = ^uint64(0)

// wanted is the set of fields to request. The kernel knows them without asking the
// filesystem, unlike its options (STATMOUNT_MNT_OPTS).
const wanted = statmountSuperblock | statmountMount | statmountRoot | statmountPoint | statmountType

const (
	statmountSuperblock = 0x01 // STATMOUNT_SB_BASIC
	statmountMount      = 0x02 // STATMOUNT_MNT_BASIC
	statmountRoot       = 0x08 // STATMOUNT_MNT_ROOT
	statmountPoint      = 0x10 // STATMOUNT_MNT_POINT
	statmountType       = 0x20 // STATMOUNT_FS_TYPE
	statmountOptions    = 0x80 // STATMOUNT_MNT_OPTS, since Linux 6.11
)

// mountStatus is struct statmount of linux/mount.h. Texts follow it. Their offsets count
// from its end.
type mountStatus struct {
	size        uint32
	options     uint32
	mask        uint64
	deviceMajor uint32
	deviceMinor uint32
	_           uint64
	_, fsType   uint32
	id          uint64
	_           [56]byte
	root, point uint32
	_           [400]byte
}

func (syscalls) all(known []Info) ([]Info, error) {
	ids, err := listMounts()
	if err != nil {
		return nil, err
	}
	return statMounts(ids, known)
}

func (syscalls) again(mounts []Info) ([]Info, error) {
	ids := make([]uint64, len(mounts))
	for i, m := range mounts {
		ids[i] = m.id
	}
	return statMounts(ids, nil)
}

func (syscalls) of(fd int) (Info, error) {
	id, err := mountOf(fd)
	if err != nil {
		return Info{}, err
	}
	m, err := statMount(id, make([]uint64, statusWords))
	if errors.Is(err, unix.ENOENT) || err == nil && m.Point == "" {
		return Info{}, errNoMount
	}
	return m, err
}

func (syscalls) options(fd int) ([]string, error) {
	id, err := mountOf(fd)
	if err != nil {
		return nil, err
	}
	status, err := askStatmount(id, statmountOptions, make([]uint64, statusWords))
	if err != nil {
		return nil, err
	}
	return splitOptions(status.text(statmountOptions, status.options)), nil
}

// mountOf returns the unique mount ID of an open file.
func mountOf(fd int) (uint64, error) {
	var st unix.Statx_t
	if err := unix.Statx(fd, "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, unix.STATX_MNT_ID_UNIQUE, &st); err != nil {
		return 0, os.NewSyscallError("statx", err)
	}
	if st.Mask&unix.STATX_MNT_ID_UNIQUE == 0 {
		return 0, unix.ENOSYS
	}
	return st.Mnt_id, nil
}

// listMounts returns the IDs of all mounts. One call returns them all, and the table does
// not change during a call, so no mount is missed.
func listMounts() ([]uint64, error) {
	for ids := make([]uint64, 1<<10); ; ids = make([]uint64, 4*len(ids)) {
		request := mountRequest{size: uint32(unsafe.Sizeof(mountRequest{})), id: rootOfNamespace}
		n, _, errno := unix.Syscall6(unix.SYS_LISTMOUNT, uintptr(unsafe.Pointer(&request)), uintptr(unsafe.Pointer(&ids[0])), uintptr(len(ids)), 0, 0, 0)
		if errno != 0 {
			return nil, os.NewSyscallError("listmount", errno)
		}
		if int(n) < len(ids) {
			return ids[:n], nil
		}
	}
}

// statMounts returns the mounts with these IDs. Mounts that are gone are left out, and
// known mounts are returned as they are. Both arguments are ordered by ID.
func statMounts(ids []uint64, known []Info) ([]Info, error) {
	mounts := make([]Info, 0, len(ids))
	buffer := make([]uint64, statusWords)
	for _, id := range ids {
		for len(known) > 0 && known[0].id < id {
			known = known[1:]
		}
		if len(known) > 0 && known[0].id == id {
			mounts = append(mounts, known[0])
			continue
		}
		m, err := statMount(id, buffer)
		if errors.Is(err, unix.ENOENT) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if m.Point != "" { // it is still below the root directory
			mounts = append(mounts, m)
		}
	}
	return mounts, nil
}

const (
	// statusWords has room for a mount with two paths of usual length. Its unit is 8 bytes.
	statusWords = 1 << 10
	// mostStatusWords has room for the longest paths that the kernel returns.
	mostStatusWords = 1 << 20
)

func statMount(id uint64, buffer []uint64) (Info, error) {
	status, err := askStatmount(id, wanted, buffer)
	if err != nil {
		return Info{}, err
	}
	return status.info(), nil
}

// askStatmount requests parts of the status of a mount, and enlarges the buffer as
// necessary.
func askStatmount(id, parts uint64, buffer []uint64) (mountTexts, error) {
	for ; len(buffer) <= mostStatusWords; buffer = make([]uint64, 4*len(buffer)) {
		request := mountRequest{size: uint32(unsafe.Sizeof(mountRequest{})), id: id, param: parts}
		_, _, errno := unix.Syscall6(unix.SYS_STATMOUNT, uintptr(unsafe.Pointer(&request)), uintptr(unsafe.Pointer(&buffer[0])), uintptr(8*len(buffer)), 0, 0, 0)
		switch {
		case errno == 0:
			return readStatus(unsafe.Slice((*byte)(unsafe.Pointer(&buffer[0])), 8*len(buffer)))
		case !errors.Is(errno, unix.EOVERFLOW):
			return mountTexts{}, os.NewSyscallError("statmount", errno)
		}
	}
	return mountTexts{}, os.NewSyscallError("statmount", unix.EOVERFLOW)
}

// mountTexts is an answer of statmount: the structure and its texts.
type mountTexts struct {
	*mountStatus
	texts []byte
}

func readStatus(buffer []byte) (mountTexts, error) {
	status := (*mountStatus)(unsafe.Pointer(&buffer[0]))
	end := int(unsafe.Sizeof(*status))
	if int(status.size) > len(buffer) || int(status.size) < end {
		return mountTexts{}, fmt.Errorf("statmount has written %d bytes, want %d to %d", status.size, end, len(buffer))
	}
	return mountTexts{status, buffer[end:status.size]}, nil
}

func (m mountTexts) info() Info {
	return newInfo(m.id, m.deviceMajor, m.deviceMinor, m.text(statmountType, m.fsType), m.text(statmountRoot, m.root), m.text(statmountPoint, m.point))
}

// text returns one text, or "" if the kernel has not written it.
func (m mountTexts) text(part uint64, offset uint32) string {
	if m.mask&part == 0 || int(offset) >= len(m.texts) {
		return ""
	}
	found, _, _ := bytes.Cut(m.texts[offset:], []byte{0})
	return string(found)
}
