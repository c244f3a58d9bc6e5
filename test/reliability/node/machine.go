package node

import (
	"context"
	"fmt"
	"os/exec"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs"
	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs/btrfstest"
)

// Version returns what a driver prints as its version.
func Version(ctx context.Context, binary string) (string, error) {
	out, err := exec.CommandContext(ctx, binary, "version").Output()
	if err != nil {
		return "", fmt.Errorf("%s version: %w", binary, err)
	}
	return strings.Join(strings.Fields(string(out)), " "), nil
}

// Kernel returns the version of the running kernel.
func Kernel() (string, error) {
	var name unix.Utsname
	err := unix.Uname(&name)
	version, _, _ := strings.Cut(unix.ByteSliceToString(name.Release[:]), "-") // the distribution's suffix follows
	return version, err
}

// Modes returns all quota modes of the kernel.
func Modes() []btrfs.QuotaMode {
	if !btrfstest.SimpleQuota.Holds() {
		return []btrfs.QuotaMode{btrfs.QuotaFull, btrfs.QuotaNone}
	}
	return []btrfs.QuotaMode{btrfs.QuotaFull, btrfs.QuotaSimple, btrfs.QuotaNone}
}
