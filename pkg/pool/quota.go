package pool

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs"
)

// In full mode the limit is on the subvolume's own group 0/<id>. In simple mode it is on
// 1/<id>, which what a pod nests in the volume inherits.

func (d *disk) QuotaStatus() (status btrfs.QuotaStatus, err error) {
	err = d.inRoot(func(path string) error { status, err = btrfs.Quota(path); return err })
	return status, err
}

func (d *disk) Rescan() error { return d.inRoot(btrfs.RescanQuota) }

// group is the group that bears the limit of a subvolume.
func (d *disk) group(subvolume uint64) btrfs.QgroupID {
	if d.mode == btrfs.QuotaSimple {
		return btrfs.NewQgroupID(1, subvolume)
	}
	return btrfs.NewQgroupID(0, subvolume)
}

func (d *disk) SetLimit(subvolume uint64, bytes int64) error {
	if err := d.sameQuota(); err != nil {
		return err
	}
	return d.limit(subvolume, uint64(bytes))
}

// sameQuota is checkQuota for who sets limits: one on the group of another mode would not
// be found again.
func (d *disk) sameQuota() error {
	if err := d.checkQuota(); err != nil {
		return fmt.Errorf("%w: %w", ErrAway, err)
	}
	return nil
}

// mark is on each group 1/<id> that was made here, and distinguishes it from one that an
// administrator has made.
const mark = 0x6373692d62747266 // "csi-btrf"

func (d *disk) LiftLimit(subvolume uint64) error {
	if d.mode == btrfs.QuotaNone {
		return nil
	}
	return d.inRoot(func(path string) error {
		err := d.liftIn(path, subvolume)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	})
}

func (d *disk) liftIn(path string, subvolume uint64) error {
	if d.mode == btrfs.QuotaFull {
		return btrfs.LimitQgroup(path, d.group(subvolume), btrfs.NoLimit)
	}
	group, whose, err := d.groupOf(path, subvolume)
	if err != nil || whose != ours && whose != halfMade {
		return err
	}
	return btrfs.LimitOwnQgroup(path, group.ID, btrfs.NoLimit, mark) // also of a half made one: the sweep is to know it
}

// owner says whose a group 1/<id> is.
type owner int

const (
	nobody   owner = iota // there is none
	ours                  // it was made here
	halfMade              // it was made here, and is not marked: a kill came between
	another               // an administrator has made it
)

// groupOf returns the group 1/<id> of a subvolume of the pool, and whose it is. Without the
// mark it is ours if it has 0/<id>, or nothing at all. That holds while the subvolume is
// there. Later nobody can distinguish such a group from one that an administrator has made for a
// subvolume to come, so it is marked before the subvolume is destroyed.
func (d *disk) groupOf(path string, subvolume uint64) (group btrfs.Qgroup, whose owner, err error) {
	if d.mode != btrfs.QuotaSimple {
		return group, nobody, nil
	}
	own, id := btrfs.NewQgroupID(0, subvolume), d.group(subvolume)
	group, err = btrfs.QgroupOf(path, id)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return group, nobody, nil
	case err != nil:
		return group, nobody, err
	case group.Mark == mark:
		return group, ours, nil
	}
	members, err := btrfs.QgroupMembers(path, id)
	if err != nil {
		return group, nobody, err
	}
	parents, err := btrfs.QgroupParents(path, []btrfs.QgroupID{own})
	if slices.Contains(parents[own], id) || !members && group.MaxReferenced == btrfs.NoLimit {
		return group, halfMade, err
	}
	return group, another, err
}

// limit marks the group before the subvolume counts towards it: what a crash leaves in
// between is known as ours.
func (d *disk) limit(subvolume, bytes uint64) error {
	if d.mode == btrfs.QuotaNone {
		return nil
	}
	return d.inRoot(func(path string) error {
		group := d.group(subvolume)
		if d.mode == btrfs.QuotaFull {
			return btrfs.LimitQgroup(path, group, bytes)
		}
		if err := d.makeGroup(path, subvolume); err != nil {
			return err
		}
		if err := btrfs.LimitOwnQgroup(path, group, bytes, mark); err != nil {
			return errors.Join(err, d.dropUnmarked(path, subvolume)) // as with metadata full
		}
		_, err := btrfs.AssignQgroup(path, btrfs.NewQgroupID(0, subvolume), group)
		return err
	})
}

// dropUnmarked removes a group that was made and could not be marked.
func (d *disk) dropUnmarked(path string, subvolume uint64) error {
	group, whose, err := d.groupOf(path, subvolume)
	if err != nil || whose != halfMade {
		return err
	}
	err = btrfs.RemoveQgroup(path, group.ID)
	if errors.Is(err, unix.EBUSY) { // it has 0/<id>
		return nil
	}
	return err
}

