package mount

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/btrfs-csi/btrfs-csi/internal/kernel"
)

// Floor is the oldest Linux with all that Attach needs.
const Floor = "5.12"

// needed are the system calls of Attach. Every kernel refuses impossible flags with EINVAL,
// before it looks at anything else.
var needed = []struct {
	name  string
	probe func() error
}{
	{"open_tree", func() error { _, err := unix.OpenTree(-1, "", impossible); return err }},
	{"mount_setattr", func() error { return unix.MountSetattr(-1, "", impossible, &unix.MountAttr{}) }},
	{"move_mount", func() error { return unix.MoveMount(-1, "", -1, "", impossible) }},
}

const impossible = 1 << 31

// Supported returns an error if this process cannot mount any volume: the kernel is older
// than Floor, or does not let the process use a system call of Attach.
func Supported() error {
	for _, call := range needed {
		switch err := call.probe(); {
		case errors.Is(err, unix.ENOSYS):
			return fmt.Errorf("volumes cannot be mounted, because the kernel lacks the system call %s (%w): Linux %s or later is wanted, found %s; on a later one, a seccomp profile withholds it", call.name, err, Floor, kernel.Release())
		case errors.Is(err, unix.EPERM):
			return fmt.Errorf("volumes cannot be mounted, because the system call %s is forbidden (%w): run btrfs-csi as root with CAP_SYS_ADMIN, and a seccomp profile that allows the call", call.name, err)
		}
	}
	return nil
}
