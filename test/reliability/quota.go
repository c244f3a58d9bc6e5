package reliability

import (
	"context"
	"errors"
	"fmt"

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs"
	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs/btrfstest"
)

// sweep restarts the driver after the kernel's cleaner is done. Then no stale qgroups may be left, except, in
// simple mode, those of data that a snapshot still has. A running driver sweeps only every 30 s.
func (n *node) sweep(ctx context.Context) error {
	if err := n.settle(ctx); err != nil {
		return err
	}
	if err := errors.Join(n.stop(), n.serve(ctx)); err != nil {
		return err
	}
	return n.staleQuota()
}

// checkQuota sweeps, and checks again after the driver has ended.
func (n *node) checkQuota(ctx context.Context) error {
	if err := errors.Join(n.sweep(ctx), n.stop()); err != nil {
		return err
	}
	findings, err := n.findings(ctx)
	for _, f := range findings {
		err = errors.Join(err, fmt.Errorf("check without a driver finds %s", f))
	}
	return errors.Join(err, n.staleQuota(), n.readLog())
}

// staleQuota returns the stale qgroups.
func (n *node) staleQuota() error {
	if n.quota == btrfs.QuotaNone {
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
		inUse := n.quota == btrfs.QuotaSimple && q.Referenced > 0
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

// settle waits until the kernel's cleaner has dropped all destroyed subvolumes and their qgroups.
func (n *node) settle(ctx context.Context) error {
	return btrfstest.Settle(ctx, n.Pool(), btrfs.DyingIDs)
}