// makeGroup makes the group 1/<id> of a subvolume. What counts towards an administrator's
// would share the volume's limit.
func (d *disk) makeGroup(path string, subvolume uint64) error {
	id := d.group(subvolume)
	_, whose, err := d.groupOf(path, subvolume)
	switch {
	case err != nil:
		return err
	case whose == nobody:
		return btrfs.CreateQgroup(path, id)
	case whose == another:
		return fmt.Errorf("qgroup %s: %w: it has the number that the limit of a volume needs: remove it (btrfs qgroup destroy), or try again", id, ErrForeign)
	}
	return nil
}

// Bound, under full quota, gives the volume and each nested one as its limit what it holds
// and what all of them together leave of the size. The kernel does not: each is counted by
// itself, and one that a pod makes has no limit. A group for all of them would hold them
// together, but a snapshot that a pod takes inside would then make all accounting
// inconsistent. One that is at its limit cannot make another.
//
// Under simple quota they count towards the volume's group, if the pod has not put them
// into another one as it made them, or into none, which the kernel lets anyone do.
func (d *disk) Bound(volume uint64, size int64, nested []uint64) (held Usage, err error) {
	if err := d.sameQuota(); err != nil {
		return held, err
	}
	switch d.mode {
	case btrfs.QuotaFull:
		err = d.inRoot(func(path string) error { held, err = d.boundFull(path, volume, size, nested); return err })
	case btrfs.QuotaSimple:
		err = d.inRoot(func(path string) error { return d.gather(path, volume, nested) })
	}
	return held, err
}

func (d *disk) boundFull(path string, volume uint64, size int64, nested []uint64) (held Usage, err error) {
	ids := []btrfs.QgroupID{d.group(volume)} // first: at its limit, it nests no more
	for _, id := range nested {
		ids = append(ids, d.group(id))
	}
	groups, err := btrfs.QgroupsOf(path, ids)
	if err != nil {
		return held, err
	}
	filesystem, err := btrfs.Filesystem(path)
	if err != nil {
		return held, err
	}
	reserved, err := btrfs.ReservedOf(path, ids)
	if err != nil {
		return held, err
	}
	used, all := map[btrfs.QgroupID]int64{}, int64(0)
	for i, id := range ids {
		used[id] = clamp(groups[id].Referenced + reserved[id])
		if i > 0 {
			used[id] = max(used[id], int64(filesystem.NodeSize)) // which a new one is not counted for yet
			held.Used += used[id]
			held.Exclusive += clamp(groups[id].Exclusive)
		}
		all += used[id]
	}
	for _, id := range ids {
		group, there := groups[id]
		limit := uint64(max(1, size-(all-used[id]))) // 0 reads as none
		if !there || group.MaxReferenced == limit {
			continue
		}
		if err := btrfs.LimitQgroup(path, id, limit); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return held, err
		}
	}
	return held, nil
}

// gather has what is nested count towards the group of its volume, and towards no other.
func (d *disk) gather(path string, volume uint64, nested []uint64) error {
	members := make([]btrfs.QgroupID, 0, len(nested))
	for _, id := range nested {
		members = append(members, btrfs.NewQgroupID(0, id))
	}
	parents, err := btrfs.QgroupParents(path, members)
	if err != nil {
		return err
	}
	group := d.group(volume)
	for _, member := range members {
		if slices.Equal(parents[member], []btrfs.QgroupID{group}) {
			continue
		}
		if _, err := btrfs.AssignQgroup(path, member, group); err != nil {
			return err
		}
		for _, other := range parents[member] {
			if other == group {
				continue
			}
			if _, err := btrfs.UnassignQgroup(path, member, other); err != nil {
				return err
			}
		}
	}
	return nil
}

func (d *disk) Limits() (limits map[uint64]int64, err error) {
	if d.mode == btrfs.QuotaNone {
		return nil, nil
	}
	limits = map[uint64]int64{}
	err = d.inRoot(func(path string) error {
		return btrfs.WalkQgroups(path, func(q btrfs.Qgroup) error {
			// Those of level 0 come first: what has no group of level 1 has no limit.
			if id := q.ID.Subvolume(); q.ID == d.group(id) {
				limits[id] = d.limitOf(q)
			} else if q.ID.Level() == 0 {
				limits[id] = 0
			}
			return nil
		})
	})
	return limits, err
}

func (d *disk) Usage(subvolume uint64) (usage Usage, err error) {
	if d.mode == btrfs.QuotaNone {
		return usage, ErrNoQuota
	}
	err = d.inRoot(func(path string) error {
		q, err := btrfs.QgroupOf(path, d.group(subvolume))
		if errors.Is(err, fs.ErrNotExist) || d.mode == btrfs.QuotaSimple && q.Mark != mark { // no limit yet, or a snapshot in simple mode
			q, err = btrfs.QgroupOf(path, btrfs.NewQgroupID(0, subvolume))
			q.MaxReferenced = btrfs.NoLimit
		}
		usage = Usage{Used: clamp(q.Referenced), Limit: d.limitOf(q)}
		if d.mode == btrfs.QuotaFull {
			usage.Exclusive = clamp(q.Exclusive)
		}
		return err
	})
	return usage, err
}

