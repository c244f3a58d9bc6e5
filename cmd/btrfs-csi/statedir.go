package main

import (
	"cmp"
	"errors"
	"io"
	"os"

	"github.com/spf13/cobra"
)

const (
	defaultStateDir = "/var/lib/btrfs-csi"
	// stateDirVariable is an environment variable of the driver's container, for all
	// commands there.
	stateDirVariable = "BTRFS_CSI_STATE_DIR"

	stateDirMode = 0o700
	// kubeletMode is the mode of a hostPath directory that a kubelet has created.
	kubeletMode = 0o755
)

// addStateDir adds the flag of the state directory.
func addStateDir(cmd *cobra.Command, stateDir *string) {
	cmd.Flags().StringVar(stateDir, "state-dir", cmp.Or(os.Getenv(stateDirVariable), defaultStateDir),
		"directory of the index and the pools; the default is $"+stateDirVariable+", if it is set")
}

// makeStateDir creates the state directory. In a cluster the kubelet has created it,
// readable by everybody: an empty directory with the kubelet's mode gets stateDirMode. Any
// other mode is an administrator's choice and stays.
func makeStateDir(path string) error {
	if err := os.MkdirAll(path, stateDirMode); err != nil {
		return err
	}
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	defer dir.Close()
	is, err := dir.Stat()
	if err != nil || is.Mode().Perm() != kubeletMode {
		return err
	}
	if _, err := dir.Readdirnames(1); !errors.Is(err, io.EOF) {
		return err
	}
	return dir.Chmod(stateDirMode)
}
