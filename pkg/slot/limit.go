package slot

import (
	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs"
	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
	"github.com/btrfs-csi/btrfs-csi/pkg/pool"
)

// limitOf returns the limit of one subvolume, in bytes, 0 for none; false if it cannot be read,
// as in a pool without quota.
func (s *Session) limitOf(subvolume uint64) (int64, bool) {
	usage, err := s.Usage(subvolume)
	return usage.Limit, err == nil
}

// unlimited is the limit of a volume that is not limited by its group.
const unlimited = 1 << 62

// diskRest is what the limit of a disk file leaves for metadata, in bytes, beyond a multiple of
// its size.
const diskRest = 64 << 20

// Limit returns the limit of a volume. With files it is the volume's size.
//
// A disk file is bounded by its own size, and at its limit a pod would get I/O errors. It may hold
// more than its size: while one block of an extent is in use, the whole extent takes space. Random
// writes to a full file nearly double it. So the limit is twice the size, which keeps a pod that
// contrives more from taking the space of others. Under simple quota what only snapshots hold
// counts too, without a bound, so that there can be no limit.
func (p *Pool) Limit(content meta.Content, size int64) int64 {
	switch {
	case !content.IsDisk():
		return size
	case p.QuotaMode() == btrfs.QuotaSimple, size > unlimited/4:
		return unlimited
	}
	return 2*size + diskRest
}

// limit returns the limit of the volume.
func (l *Slot) limit() int64 { return l.session.pool.Limit(l.Record.Content, l.Record.Size) }

// setLimit sets the limit of a volume, without the usage of its nested subvolumes.
func (l *Slot) setLimit() error {
	inside, _ := l.session.pool.nested.in(l.info.ID)
	return l.session.SetLimit(l.info.ID, max(1, l.limit()-inside.Used)) // 0 would mean no limit
}

// limitWrong reports whether a limit is wrong. The right one is less than Limit under full quota
// while the volume has nested subvolumes.
func (l *Slot) limitWrong(have int64) bool {
	if have == l.limit() {
		return false
	}
	_, nests := l.session.pool.nested.in(l.info.ID)
	if !nests {
		status, err := l.session.QuotaStatus()
		paths, failed := l.session.Nested(l.At)
		nests = err == nil && failed == nil && status.Mode == btrfs.QuotaFull && len(paths) > 0
	}
	return !nests || have == 0 || have > l.limit()
}

// OddLimit reports whether the limit of a volume, which should be want, may be wrong. It asks
// nobody.
func (p *Pool) OddLimit(volume uint64, want, have int64) bool {
	if have == want {
		return false
	}
	_, nests := p.nested.in(volume)
	return !nests || have == 0 || have > want
}

// Usage returns the usage of a volume or snapshot with that of its nested subvolumes.
func (l *Slot) Usage() (pool.Usage, error) {
	usage, err := l.session.Usage(l.info.ID)
	inside, _ := l.session.pool.nested.in(l.info.ID)
	usage.Used += inside.Used
	usage.Exclusive += inside.Exclusive
	return usage, err
}
