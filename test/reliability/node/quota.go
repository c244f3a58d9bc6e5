package node

import (
	"context"
	"errors"
	"fmt"

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs"
	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs/btrfstest"
)

// Sweep waits for the kernel's cleaner, restarts the driver, and fails if stale qgroups are left. In
// simple mode those whose data a snapshot still has may stay. Sweep restarts the driver because a running one
// removes stale qgroups only every 30 s.
func (n *Node) Sweep(ctx context.Context) error {
	if err := n.Settle(ctx); err != nil {
		return err
	}
	if err := errors.Join(n.Stop(), n.Serve(ctx)); err != nil {
		return err
	}
	return n.StaleQuota()
}

// CheckQuota sweeps, and checks again after the driver has ended.
func (n *Node) CheckQuota(ctx context.Context) error {
	if err := errors.Join(n.Sweep(ctx), n.Stop()); err != nil {
		return err
	}
	findings, err := n.Findings(ctx)
	for _, f := range findings {
		err = errors.Join(err, fmt.Errorf("check without a driver finds %s", f))
	}
	return errors.Join(err, n.StaleQuota(), n.ReadLog())
}

// StaleQuota returns the stale qgroups.
func (n *Node) StaleQuota() error {
	if n.Quota == btrfs.QuotaNone {
		return nil
	}
	subvolumes := map[uint64]bool{fsTree: true}
	err := btrfs.WalkSubvolumeIDs(n.Pool(), func(id uint64) error {
		subvolumes[id] = true
		return nil
	})
	if err != nil {
		return err
	}
	var stale []string
	err = btrfs.WalkQgroups(n.Pool(), func(q btrfs.Qgroup) error {
		inUse := n.Quota == btrfs.QuotaSimple && q.Referenced > 0
		if !subvolumes[q.ID.Subvolume()] && !inUse {
			stale = append(stale, q.ID.String())
		}
		return nil
	})
	if len(stale) > 0 {
		err = errors.Join(err, fmt.Errorf("quota groups %v are of subvolumes that are gone", stale))
	}
	return err
}

// fsTree is the ID of a filesystem's top level.
const fsTree = 5

// Settle waits until the kernel's cleaner has dropped all destroyed subvolumes and their qgroups.
func (n *Node) Settle(ctx context.Context) error {
	return btrfstest.Settle(ctx, n.Pool(), btrfs.DyingIDs)
}
