package node

import (
	"context"
	"fmt"
	"os/exec"
	"strconv"
)

// BuildDisturbed builds a driver from its source that may be disturbed: before a step of an
// operation somebody else commits, or the step waits, as often as not. It is the driver that
// is deployed, with its tests beside it. Whoever has built it starts it by disturb.
func BuildDisturbed(ctx context.Context, source, binary string, flags ...string) error {
	args := append([]string{"test", "-c", "-o", binary}, flags...)
	cmd := exec.CommandContext(ctx, "go", append(args, "./cmd/btrfs-csi")...)
	cmd.Dir = source
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build the driver that is disturbed: %w: %s", err, out)
	}
	return nil
}

// disturb makes a command line of the driver one of that which is disturbed.
func (n *Node) disturb(cmd *exec.Cmd) {
	cmd.Path, cmd.Args[0] = n.Disturbed, n.Disturbed
	cmd.Env = append(cmd.Env, "BTRFS_CSI_TEST_AS_COMMAND=1", "BTRFS_CSI_TEST_DISTURB="+strconv.FormatUint(n.Seed+uint64(n.launches), 10))
}
