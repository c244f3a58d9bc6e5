package main

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/btrfs-csi/btrfs-csi/pkg/snapshot"
)

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
wrong still. What a driver does by itself when it runs is printed and is not wrong.`,
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
			if err == nil && slices.ContainsFunc(findings, func(f snapshot.Finding) bool { return !f.Repaired && !f.Routine }) {
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

// startPatience is how long a driver that holds its state directory may take to answer.
const startPatience = 30 * time.Second

// askStarted is askDriver, and waits for a driver that is starting: what it reconciles
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

// check asks the running driver, or looks itself where none runs.
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
	release, err := lockState(stateDir) // the first write: stateDir is one, the look has shown
	if err != nil {
		return nil, err
	}
	defer release()
	return engine.Reconcile(ctx)
}
