package main

import (
	"errors"
	"fmt"
	"net/http"

	"github.com/spf13/cobra"

	"github.com/btrfs-csi/btrfs-csi/pkg/meta/index"
)

// removedItem replaces the kind by the word that users see.
type removedItem struct {
	index.Removed
	Kind string `json:"kind"`
}

func newHistory() *cobra.Command {
	var (
		stateDir string
		limited  uint16
		output   outputFlag
	)
	cmd := &cobra.Command{
		Use:   "history",
		Short: "List deleted volumes and snapshots",
		Long: `History lists the volumes and snapshots that were deleted on this node, the last one
first. The running driver keeps this list in its file index.db.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var removed []index.Removed
			err := askDriver(cmd.Context(), stateDir, http.MethodGet, "/history", &removed)
			if errors.Is(err, errNoDriver) {
				return fmt.Errorf("%w on %s: it is the one that remembers what was deleted", err, stateDir)
			}
			if err != nil {
				return err
			}
			if limited > 0 {
				removed = removed[:min(int(limited), len(removed))]
			}
			rows := []removedItem{}
			for _, r := range removed {
				rows = append(rows, removedItem{r, r.Kind.String()})
			}
			return output.print(cmd.OutOrStdout(), rows, func(t *table) {
				t.row("NAME", "KIND", "POOL", "SIZE", "SOURCE", "PVC/VOLUMESNAPSHOT", "AGE", "DELETED")
				for _, r := range rows {
					t.row(r.ID, r.Kind, r.Pool, limit(r.Size), r.Source.ID, r.RequestedBy(), age(r.Created), age(r.RemovedAt)+" ago")
				}
			})
		},
	}
	addStateDir(cmd, &stateDir)
	cmd.Flags().Uint16Var(&limited, "limit", 50, "list at most this many; 0 for all")
	output.add(cmd)
	return cmd
}
