package reliability

import (
	"context"
	"fmt"
	"os/exec"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs"
	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs/btrfstest"
)

// version returns what a driver prints as its version.
func version(ctx context.Context, binary string) (string, error) {
	out, err := exec.CommandContext(ctx, binary, "version").Output()
	if err != nil {
		return "", fmt.Errorf("%s version: %w", binary, err)
	}
	return strings.Join(strings.Fields(string(out)), " "), nil
}

// kernel returns the version of the running kernel.
func kernel() (string, error) {
	var name unix.Utsname
	err := unix.Uname(&name)
	version, _, _ := strings.Cut(unix.ByteSliceToString(name.Release[:]), "-") // what follows is the distributor's
	return version, err
}

// modes returns all kinds of quota that the kernel has.
func modes() []btrfs.QuotaMode {
	if !btrfstest.SimpleQuota.Holds() {
		return []btrfs.QuotaMode{btrfs.QuotaFull, btrfs.QuotaNone}
	}
	return []btrfs.QuotaMode{btrfs.QuotaFull, btrfs.QuotaSimple, btrfs.QuotaNone}
}
