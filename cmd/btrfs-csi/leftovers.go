package main

import (
	"context"
	"errors"

	"github.com/spf13/cobra"

	"github.com/btrfs-csi/btrfs-csi/pkg/cluster/client"
	"github.com/btrfs-csi/btrfs-csi/pkg/cluster/prune"
	"github.com/btrfs-csi/btrfs-csi/pkg/driver"
)

func newLeftovers() *cobra.Command {
	var (
		output     outputFlag
		kubeconfig string
		filter     prune.Filter
		remove     bool
	)
	cmd := &cobra.Command{
		Use:   "leftovers",
		Short: "List what removed nodes, or a lost disk, have left in the cluster",
		Long: `Leftovers lists the pools, subvolumes, PersistentVolumes and
VolumeSnapshotContents of nodes that the cluster has no more. Nobody looks after
them: what is being deleted hangs. With --delete they are deleted, except for what
a PersistentVolumeClaim or a VolumeSnapshot still stands for.

With --pool-id it lists those of a pool that no node has, whose disk is gone for good.
One that a node refuses is not gone; the status says so.

What is on the disks stays there. A disk that is attached to another node is found
again, with all its volumes; so think before you delete.

It runs anywhere, with the rights of an administrator of the cluster.`,
		Example: `  kubectl delete node worker-3
  btrfs-csi leftovers
  btrfs-csi leftovers --node worker-3 --delete

  kubectl get pools.btrfs-csi.github.io     # STATE is Away
  btrfs-csi leftovers --pool-id 4f0c5f8e-6b0e-4a52-9d0b-6a3f1c1f2e77 --delete`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			clients, err := connect(kubeconfig, 50, 100)
			if err != nil {
				return err
			}
			found, err := prune.Find(cmd.Context(), clients, client.Identity{Driver: driver.Name, TopologyPrefix: driver.TopologyPrefix}, filter)
			if err != nil {
				return err
			}
			rows, failed := clearLeftovers(cmd.Context(), found, remove)
			return errors.Join(failed, output.print(cmd.OutOrStdout(), rows, func(t *table) {
				t.row("KIND", "NAME", "NODE", "CLAIM", "STATUS")
				for _, r := range rows {
					t.row(r.Kind, r.Name, r.Node, r.Claim, r.status())
				}
			}))
		},
	}
	f := cmd.Flags()
	f.StringVar(&kubeconfig, "kubeconfig", "", "kubeconfig of the cluster; what kubectl would take without it")
	f.StringVar(&filter.Node, "node", "", "of this node only")
	f.StringVar(&filter.Pool, "pool-id", "", "of this pool, which no node has")
	f.BoolVar(&remove, "delete", false, "delete them")
	output.add(cmd)
	return cmd
}

// clearLeftovers deletes what may be, if asked to, and returns a row for each.
func clearLeftovers(ctx context.Context, found []prune.Object, remove bool) (rows []leftoverRow, failed error) {
	rows = []leftoverRow{}
	for _, o := range found {
		row := leftoverRow{Object: o}
		if remove && o.Kept == "" {
			err := o.Remove(ctx)
			failed = errors.Join(failed, err)
			row.Deleted = err == nil
		}
		rows = append(rows, row)
	}
	return rows, failed
}

// leftoverRow is what leftovers shows of one.
type leftoverRow struct {
	prune.Object
	Deleted bool `json:"deleted"`
}

func (r leftoverRow) status() string {
	switch {
	case r.Deleted:
		return "deleted"
	case r.Kept != "":
		return "kept: " + r.Kept
	}
	if r.Message != "" {
		return "left over: " + r.Message
	}
	return "left over"
}
