package slot

import (
	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs"
	"github.com/btrfs-csi/btrfs-csi/pkg/pool"
)

// limitOf returns the limit of one subvolume, in bytes, 0 for none; false if it cannot be read,
// as in a pool without quota.
func (s *Session) limitOf(subvolume uint64) (int64, bool) {
	usage, err := s.Usage(subvolume)
	return usage.Limit, err == nil
}

// setLimit sets the limit of a volume to its size minus the usage of its nested subvolumes.
func (l *Slot) setLimit() error {
	inside, _ := l.session.pool.nested.in(l.info.ID)
	return l.session.SetLimit(l.info.ID, max(1, l.Record.Size-inside.Used)) // 0 would mean no limit
}

// limitWrong reports whether a limit is wrong. The right one is the volume's size, or less under
// full quota while the volume has nested subvolumes.
func (l *Slot) limitWrong(have int64) bool {
	if have == l.Record.Size {
		return false
	}
	_, nests := l.session.pool.nested.in(l.info.ID)
	if !nests {
		status, err := l.session.QuotaStatus()
		paths, failed := l.session.Nested(l.At)
		nests = err == nil && failed == nil && status.Mode == btrfs.QuotaFull && len(paths) > 0
	}
	return !nests || have == 0 || have > l.Record.Size
}

// OddLimit reports whether the limit of a volume of this size may be wrong. It asks nobody.
func (p *Pool) OddLimit(volume uint64, size, have int64) bool {
	if have == size {
		return false
	}
	_, nests := p.nested.in(volume)
	return !nests || have == 0 || have > size
}

// Usage returns the usage of a volume or snapshot with that of its nested subvolumes.
func (l *Slot) Usage() (pool.Usage, error) {
	usage, err := l.session.Usage(l.info.ID)
	inside, _ := l.session.pool.nested.in(l.info.ID)
	usage.Used += inside.Used
	usage.Exclusive += inside.Exclusive
	return usage, err
}
