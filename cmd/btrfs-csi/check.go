package main

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/btrfs-csi/btrfs-csi/pkg/mount"
	"github.com/btrfs-csi/btrfs-csi/pkg/snapshot"
)

func newCheck() *cobra.Command {
	var o inspectOptions
	var repair bool
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Find faults in the pools and repair them",
		Long: `Check compares every pool with its records. It prints each fault and what a repair
would do. It changes nothing without --repair, and never removes data that btrfs-csi
did not create. If a driver runs, check asks the driver, so that running operations
are not reported as faults.

The exit code is 1 if there is a fault, or with --repair if a fault remains, or if
this kernel lacks what a driver needs to mount volumes. Check also prints cleanup
that a driver does by itself when it runs. This is no fault.`,
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
			err = errors.Join(
				o.output.print(cmd.OutOrStdout(), nonNil(findings), func(t *table) { findingRows(t, findings) }),
				mount.Supported()) // else no driver can serve the pools
			if err == nil && slices.ContainsFunc(findings, func(f snapshot.Finding) bool { return !f.Repaired && !f.Routine }) {
				return errFindings
			}
			return err
		},
	}
	o.add(cmd)
	cmd.Flags().BoolVar(&repair, "repair", false, "repair the faults, in all pools")
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

// startPatience is how long a driver that has locked its state directory may take to
// answer.
const startPatience = 30 * time.Second

// askStarted is askDriver that waits for a starting driver. Work of its reconciliation
// would look like faults.
func askStarted(ctx context.Context, stateDir, method, path string, found any) error {
	for end := time.Now().Add(startPatience); ; {
		err := askDriver(ctx, stateDir, method, path, found)
		if !errors.Is(err, errNoDriver) || !stateInUse(stateDir) || time.Now().After(end) {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// check asks the running driver, or inspects the pools itself if none runs.
func check(ctx context.Context, stateDir string, repair bool) (findings []snapshot.Finding, err error) {
	method, path := http.MethodGet, "/check"
	if repair {
		method, path = http.MethodPost, "/repair"
	}
	err = askStarted(ctx, stateDir, method, path, &findings)
	if !errors.Is(err, errNoDriver) {
		return findings, err
	}
	engine, err := snapshot.Inspect(ctx, stateDir)
	if err != nil {
		return nil, err
	}
	defer engine.Close()
	if !repair {
		return engine.Plan(ctx)
	}
	release, err := lockState(stateDir) // the first write: Inspect has checked stateDir
	if err != nil {
		return nil, err
	}
	defer release()
	return engine.Reconcile(ctx)
}
