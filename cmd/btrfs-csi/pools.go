package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"github.com/spf13/cobra"

	"github.com/btrfs-csi/btrfs-csi/pkg/pool"
	"github.com/btrfs-csi/btrfs-csi/pkg/snapshot"
)

// poolRow is one row of the output. Sizes are in bytes.
type poolRow struct {
	Name              string `json:"name"`
	ID                string `json:"id,omitempty"`
	Size              int64  `json:"size"`
	Available         int64  `json:"available"`
	MetadataSize      int64  `json:"metadataSize"`
	MetadataUsed      int64  `json:"metadataUsed"`
	Unallocated       int64  `json:"unallocated"`
	Quota             string `json:"quota"`
	QuotaInconsistent bool   `json:"quotaInconsistent"`
	QuotaRescans      uint64 `json:"quotaRescans,omitempty"` // only from a running driver, like nesting
	Nesting           int    `json:"nesting,omitempty"`      // volumes with nested subvolumes
	ReadOnly          bool   `json:"readOnly"`
	DevicesMissing    int    `json:"devicesMissing,omitempty"`
	DeviceErrors      uint64 `json:"deviceErrors"`
	Status            string `json:"status"`
	Error             string `json:"error,omitempty"`
	Detail            string `json:"detail,omitempty"` // problems and remarks
}

func newPools() *cobra.Command {
	var o inspectOptions
	cmd := &cobra.Command{
		Use:   "pools",
		Short: "List the pools and their state",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			pools, err := poolsOf(cmd.Context(), o.stateDir)
			if err == nil {
				err = o.checkPool(pools)
			}
			if err != nil {
				return err
			}
			var rows []poolRow
			for _, p := range pools {
				if o.pool == "" || o.pool == p.Name {
					rows = append(rows, poolRowOf(p))
				}
			}
			return o.output.print(cmd.OutOrStdout(), nonNil(rows), func(t *table) {
				t.row("NAME", "ID", "SIZE", "AVAILABLE", "QUOTA", "DEVICE ERRORS", "STATUS", "DETAIL")
				for _, r := range rows {
					t.row(r.Name, r.ID, size(r.Size), size(r.Available), r.Quota, fmt.Sprint(r.DeviceErrors), r.Status, r.Detail)
				}
			})
		},
	}
	o.add(cmd)
	return cmd
}

// poolsOf asks the running driver, or inspects the disks if none runs. Only a driver knows
// the pools that it does not serve because another node owns them.
func poolsOf(ctx context.Context, stateDir string) (pools []pool.Status, err error) {
	err = askDriver(ctx, stateDir, http.MethodGet, "/pools", &pools)
	if !errors.Is(err, errNoDriver) {
		return pools, err
	}
	engine, err := snapshot.Inspect(ctx, stateDir)
	if err != nil {
		return nil, err
	}
	defer engine.Close()
	return engine.Pools(ctx), nil
}

func poolRowOf(p pool.Status) poolRow {
	r := poolRow{
		Name: p.Name, ID: p.ID, Size: p.Space.Size, Available: p.Space.Available,
		MetadataSize: p.Space.MetadataTotal, MetadataUsed: p.Space.MetadataUsed, Unallocated: p.Space.Unallocated,
		Quota: string(p.Quota.Mode), QuotaInconsistent: p.Quota.Inconsistent, QuotaRescans: p.Rescans, Nesting: p.Nesting, ReadOnly: p.Space.ReadOnly, Error: p.Error,
		DevicesMissing: p.DevicesMissing(), DeviceErrors: p.DeviceErrors(),
	}
	r.Status, r.Detail = p.State()
	return r
}
