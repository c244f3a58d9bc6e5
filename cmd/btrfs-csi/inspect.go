package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
	"github.com/btrfs-csi/btrfs-csi/pkg/snapshot"
)

// inspectOptions are common to the commands that look at the pools. They read
// the ledgers on disk, and so work with and without a running driver.
type inspectOptions struct {
	stateDir string
	pool     string
	output   outputFlag
}

func (o *inspectOptions) add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&o.stateDir, "state-dir", defaultStateDir, "directory that holds the pools")
	cmd.Flags().StringVar(&o.pool, "pool", "", "show this pool only")
	o.output.add(cmd)
}

// inventory reads the pools, and tells on stderr of those that cannot be read.
func (o *inspectOptions) inventory(ctx context.Context, stderr io.Writer) ([]snapshot.Item, error) {
	engine, err := snapshot.Inspect(ctx, o.stateDir)
	if err != nil {
		return nil, err
	}
	defer engine.Close()
	pools := engine.Pools(ctx)
	for _, p := range pools {
		if p.Error != "" {
			fmt.Fprintln(stderr, "Warning:", p.Error)
		}
	}
	if err := o.checkPool(pools); err != nil {
		return nil, err
	}
	items, err := engine.Inventory(ctx)
	return slices.DeleteFunc(items, func(i snapshot.Item) bool { return o.pool != "" && i.Pool != o.pool }), err
}

// checkPool fails for a --pool that there is not: an empty answer would be a wrong one.
func (o *inspectOptions) checkPool(pools []snapshot.PoolStatus) error {
	names := make([]string, 0, len(pools))
	for _, p := range pools {
		names = append(names, p.Name)
	}
	if o.pool != "" && !slices.Contains(names, o.pool) {
		return fmt.Errorf("--pool %s: there is no such pool; there are %q", o.pool, names)
	}
	return nil
}

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
			return o.output.print(cmd.OutOrStdout(), nonNil(items), func(t *table) {
				t.row("NAME", "KIND", "POOL", "SIZE", "USED", "EXCLUSIVE", "SOURCE", "CLAIM", "STATUS", "AGE")
				for _, i := range items {
					t.row(i.ID, string(i.Kind), i.Pool, limit(i), used(i), exclusive(i), i.Source.ID, claim(i), statusOf(i), age(i.Created))
				}
			})
		},
	}
	o.add(cmd)
	return cmd
}

func newTree() *cobra.Command {
	var o inspectOptions
	cmd := &cobra.Command{
		Use:   "tree",
		Short: "Show what was made from what",
		Long: `Tree shows every volume and snapshot below the one that it was made from. What
is gone, and still has descendants, is shown in parentheses.`,
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

// branch is an item and what was made from it.
type branch struct {
	snapshot.Item
	Children []*branch `json:"children,omitempty"`
}

// grow arranges items by lineage. A source that is gone gets a branch that says
// so, also where a later one has its name: IDs come again, outside of Kubernetes.
func grow(items []snapshot.Item) []*branch {
	all := map[meta.Ref]*branch{}
	var order []*branch
	for _, i := range items {
		b := &branch{Item: i}
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
			source = &branch{Item: snapshot.Item{Entry: meta.Entry{Record: meta.Record{ID: b.Source.ID, Kind: kindOf(b.Source)}, Pool: b.Pool}, Status: "Gone"}}
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

// kindOf guesses what a source that is gone was.
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
	t.row(first+name, string(b.Kind), b.Pool, limit(b.Item), used(b.Item), b.Status, age(b.Created))
	for i, child := range b.Children {
		if i == len(b.Children)-1 {
			child.rows(t, rest+"└── ", rest+"    ")
		} else {
			child.rows(t, rest+"├── ", rest+"│   ")
		}
	}
}

func newCheck() *cobra.Command {
	var o inspectOptions
	var repair bool
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Compare what is on disk with what should be",
		Long: `Check compares every pool with its ledger and prints what is wrong and what a
repair would do. It changes nothing unless --repair is given, and never removes
what btrfs-csi did not make. A running driver is asked, so that what it is at is
not taken for a fault.

The exit code is 1 when something is wrong, and with --repair when something is
wrong still.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if o.pool != "" {
				pools, err := poolsOf(cmd.Context(), o.stateDir)
				if err == nil {
					err = o.checkPool(pools)
				}
				if err != nil {
					return err
				}
			}
			findings, err := check(cmd.Context(), o.stateDir, repair)
			if err != nil {
				return err
			}
			findings = slices.DeleteFunc(findings, func(f snapshot.Finding) bool { return o.pool != "" && f.Pool != o.pool })
			err = o.output.print(cmd.OutOrStdout(), nonNil(findings), func(t *table) { findingRows(t, findings) })
			if err == nil && slices.ContainsFunc(findings, func(f snapshot.Finding) bool { return !f.Repaired }) {
				return errFindings
			}
			return err
		},
	}
	o.add(cmd)
	cmd.Flags().BoolVar(&repair, "repair", false, "do what the plan says, in all pools")
	cmd.MarkFlagsMutuallyExclusive("pool", "repair")
	return cmd
}

func findingRows(t *table, findings []snapshot.Finding) {
	if len(findings) == 0 {
		t.row("Nothing is wrong.")
		return
	}
	t.row("POOL", "PATH", "PROBLEM", "REPAIR", "DETAIL")
	for _, f := range findings {
		repair := f.Repair
		switch {
		case f.Repaired:
			repair += ": done"
		case f.Error != "":
			repair += ": " + f.Error
		}
		t.row(f.Pool, f.Path, string(f.Problem), repair, f.Detail)
	}
}

// check asks the running driver, or looks itself where none runs.
func check(ctx context.Context, stateDir string, repair bool) (findings []snapshot.Finding, err error) {
	method, path := http.MethodGet, "/check"
	if repair {
		method, path = http.MethodPost, "/repair"
	}
	err = askDriver(ctx, stateDir, method, path, &findings)
	if !errors.Is(err, errNoDriver) {
		return findings, err
	}
	if repair {
		release, err := lockState(stateDir)
		if err != nil {
			return nil, err
		}
		defer release()
	}
	engine, err := snapshot.Inspect(ctx, stateDir)
	if err != nil {
		return nil, err
	}
	defer engine.Close()
	if repair {
		return engine.Reconcile(ctx)
	}
	return engine.Plan(ctx)
}

func limit(i snapshot.Item) string {
	if i.Size == 0 {
		return ""
	}
	return size(i.Size)
}

// statusOf tells also of subvolumes that pods have made in a volume.
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

// claim names the PersistentVolumeClaim or VolumeSnapshot, where it is known.
func claim(i snapshot.Item) string {
	for _, kind := range []string{"pvc", "volumesnapshot"} {
		if name := i.Labels[kind+"/name"]; name != "" {
			return strings.TrimPrefix(i.Labels[kind+"/namespace"]+"/"+name, "/")
		}
	}
	return ""
}

// nonNil makes an empty list print as [] and not as null.
func nonNil[T any](list []T) []T {
	if list == nil {
		return []T{}
	}
	return list
}
