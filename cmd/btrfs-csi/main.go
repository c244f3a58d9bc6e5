// The Go runtime would read the mount table at the start, for a CPU limit. While the disk
// of one btrfs does not answer the kernel does not get to the end of that table, holds it
// locked, and nobody on the node can mount. So no limit is looked for; the chart sets none.
//
//go:debug containermaxprocs=0

// Command btrfs-csi is the CSI driver for btrfs, and what looks at its pools.
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
		Long: `btrfs-csi serves volumes, snapshots and clones on btrfs to Kubernetes, or to
any other client of the Container Storage Interface.

A volume is a subvolume, a snapshot a read-only subvolume, and a restore or
clone an instant copy-on-write child of its source.`,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.AddCommand(newServe(), newPools(), newList(), newTree(), newHistory(), newCheck(), newLeftovers(), newVersion())
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
