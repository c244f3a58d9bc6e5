package main

import (
	"cmp"
	"os"

	"github.com/spf13/cobra"
)

const (
	defaultStateDir = "/var/lib/btrfs-csi"
	// stateDirVariable tells it to all commands that are run in a driver's container.
	stateDirVariable = "BTRFS_CSI_STATE_DIR"
)

// addStateDir adds the flag of the directory that a driver keeps everything in.
func addStateDir(cmd *cobra.Command, stateDir *string) {
	cmd.Flags().StringVar(stateDir, "state-dir", cmp.Or(os.Getenv(stateDirVariable), defaultStateDir),
		"directory that holds the index and the pools; $"+stateDirVariable+" is the default, if it is set")
}
