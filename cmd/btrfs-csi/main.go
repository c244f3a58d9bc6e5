// At startup the Go runtime would read the mount table to find a CPU limit. While the disk of
// one btrfs does not answer, the kernel blocks in this read with the table locked, and nobody
// on the node can mount. So the runtime does not look for a limit; the chart sets none.
//
//go:debug containermaxprocs=0

// Command btrfs-csi is the CSI driver for btrfs, with commands to inspect its pools.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"syscall"

	"github.com/spf13/cobra"
)

// version is set by the build.
var version = "dev"

// errFindings makes check exit with 1 after it has printed everything.
var errFindings = errors.New("findings")

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := newCommand().ExecuteContext(ctx); err != nil {
		if !errors.Is(err, errFindings) {
			fmt.Fprintln(os.Stderr, "Error:", err)
		}
		stop()
		os.Exit(1)
	}
}

func newCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "btrfs-csi",
		Short: "Container Storage Interface driver for btrfs",
		Long: `btrfs-csi serves volumes, snapshots and clones on btrfs to Kubernetes and to other
clients of the Container Storage Interface (CSI).

A volume is a subvolume. A snapshot is a read-only subvolume. A restore or a clone is
an instant copy-on-write copy of its source.`,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.AddCommand(newServe(), newPools(), newList(), newTree(), newHistory(), newCheck(), newPrune(), newVersion())
	return root
}

func newVersion() *cobra.Command {
	var output outputFlag
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			v := map[string]string{"version": version, "goVersion": runtime.Version(), "platform": runtime.GOOS + "/" + runtime.GOARCH}
			if info, ok := debug.ReadBuildInfo(); ok {
				for _, s := range info.Settings {
					if s.Key == "vcs.revision" {
						v["revision"] = s.Value
					}
				}
			}
			return output.print(cmd.OutOrStdout(), v, func(t *table) {
				t.row("btrfs-csi", v["version"], v["goVersion"], v["platform"])
			})
		},
	}
	output.add(cmd)
	return cmd
}
