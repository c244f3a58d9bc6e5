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

// In full mode the limit is on the subvolume's own group 0/<id>. In simple mode it is on 1/<id>,
// which subvolumes that a pod nests in the volume inherit.

func (d *disk) QuotaStatus() (status btrfs.QuotaStatus, err error) {
	err = d.inRoot(func(path string) error { status, err = btrfs.Quota(path); return err })
	return status, err
}

func (d *disk) Rescan() error { return d.inRoot(btrfs.RescanQuota) }

// group returns the qgroup that has the limit of a subvolume.
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

// sameQuota is checkQuota for callers that set limits. A limit on a group of another mode would
// stay there unnoticed.
func (d *disk) sameQuota() error {
	if err := d.checkQuota(); err != nil {
		return fmt.Errorf("%w: %w", ErrAway, err)
	}
	return nil
}

// mark is set on each group 1/<id> that the driver made. The groups of administrators lack it.
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
	return btrfs.LimitOwnQgroup(path, group.ID, btrfs.NoLimit, mark) // marks a half-made group too, so that the sweep recognises it
}

// owner is who made a group 1/<id>.
type owner int

const (
	nobody   owner = iota // there is no such group
	ours                  // the driver
	halfMade              // the driver, which was killed before it set the mark
	another               // an administrator
)

// groupOf returns the group 1/<id> of a subvolume of the pool, and its owner. An unmarked group
// is the driver's if 0/<id> is its member, or if it has neither members nor a limit. This rule
// needs the subvolume to exist: an administrator may have made such a group for a later
// subvolume. So LiftLimit marks the group before the subvolume is destroyed.
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

// limit marks the group before the subvolume becomes its member, so that a group that a crash
// leaves is recognised as the driver's.
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
			return errors.Join(err, d.dropUnmarked(path, subvolume)) // for example because metadata is full
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
	if errors.Is(err, unix.EBUSY) { // 0/<id> is a member
		return nil
	}
	return err
}

// makeGroup makes the group 1/<id> of a subvolume. It fails with ErrForeign if an administrator
// has made that group, whose members would share the volume's limit.
func (d *disk) makeGroup(path string, subvolume uint64) error {
	id := d.group(subvolume)
	_, whose, err := d.groupOf(path, subvolume)
	switch {
	case err != nil:
		return err
	case whose == nobody:
		return btrfs.CreateQgroup(path, id)
	case whose == another:
		return fmt.Errorf("qgroup %s: %w: it has the number that the qgroup of a volume needs: remove it (btrfs qgroup destroy), or try again", id, ErrForeign)
	}
	return nil
}

// Bound, under full quota, sets the limit of the volume and of each nested subvolume to its usage
// plus what all of them together leave of size. The kernel counts each subvolume by itself, and a
// nested one that a pod makes has no limit. One group for all would limit them together, but a
// snapshot that a pod takes inside would then make the accounting of the filesystem inconsistent.
// No subvolume can be nested in one at its limit.
//
// Under simple quota, nested subvolumes inherit the volume's group. The kernel lets a pod choose
// other groups for them, or none, so Bound moves them back.
func (d *disk) Bound(volume uint64, size int64, nested []uint64) (inside Usage, err error) {
	if err := d.sameQuota(); err != nil {
		return inside, err
	}
	switch d.mode {
	case btrfs.QuotaFull:
		err = d.inRoot(func(path string) error { inside, err = d.boundFull(path, volume, size, nested); return err })
	case btrfs.QuotaSimple:
		err = d.inRoot(func(path string) error { return d.gather(path, volume, nested) })
	}
	return inside, err
}

