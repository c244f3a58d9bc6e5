package main

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	"github.com/btrfs-csi/btrfs-csi/pkg/snapshot"
)

func newList() *cobra.Command {
	var o inspectOptions
	cmd := &cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "List volumes and snapshots",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			items, err := o.inventory(cmd.Context(), cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			slices.SortFunc(items, func(a, b snapshot.Item) int {
				return cmp.Or(cmp.Compare(a.ID, b.ID), cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Pool, b.Pool))
			})
			return o.output.print(cmd.OutOrStdout(), listed(items), func(t *table) {
				t.row("NAME", "KIND", "POOL", "SIZE", "USED", "EXCLUSIVE", "SOURCE", "PVC/VOLUMESNAPSHOT", "STATUS", "AGE")
				for _, i := range items {
					t.row(i.ID, i.Kind.String(), i.Pool, limit(i.Size), used(i), exclusive(i), i.Source.ID, i.RequestedBy(), statusOf(i), age(i.Created))
				}
			})
		},
	}
	o.add(cmd)
	return cmd
}

// listedItem replaces the kind by the word that users see.
type listedItem struct {
	snapshot.Item
	Kind string `json:"kind"`
}

func listed(items []snapshot.Item) []listedItem {
	rows := []listedItem{}
	for _, i := range items {
		rows = append(rows, listedItem{i, i.Kind.String()})
	}
	return rows
}

// limit formats a size. An unknown size is empty.
func limit(bytes int64) string {
	if bytes == 0 {
		return ""
	}
	return size(bytes)
}

// statusOf returns the status, with the number of nested subvolumes.
func statusOf(i snapshot.Item) string {
	if len(i.Nested) == 0 {
		return i.Status
	}
	return fmt.Sprintf("%s, %d nested", i.Status, len(i.Nested))
}

func used(i snapshot.Item) string {
	if i.Usage == nil {
		return ""
	}
	return size(i.Usage.Used)
}

func exclusive(i snapshot.Item) string {
	if i.Usage == nil {
		return ""
	}
	return size(i.Usage.Exclusive)
}
