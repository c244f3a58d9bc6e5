package main

import (
	"context"
	"fmt"
	"io"
	"slices"

	"github.com/spf13/cobra"

	"github.com/btrfs-csi/btrfs-csi/pkg/pool"
	"github.com/btrfs-csi/btrfs-csi/pkg/snapshot"
)

// inspectOptions are the options of commands that inspect pools, with or without a running
// driver.
type inspectOptions struct {
	stateDir string
	pool     string
	output   outputFlag
}

func (o *inspectOptions) add(cmd *cobra.Command) {
	addStateDir(cmd, &o.stateDir)
	cmd.Flags().StringVar(&o.pool, "pool", "", "show only this pool")
	o.output.add(cmd)
}

// inventory reads the pools. It names pools that cannot be read on stderr.
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

// checkPool returns an error if the pool of --pool does not exist. An empty list would be
// misleading.
func (o *inspectOptions) checkPool(pools []pool.Status) error {
	names := make([]string, 0, len(pools))
	for _, p := range pools {
		names = append(names, p.Name)
	}
	if o.pool != "" && !slices.Contains(names, o.pool) {
		return fmt.Errorf("--pool %s: there is no such pool; there are %q", o.pool, names)
	}
	return nil
}

// nonNil makes an empty list print as [], not as null.
func nonNil[T any](list []T) []T {
	if list == nil {
		return []T{}
	}
	return list
}