func (d *disk) boundFull(path string, volume uint64, size int64, nested []uint64) (inside Usage, err error) {
	ids := []btrfs.QgroupID{d.group(volume)} // the volume first: at its limit, no more can be nested in it
	for _, id := range nested {
		ids = append(ids, d.group(id))
	}
	groups, err := btrfs.QgroupsOf(path, ids)
	if err != nil {
		return inside, err
	}
	filesystem, err := btrfs.Filesystem(path)
	if err != nil {
		return inside, err
	}
	reserved, err := btrfs.ReservedOf(path, ids)
	if err != nil {
		return inside, err
	}
	used, all := map[btrfs.QgroupID]int64{}, int64(0)
	for i, id := range ids {
		used[id] = clamp(groups[id].Referenced + reserved[id])
		if i > 0 {
			used[id] = max(used[id], int64(filesystem.NodeSize)) // a new subvolume is not counted yet
			inside.Used += used[id]
			inside.Exclusive += clamp(groups[id].Exclusive)
		}
		all += used[id]
	}
	for _, id := range ids {
		group, there := groups[id]
		limit := uint64(max(1, size-(all-used[id]))) // 0 would mean no limit
		if !there || group.MaxReferenced == limit {
			continue
		}
		if err := btrfs.LimitQgroup(path, id, limit); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return inside, err
		}
	}
	return inside, nil
}

// gather makes the nested subvolumes members of the group of their volume, and of no other.
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
			// Groups of level 0 come first. In simple mode, a subvolume without a group of level
			// 1 has no limit.
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
		// The kernel needs the group until it has dropped the tree.
		if there, err := btrfs.TreeExists(path, subvolume); there || err != nil {
			return errors.Join(err, unix.EBUSY)
		}
		own := btrfs.NewQgroupID(0, subvolume)
		// Simple quota would return EBUSY for this, but begin a transaction for it each time, and
		// no disk would ever sleep. Full quota, whose counters follow with the commit after the
		// drop, would remove the group and become inconsistent.
		if group, err := btrfs.QgroupOf(path, own); err == nil && group.Referenced > 0 {
			return fmt.Errorf("group %s: %w", own, unix.EBUSY)
		}
		if err := btrfs.RemoveQgroup(path, own); err != nil {
			return err
		}
		return d.removeGroup(path, subvolume)
	})
}

// closeGroup sets the limit of the group 1/<id> of a destroyed subvolume to 1 byte.
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

func (d *disk) PinnedQuota() (pinned []uint64, err error) {
	if d.mode == btrfs.QuotaNone {
		return nil, nil
	}
	err = d.inRoot(func(path string) error {
		if pinned, err = btrfs.DyingIDs(path); err != nil || d.mode == btrfs.QuotaFull {
			return err
		}
		gone, err := d.quotaGroups(path)
		err = errors.Join(err, btrfs.WalkTreeIDs(path, func(id uint64) error { delete(gone, id); return nil }))
		for id, g := range gone {
			if g.charged && (g.own || g.marked) {
				pinned = append(pinned, id)
			}
		}
		return err
	})
	return pinned, err
}

// StaleQuota returns the IDs of all groups 0/<id> whose subvolume is gone and whose tree the
// kernel has dropped, whoever made the subvolume. It also returns the IDs of groups 1/<id> that
// the driver made and that have no members.
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

// quotaGroups are the groups of a subvolume. own: 0/<id> exists. marked: 1/<id> exists, and the
// driver made it. charged: simple quota charges one of them for data. While a snapshot contains
// that data, the kernel keeps the group, also after the subvolume is gone.
type quotaGroups struct{ own, marked, charged bool }

// quotaGroups returns the groups of every subvolume, by its ID.
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

// firstSubvolume is the smallest ID of a subvolume (BTRFS_FIRST_FREE_OBJECTID).
const firstSubvolume = 256

// limitOf returns the limit of a group, in bytes; 0 for none, or if the driver did not make it.
func (d *disk) limitOf(q btrfs.Qgroup) int64 {
	if q.MaxReferenced == btrfs.NoLimit || d.mode == btrfs.QuotaSimple && q.Mark != mark {
		return 0
	}
	return clamp(q.MaxReferenced)
}

// clamp converts a counter of the kernel, at most to math.MaxInt64.
func clamp(bytes uint64) int64 { return int64(min(bytes, math.MaxInt64)) }
