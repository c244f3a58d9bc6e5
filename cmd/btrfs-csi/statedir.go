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
	// stateDirVariable holds it for all commands that are run in a driver's container.
	stateDirVariable = "BTRFS_CSI_STATE_DIR"

	stateDirMode = 0o700
	// kubeletMode is what a kubelet gives a directory of hostPath that it has made.
	kubeletMode = 0o755
)

// addStateDir adds the flag of the directory that a driver keeps everything in.
func addStateDir(cmd *cobra.Command, stateDir *string) {
	cmd.Flags().StringVar(stateDir, "state-dir", cmp.Or(os.Getenv(stateDirVariable), defaultStateDir),
		"directory that holds the index and the pools; $"+stateDirVariable+" is the default, if it is set")
}

// makeStateDir makes the directory where it is not there. In a cluster the kubelet has just
// made it, for everybody to read: an empty one with the mode of that is as good as made here.
// Any other has been somebody's choice, and keeps its mode.
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