func (d *disk) ForgetQuota(subvolume uint64) error {
	if d.mode == btrfs.QuotaNone {
		return nil
	}
	return d.inRoot(func(path string) error {
		if err := d.closeGroup(path, subvolume); err != nil {
			return err
		}
		// Before the tree is dropped its numbers are still needed.
		if there, err := btrfs.TreeExists(path, subvolume); there || err != nil {
			return errors.Join(err, unix.EBUSY)
		}
		own := btrfs.NewQgroupID(0, subvolume)
		// Simple quota would say so, but begin a transaction for it, and so no disk would ever
		// sleep. Full quota, whose numbers follow with the commit after the tree was dropped,
		// would remove the group and be inconsistent.
		if group, err := btrfs.QgroupOf(path, own); err == nil && group.Referenced > 0 {
			return fmt.Errorf("group %s: %w", own, unix.EBUSY)
		}
		if err := btrfs.RemoveQgroup(path, own); err != nil {
			return err
		}
		return d.removeGroup(path, subvolume)
	})
}

// closeGroup gives the group 1/<id> of a destroyed subvolume the least limit.
func (d *disk) closeGroup(path string, subvolume uint64) error {
	group, whose, err := d.groupOf(path, subvolume)
	if err != nil || whose != ours || group.MaxReferenced == 1 {
		return err
	}
	if there, err := btrfs.Exists(path, subvolume); there || err != nil {
		return err
	}
	return btrfs.LimitQgroup(path, group.ID, 1)
}

func (d *disk) removeGroup(path string, subvolume uint64) error {
	group, whose, err := d.groupOf(path, subvolume)
	if err != nil || whose != ours {
		return err
	}
	return btrfs.RemoveQgroup(path, group.ID)
}

func (d *disk) PinnedQuota() (held []uint64, err error) {
	if d.mode == btrfs.QuotaNone {
		return nil, nil
	}
	err = d.inRoot(func(path string) error {
		if held, err = btrfs.DyingIDs(path); err != nil || d.mode == btrfs.QuotaFull {
			return err
		}
		gone, err := d.quotaGroups(path)
		err = errors.Join(err, btrfs.WalkTreeIDs(path, func(id uint64) error { delete(gone, id); return nil }))
		for id, g := range gone {
			if g.charged && (g.own || g.marked) {
				held = append(held, id)
			}
		}
		return err
	})
	return held, err
}

// StaleQuota takes every group of level 0 of a subvolume that is gone, and whose tree the
// kernel has dropped, for stale: they are of no use to anyone, whoever made the
// subvolume. So is a group 1/<id> without members that was made here.
func (d *disk) StaleQuota() (stale []uint64, err error) {
	if d.mode == btrfs.QuotaNone {
		return nil, nil
	}
	err = d.inRoot(func(path string) error {
		gone, err := d.quotaGroups(path)
		if err != nil || len(gone) == 0 {
			return err
		}
		err = btrfs.WalkTreeIDs(path, func(id uint64) error { delete(gone, id); return nil })
		for id, g := range gone {
			if g.charged {
				continue
			}
			if !g.own {
				members, failed := btrfs.QgroupMembers(path, d.group(id))
				err = errors.Join(err, failed)
				if members || !g.marked {
					continue
				}
			}
			stale = append(stale, id)
		}
		return err
	})
	return stale, err
}

// quotaGroups are those of a subvolume: there is 0/<id>; there is 1/<id>, and it was made
// here; under simple quota one of them is charged for what is there still, which a snapshot may
// hold when the subvolume is gone, and the kernel keeps it until then.
type quotaGroups struct{ own, marked, charged bool }

// quotaGroups returns those of every subvolume, by its ID.
func (d *disk) quotaGroups(path string) (map[uint64]quotaGroups, error) {
	all := map[uint64]quotaGroups{}
	err := btrfs.WalkQgroups(path, func(q btrfs.Qgroup) error {
		id := q.ID.Subvolume()
		own := q.ID.Level() == 0
		if id < firstSubvolume || !own && (q.ID != d.group(id) || q.Mark != mark) {
			return nil
		}
		g := all[id]
		g.own = g.own || own
		g.marked = g.marked || !own
		g.charged = g.charged || d.mode == btrfs.QuotaSimple && q.Referenced > 0
		all[id] = g
		return nil
	})
	return all, err
}

// firstSubvolume is the least ID of a subvolume (BTRFS_FIRST_FREE_OBJECTID).
const firstSubvolume = 256

// limitOf is 0 for no limit, also for that of a group that was not made here.
func (d *disk) limitOf(q btrfs.Qgroup) int64 {
	if q.MaxReferenced == btrfs.NoLimit || d.mode == btrfs.QuotaSimple && q.Mark != mark {
		return 0
	}
	return clamp(q.MaxReferenced)
}

// clamp keeps a counter of the kernel's within int64.
func clamp(bytes uint64) int64 { return int64(min(bytes, math.MaxInt64)) }
