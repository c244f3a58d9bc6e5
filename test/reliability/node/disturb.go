package node

import (
	"context"
	"fmt"
	"os/exec"
	"strconv"
)

// BuildDisturbed builds a driver from its source, in which some steps of an operation wait, or
// follow a commit of the filesystem. It is the driver that is deployed, with the tests of its main package
// built in. A Node starts it if Disturbed names it.
func BuildDisturbed(ctx context.Context, source, binary string, flags ...string) error {
	args := append([]string{"test", "-c", "-o", binary}, flags...)
	cmd := exec.CommandContext(ctx, "go", append(args, "./cmd/btrfs-csi")...)
	cmd.Dir = source
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build the driver that is disturbed: %w: %s", err, out)
	}
	return nil
}

// disturb changes a command of the driver into one of the disturbed driver.
func (n *Node) disturb(cmd *exec.Cmd) {
	cmd.Path, cmd.Args[0] = n.Disturbed, n.Disturbed
	cmd.Env = append(cmd.Env, "BTRFS_CSI_TEST_AS_COMMAND=1", "BTRFS_CSI_TEST_DISTURB="+strconv.FormatUint(n.Seed+uint64(n.launches), 10))
}
