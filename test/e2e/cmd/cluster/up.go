package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"time"

	"github.com/spf13/cobra"

	"github.com/btrfs-csi/btrfs-csi/test/e2e/cluster"
)

// upOptions are the flags of up.
type upOptions struct {
	nodes     int
	poolGiB   int64
	images    []string
	chart     string
	namespace string
	set       []string
}

func newUp() *cobra.Command {
	var o upOptions
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Start a cluster, and keep it up until Ctrl-C or down",
		Long: `Up builds what is missing, starts a cluster and keeps it up in the foreground,
until Ctrl-C or "cluster down". Then all of it is gone, the volumes too.`,
		Example: `  cluster up
  cluster up --nodes 3 --pool-size 50
  cluster up --image driver.tar --chart charts/btrfs-csi --set image.tag=dev`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if o.nodes < 1 || o.nodes > 200 {
				return fmt.Errorf("--nodes: want 1 to 200, have %d", o.nodes)
			}
			lab := cluster.Lab{Name: name}
			// This runs once more in the lab, where Main does not return.
			code := lab.Main(func() int {
				if err := o.up(cmd.Context()); err != nil {
					fmt.Fprintln(os.Stderr, "Error:", err)
					return 1
				}
				return 0
			})
			os.Exit(code)
			return nil
		},
	}
	flags := cmd.Flags()
	flags.IntVar(&o.nodes, "nodes", 2, "number of nodes")
	flags.Int64Var(&o.poolGiB, "pool-size", 10, "size in GiB of the pool of each node, a sparse file; 0 for no pool")
	flags.StringArrayVar(&o.images, "image", nil, "archive of images to load into the nodes (repeat)")
	flags.StringVar(&o.chart, "chart", "", "chart to install when the cluster is up")
	flags.StringVar(&o.namespace, "namespace", releaseName, "namespace for the chart")
	flags.StringArrayVar(&o.set, "set", nil, "value for the chart, NAME=VALUE (repeat)")
	return cmd
}

func (o *upOptions) up(ctx context.Context) error {
	options := cluster.Options{Images: o.images, Log: os.Stdout}
	for range o.nodes {
		options.Nodes = append(options.Nodes, o.node())
	}
	c, err := cluster.Start(ctx, options)
	if err != nil {
		return err
	}
	if o.chart != "" {
		err = o.install(ctx, c)
	}
	if err == nil {
		printUsage(c)
		<-ctx.Done()
	}
	return errors.Join(err, c.Stop())
}

func (o *upOptions) node() cluster.NodeOptions {
	if o.poolGiB <= 0 {
		return cluster.NodeOptions{PoolSize: -1}
	}
	return cluster.NodeOptions{PoolSize: o.poolGiB << 30}
}

// releaseName is the name of the release of the chart.
const releaseName = "btrfs-csi"

// install installs the chart.
func (o *upOptions) install(ctx context.Context, c *cluster.Cluster) error {
	args := []string{"install", releaseName, "--namespace", o.namespace, "--create-namespace", "--wait"}
	for _, value := range o.set {
		args = append(args, "--set", value)
	}
	cmd := exec.CommandContext(ctx, helm(), append(args, o.chart)...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+c.Kubeconfig())
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("install the chart %s: %w", o.chart, err)
	}
	return nil
}

// printUsage prints how to use the cluster.
func printUsage(c *cluster.Cluster) {
	self := os.Args[0]
	if name != defaultName {
		self += " --name " + name
	}
	fmt.Printf(`
The cluster is up, after %.1f s. In another terminal, as root:

  %[2]s kubectl get pods -A
  %[2]s helm list -A
  %[2]s exec node1 bash

kubeconfig  %[3]s (the API server is reached from inside only)
logs        %[4]s

Ctrl-C here, or "%[2]s down" there, ends it.
`, time.Since(c.Began()).Seconds(), self, c.Kubeconfig(), c.LogDir())
}
