package mount

import (
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/btrfs-csi/btrfs-csi/internal/kernel"
	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs/btrfstest"
)

func TestSupported(t *testing.T) {
	btrfstest.RequireRoot(t)
	if err := Supported(); err != nil {
		t.Error(err)
	}
	for number, name := range map[uint32]string{
		unix.SYS_OPEN_TREE: "open_tree", unix.SYS_MOUNT_SETATTR: "mount_setattr", unix.SYS_MOVE_MOUNT: "move_mount",
	} {
		for errno, want := range map[unix.Errno]string{
			unix.ENOSYS: "Linux " + Floor + " or later is wanted, found " + kernel.Release(),
			unix.EPERM:  "seccomp profile that allows the call",
		} {
			var err error
			btrfstest.WhileRefused(t, func() { err = Supported() }, btrfstest.Call{Number: number, Err: errno})
			if err == nil || !strings.Contains(err.Error(), name) || !strings.Contains(err.Error(), want) {
				t.Errorf("%s is refused with %v: got %v, want %q", name, errno, err, want)
			}
		}
	}
	if err := Supported(); err != nil {
		t.Errorf("the refusals have stayed: %v", err)
	}
}
