package slot

import (
	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs"
	"github.com/btrfs-csi/btrfs-csi/pkg/pool"
)

// Sweep removes stale qgroups. The kernel may keep the qgroups of a destroyed subvolume until it
// has dropped the tree. In simple mode it keeps them while a snapshot contains data that the
// subvolume wrote. Without a sweep they pile up by the thousand. Those of subvolumes that somebody
// else destroyed are removed in the next round.
func (s *Session) Sweep() (pool.Groups, error) {
	stale := &s.pool.stale
	for subvolume := range stale.all() {
		if err := s.ForgetQuota(subvolume); err == nil {
			stale.remove(subvolume)
		}
	}
	groups, err := s.Groups()
	stale.add(groups.Stale...)
	return groups, err
}

// forgetAll removes stale qgroups. Sweep retries those that the kernel still needs.
func (s *Session) forgetAll(subvolumes []uint64) error {
	for _, subvolume := range subvolumes {
		if err := s.ForgetQuota(subvolume); err != nil {
			s.pool.stale.add(subvolume)
		}
	}
	return nil
}

// RescanQuota starts a quota rescan.
func (s *Session) RescanQuota() error {
	err := s.Rescan()
	if err == nil {
		s.pool.rescans.Add(1)
	}
	return err
}

// NeedsRescan reports whether full quota is inconsistent, and no rescan is running.
func NeedsRescan(s btrfs.QuotaStatus) bool {
	return s.Mode == btrfs.QuotaFull && s.Inconsistent && !s.Rescanning
}
