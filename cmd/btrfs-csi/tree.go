package main

import (
	"cmp"
	"maps"
	"slices"

	"github.com/spf13/cobra"

	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
	"github.com/btrfs-csi/btrfs-csi/pkg/snapshot"
)

func newTree() *cobra.Command {
	var o inspectOptions
	cmd := &cobra.Command{
		Use:   "tree",
		Short: "Show volumes and snapshots below their sources",
		Long: `Tree shows every volume and snapshot below the volume or snapshot that it was made
from. A deleted source that still has copies is shown in parentheses.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			items, err := o.inventory(cmd.Context(), cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			roots := grow(items)
			return o.output.print(cmd.OutOrStdout(), nonNil(roots), func(t *table) {
				t.row("NAME", "KIND", "POOL", "SIZE", "USED", "STATUS", "AGE")
				for _, root := range roots {
					root.rows(t, "", "")
				}
			})
		},
	}
	o.add(cmd)
	return cmd
}

// branch is an item and its copies.
type branch struct {
	listedItem
	Children []*branch `json:"children,omitempty"`
}

func newBranch(i snapshot.Item) *branch { return &branch{listedItem: listedItem{i, i.Kind.String()}} }

// grow arranges items by lineage. A source that is gone gets a branch with the status Gone,
// even if a newer item has its ID, which happens outside of Kubernetes.
func grow(items []snapshot.Item) []*branch {
	all := map[meta.Ref]*branch{}
	var order []*branch
	for _, i := range items {
		b := newBranch(i)
		order = append(order, b)
		if i.Kind != "" {
			all[i.Ref()] = b
		}
	}
	gone := map[meta.Ref]*branch{}
	var roots []*branch
	for _, b := range order {
		if b.Source.IsZero() {
			roots = append(roots, b)
			continue
		}
		source := all[b.Source]
		if source != nil && b.CreatedTransid > 0 && source.CreatedTransid > b.CreatedTransid {
			source = nil
		}
		if source == nil {
			source = gone[b.Source]
		}
		if source == nil {
			source = newBranch(snapshot.Item{Entry: meta.Entry{Record: meta.Record{ID: b.Source.ID, Kind: kindOf(b.Source)}, Pool: b.Pool}, Status: "Gone"})
			gone[b.Source] = source
			roots = append(roots, source)
		}
		source.Children = append(source.Children, b)
	}
	byAge := func(a, b *branch) int { return cmp.Or(a.Created.Compare(b.Created), cmp.Compare(a.ID, b.ID)) }
	slices.SortFunc(roots, byAge)
	for _, b := range append(order, slices.Collect(maps.Values(gone))...) {
		slices.SortFunc(b.Children, byAge)
	}
	return roots
}

// kindOf guesses the kind of a source that is gone.
func kindOf(r meta.Ref) meta.Kind {
	if r.Class == meta.Snapshots {
		return meta.Committed
	}
	return meta.Active
}

func (b *branch) rows(t *table, first, rest string) {
	name := b.ID
	if b.Status == "Gone" {
		name = "(" + name + ")"
	}
	t.row(first+name, b.Kind, b.Pool, limit(b.Size), used(b.Item), b.Status, age(b.Created))
	for i, child := range b.Children {
		if i == len(b.Children)-1 {
			child.rows(t, rest+"└── ", rest+"    ")
		} else {
			child.rows(t, rest+"├── ", rest+"│   ")
		}
	}
}
