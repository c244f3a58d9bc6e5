package main

import (
	"context"
	"errors"

	"github.com/spf13/cobra"

	"github.com/btrfs-csi/btrfs-csi/pkg/cluster/client"
	"github.com/btrfs-csi/btrfs-csi/pkg/cluster/prune"
	"github.com/btrfs-csi/btrfs-csi/pkg/driver"
)

func newPrune() *cobra.Command {
	var (
		output     outputFlag
		kubeconfig string
		filter     prune.Filter
		remove     bool
	)
	cmd := &cobra.Command{
		Use:   "prune",
		Short: "List or delete the objects of removed nodes, or of a lost disk, in the cluster",
		Long: `Prune lists the Pools, Subvolumes, PersistentVolumes and VolumeSnapshotContents of
nodes that are no longer in the cluster. No controller handles these objects, so their
deletion hangs. With --delete, prune deletes them, except for objects that a
PersistentVolumeClaim or a VolumeSnapshot still uses.

With --pool-id, prune lists the objects of a pool that no node has, because its disk
is lost. A pool that a node refuses is not lost, and the status says so.

Prune never deletes data on disks. If you attach a disk to another node, all its
volumes are found again. So think before you delete.

You can run prune anywhere, with the rights of a cluster administrator.`,
		Example: `  kubectl delete node worker-3
  btrfs-csi prune
  btrfs-csi prune --node worker-3 --delete

  kubectl get pools.btrfs-csi.github.io     # STATE is Away
  btrfs-csi prune --pool-id 4f0c5f8e-6b0e-4a52-9d0b-6a3f1c1f2e77 --delete`,
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
			rows, failed := pruned(cmd.Context(), found, remove)
			return errors.Join(failed, output.print(cmd.OutOrStdout(), rows, func(t *table) {
				t.row("KIND", "NAME", "NODE", "PVC/VOLUMESNAPSHOT", "STATUS")
				for _, r := range rows {
					t.row(r.Kind, r.Name, r.Node, r.RequestedBy, r.status())
				}
			}))
		},
	}
	f := cmd.Flags()
	f.StringVar(&kubeconfig, "kubeconfig", "", "kubeconfig of the cluster; by default that of kubectl")
	f.StringVar(&filter.Node, "node", "", "only objects of this node")
	f.StringVar(&filter.Pool, "pool-id", "", "only objects of this pool, which no node has")
	f.BoolVar(&remove, "delete", false, "delete the objects")
	output.add(cmd)
	return cmd
}

// pruned deletes the objects that may be deleted, if remove is true. It returns a
// row for each object.
func pruned(ctx context.Context, found []prune.Object, remove bool) (rows []pruneRow, failed error) {
	rows = []pruneRow{}
	for _, o := range found {
		row := pruneRow{Object: o}
		if remove && o.Kept == "" {
			err := o.Remove(ctx)
			failed = errors.Join(failed, err)
			row.Deleted = err == nil
		}
		rows = append(rows, row)
	}
	return rows, failed
}

// pruneRow is one row of the output.
type pruneRow struct {
	prune.Object
	Deleted bool `json:"deleted"`
}

func (r pruneRow) status() string {
	switch {
	case r.Deleted:
		return "deleted"
	case r.Kept != "":
		return "kept: " + r.Kept
	}
	if r.Message != "" {
		return "stale: " + r.Message
	}
	return "stale"
}
