// Command cluster runs a Kubernetes of several nodes on this machine, to play with.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/btrfs-csi/btrfs-csi/test/e2e/cluster"
)

func main() {
	cluster.Init()
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	err := newCommand(runInside).ExecuteContext(ctx)
	stop()
	// A command in the lab has printed its own error.
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		os.Exit(exit.ExitCode())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "Error:", err)
		os.Exit(1)
	}
}

const defaultName = "default"

// name is the name of the cluster.
var name string

// inside runs a program of the components in the lab of a cluster.
type inside func(ctx context.Context, program string, args ...string) error

func newCommand(run inside) *cobra.Command {
	root := &cobra.Command{
		Use:   "cluster",
		Short: "Run a Kubernetes of several nodes on this machine",
		Long: `Cluster runs a real Kubernetes of several nodes on this machine: no containers
around it, no registry, nothing left behind when it ends. It needs root.

Its network is its own: the API server is reached with "cluster kubectl" or from
"cluster exec", not from the machine.`,
		SilenceUsage:     true,
		SilenceErrors:    true,
		TraverseChildren: true, // parse the flags of this command also before a subcommand that parses none
	}
	root.PersistentFlags().StringVar(&name, "name", defaultName, "name of the cluster, if there are several")
	root.AddCommand(newUp(), newDown(), newClean(), newKubectl(run), newHelm(run), newExec())
	return root
}

func newDown() *cobra.Command {
	return &cobra.Command{
		Use:   "down",
		Short: "End a cluster that is up",
		Args:  cobra.NoArgs,
		RunE:  func(*cobra.Command, []string) error { return cluster.Down(name) },
	}
}

func newClean() *cobra.Command {
	return &cobra.Command{
		Use:   "clean",
		Short: "Remove what killed clusters left on this machine, and kept logs",
		Long: `Clean removes what clusters and tests left on this machine whose processes were
killed: loop devices, cgroups, files. It also removes the logs that failed tests
kept. Clusters that are up are not touched. What is to be removed is also removed
when the next cluster starts, but for the logs.`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			return errors.Join(cluster.Clean(), cluster.CleanLogs())
		},
	}
}

// newKubectl passes all arguments after its name, also flags, to kubectl.
func newKubectl(run inside) *cobra.Command {
	return &cobra.Command{
		Use:   "kubectl ARGUMENT...",
		Short: "Run kubectl against a cluster that is up",
		Example: `  cluster kubectl -n btrfs-csi get pods
  cluster --name NAME kubectl get pods -A`,
		DisableFlagParsing: true,
		RunE:               func(cmd *cobra.Command, args []string) error { return run(cmd.Context(), "kubectl", args...) },
	}
}

// newHelm passes all arguments after its name to helm.
func newHelm(run inside) *cobra.Command {
	return &cobra.Command{
		Use:   "helm ARGUMENT...",
		Short: "Run helm against a cluster that is up",
		Long: `Helm runs helm against a cluster that is up: the program that the variable HELM
names, or else one that is beside this program, or else the one in the path.`,
		Example:            "  cluster helm -n btrfs-csi list",
		DisableFlagParsing: true,
		RunE:               func(cmd *cobra.Command, args []string) error { return run(cmd.Context(), helm(), args...) },
	}
}

func newExec() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "exec [flags] NODE COMMAND...",
		Short: "Run a command on a node, as root, outside of all pods",
		Example: `  cluster exec node1 btrfs filesystem usage /var/lib/btrfs-csi/pools/default
  cluster exec node1 ctr --namespace k8s.io images list
  cluster exec node1 bash`,
		Args: cobra.MinimumNArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			inside, err := cluster.EnterNode(cmd.Context(), name, args[0], args[1], args[2:]...)
			if err != nil {
				return err
			}
			return attached(inside)
		},
	}
	cmd.Flags().SetInterspersed(false)
	return cmd
}

// runInside is inside outside of tests.
func runInside(ctx context.Context, program string, args ...string) error {
	cmd, err := cluster.Enter(ctx, name, program, args...)
	if err != nil {
		return err
	}
	return attached(cmd)
}

// helm returns the path of helm. It is no component of a cluster. make builds it into the directory of this
// program, with its version in its name.
func helm() string {
	if path := os.Getenv("HELM"); path != "" {
		return path
	}
	if self, err := os.Executable(); err == nil {
		if beside, _ := filepath.Glob(filepath.Join(filepath.Dir(self), "helm-v*")); len(beside) > 0 {
			return beside[len(beside)-1]
		}
	}
	return "helm"
}

// attached runs a command with the input and output of this program.
func attached(cmd *exec.Cmd) error {
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	return cmd.Run()
}
