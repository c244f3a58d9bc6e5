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

func (r *root) QuotaStatus() (btrfs.QuotaStatus, error) { return btrfs.Quota(r.dir) }

func (r *root) Rescan() error { return btrfs.RescanQuota(r.dir) }

// group returns the qgroup that has the limit of a subvolume.
func (r *root) group(subvolume uint64) btrfs.QgroupID {
	if r.disk.mode == btrfs.QuotaSimple {
		return btrfs.NewQgroupID(1, subvolume)
	}
	return btrfs.NewQgroupID(0, subvolume)
}

// checkQuota fails if the quota was turned off or has another mode. A limit on a group of another
// mode would stay there unnoticed.
func (r *root) checkQuota() error {
	if r.disk.readOnly || r.disk.mode == btrfs.QuotaNone {
		return nil
	}
	mode, err := btrfs.ModeOf(r.dir)
	if err != nil || mode == r.disk.mode {
		return nil // maintainPool logs an unreadable status; volumes are served all the same
	}
	return fmt.Errorf("its quota is %q, it was %q: sizes are not enforced until the driver has opened it again", mode, r.disk.mode)
}

// mark is set on each group 1/<id> that the driver made. The groups of administrators lack it.
const mark = 0x6373692d62747266 // "csi-btrf"

func (r *root) LiftLimit(subvolume uint64) error {
	err := r.lift(subvolume)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

func (r *root) lift(subvolume uint64) error {
	switch r.disk.mode {
	case btrfs.QuotaNone:
		return nil
	case btrfs.QuotaFull:
		return btrfs.LimitQgroup(r.dir, r.group(subvolume), btrfs.NoLimit)
	}
	group, whose, err := r.groupOf(subvolume)
	if err != nil || whose != ours && whose != halfMade {
		return err
	}
	return btrfs.LimitOwnQgroup(r.dir, group.ID, btrfs.NoLimit, mark) // marks a half-made group too, so that the sweep recognises it
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
func (r *root) groupOf(subvolume uint64) (group btrfs.Qgroup, whose owner, err error) {
	if r.disk.mode != btrfs.QuotaSimple {
		return group, nobody, nil
	}
	own, id := btrfs.NewQgroupID(0, subvolume), r.group(subvolume)
	group, err = btrfs.QgroupOf(r.dir, id)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return group, nobody, nil
	case err != nil:
		return group, nobody, err
	case group.Mark == mark:
		return group, ours, nil
	}
	members, err := btrfs.QgroupMembers(r.dir, id)
	if err != nil {
		return group, nobody, err
	}
	parents, err := btrfs.QgroupParents(r.dir, []btrfs.QgroupID{own})
	if slices.Contains(parents[own], id) || !members && group.MaxReferenced == btrfs.NoLimit {
		return group, halfMade, err
	}
	return group, another, err
}

// SetLimit, under simple quota, marks the group before the subvolume becomes its member, so that a
// group that a crash leaves is recognised as the driver's.
func (r *root) SetLimit(subvolume uint64, bytes int64) error {
	if r.disk.mode == btrfs.QuotaNone {
		return nil
	}
	if err := r.checkQuota(); err != nil {
		return fmt.Errorf("%w: %w", ErrAway, err)
	}
	group := r.group(subvolume)
	if r.disk.mode == btrfs.QuotaFull {
		return btrfs.LimitQgroup(r.dir, group, uint64(bytes))
	}
	if err := r.makeGroup(subvolume); err != nil {
		return err
	}
	if err := btrfs.LimitOwnQgroup(r.dir, group, uint64(bytes), mark); err != nil {
		return errors.Join(err, r.dropUnmarked(subvolume)) // for example because metadata is full
	}
	_, err := btrfs.AssignQgroup(r.dir, btrfs.NewQgroupID(0, subvolume), group)
	return err
}

// dropUnmarked removes a group that was made and could not be marked.
func (r *root) dropUnmarked(subvolume uint64) error {
	group, whose, err := r.groupOf(subvolume)
	if err != nil || whose != halfMade {
		return err
	}
	err = btrfs.RemoveQgroup(r.dir, group.ID)
	if errors.Is(err, unix.EBUSY) { // 0/<id> is a member
		return nil
	}
	return err
}

// makeGroup makes the group 1/<id> of a subvolume. It fails with ErrForeign if an administrator
// has made that group, whose members would share the volume's limit.
func (r *root) makeGroup(subvolume uint64) error {
	id := r.group(subvolume)
	_, whose, err := r.groupOf(subvolume)
	switch {
	case err != nil:
		return err
	case whose == nobody:
		return btrfs.CreateQgroup(r.dir, id)
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
func (r *root) Bound(volume uint64, size int64, nested []uint64) (inside Usage, err error) {
	if err := r.checkQuota(); err != nil {
		return inside, fmt.Errorf("%w: %w", ErrAway, err)
	}
	switch r.disk.mode {
	case btrfs.QuotaFull:
		inside, err = r.boundFull(volume, size, nested)
	case btrfs.QuotaSimple:
		err = r.gather(volume, nested)
	}
	return inside, err
}

func (r *root) boundFull(volume uint64, size int64, nested []uint64) (inside Usage, err error) {
	ids := []btrfs.QgroupID{r.group(volume)} // the volume first: at its limit, no more can be nested in it
	for _, id := range nested {
		ids = append(ids, r.group(id))
	}
	groups, err := btrfs.QgroupsOf(r.dir, ids)
	if err != nil {
		return inside, err
	}
	filesystem, err := btrfs.Filesystem(r.dir)
	if err != nil {
		return inside, err
	}
	reserved, err := btrfs.ReservedOf(r.dir, ids)
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
		if err := btrfs.LimitQgroup(r.dir, id, limit); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return inside, err
		}
	}
	return inside, nil
}

// gather makes the nested subvolumes members of the group of their volume, and of no other.
func (r *root) gather(volume uint64, nested []uint64) error {
	members := make([]btrfs.QgroupID, 0, len(nested))
	for _, id := range nested {
		members = append(members, btrfs.NewQgroupID(0, id))
	}
	parents, err := btrfs.QgroupParents(r.dir, members)
	if err != nil {
		return err
	}
	group := r.group(volume)
	for _, member := range members {
		if slices.Equal(parents[member], []btrfs.QgroupID{group}) {
			continue
		}
		if _, err := btrfs.AssignQgroup(r.dir, member, group); err != nil {
			return err
		}
		for _, other := range parents[member] {
			if other == group {
				continue
			}
			if _, err := btrfs.UnassignQgroup(r.dir, member, other); err != nil {
				return err
			}
		}
	}
	return nil
}

func (r *root) Usage(subvolume uint64) (Usage, error) {
	if r.disk.mode == btrfs.QuotaNone {
		return Usage{}, ErrNoQuota
	}
	q, err := btrfs.QgroupOf(r.dir, r.group(subvolume))
	if errors.Is(err, fs.ErrNotExist) || r.disk.mode == btrfs.QuotaSimple && q.Mark != mark { // no limit yet, or a snapshot in simple mode
		q, err = btrfs.QgroupOf(r.dir, btrfs.NewQgroupID(0, subvolume))
		q.MaxReferenced = btrfs.NoLimit
	}
	usage := Usage{Used: clamp(q.Referenced), Limit: r.limitOf(q)}
	if r.disk.mode == btrfs.QuotaFull {
		usage.Exclusive = clamp(q.Exclusive)
	}
	return usage, err
}

func (r *root) ForgetQuota(subvolume uint64) error {
	if r.disk.mode == btrfs.QuotaNone {
		return nil
	}
	if err := r.closeGroup(subvolume); err != nil {
		return err
	}
	// The kernel needs the group until it has dropped the tree.
	if there, err := btrfs.TreeExists(r.dir, subvolume); there || err != nil {
		return errors.Join(err, unix.EBUSY)
	}
	own := btrfs.NewQgroupID(0, subvolume)
	// Simple quota would return EBUSY for this, but begin a transaction for it each time, and
	// no disk would ever sleep. Full quota, whose counters follow with the commit after the
	// drop, would remove the group and become inconsistent.
	if group, err := btrfs.QgroupOf(r.dir, own); err == nil && group.Referenced > 0 {
		return fmt.Errorf("group %s: %w", own, unix.EBUSY)
	}
	if err := btrfs.RemoveQgroup(r.dir, own); err != nil {
		return err
	}
	return r.removeGroup(subvolume)
}

// closeGroup sets the limit of the group 1/<id> of a destroyed subvolume to 1 byte.
func (r *root) closeGroup(subvolume uint64) error {
	group, whose, err := r.groupOf(subvolume)
	if err != nil || whose != ours || group.MaxReferenced == 1 {
		return err
	}
	if there, err := btrfs.Exists(r.dir, subvolume); there || err != nil {
		return err
	}
	return btrfs.LimitQgroup(r.dir, group.ID, 1)
}

func (r *root) removeGroup(subvolume uint64) error {
	group, whose, err := r.groupOf(subvolume)
	if err != nil || whose != ours {
		return err
	}
	return btrfs.RemoveQgroup(r.dir, group.ID)
}

// Groups returns as stale all groups 0/<id> whose subvolume is gone and whose tree the kernel has
// dropped, whoever made the subvolume, and the groups 1/<id> that the driver made and that have no
// members.
func (r *root) Groups() (Groups, error) {
	if r.disk.mode == btrfs.QuotaNone {
		return Groups{}, nil
	}
	status, groups, err := btrfs.Qgroups(r.dir) // before the trees: a subvolume made meanwhile is not gone
	if err != nil {
		return Groups{}, err
	}
	trees, err := btrfs.Trees(r.dir)
	if err != nil {
		return Groups{}, err
	}
	limits, gone := r.quotaGroups(groups)
	g := Groups{Status: status, Limits: limits}
	for id, live := range trees {
		if delete(gone, id); !live {
			g.Pinned = append(g.Pinned, id)
		}
	}
	for id, of := range gone {
		members := false
		if !of.charged && !of.own {
			var failed error
			members, failed = btrfs.QgroupMembers(r.dir, r.group(id))
			err = errors.Join(err, failed)
		}
		switch {
		case of.charged:
			g.Pinned = append(g.Pinned, id)
		case !members:
			g.Stale = append(g.Stale, id)
		}
	}
	return g, err
}

// quotaGroups are the groups of a subvolume: 0/<id> if own is set, else 1/<id>, which the driver
// made. charged: simple quota charges one of them for data. While a snapshot contains that data,
// the kernel keeps the group, also after the subvolume is gone.
type quotaGroups struct{ own, charged bool }

// quotaGroups returns the limits and the groups of every subvolume, by its ID.
func (r *root) quotaGroups(groups []btrfs.Qgroup) (limits map[uint64]int64, all map[uint64]quotaGroups) {
	simple := r.disk.mode == btrfs.QuotaSimple
	limits, all = map[uint64]int64{}, map[uint64]quotaGroups{}
	for _, q := range groups {
		id, level := q.ID.Subvolume(), q.ID.Level()
		switch { // groups of level 0 come first; in simple mode they have no limit
		case level == 0 && simple:
			limits[id] = 0
		case level == 0 || level == 1 && simple:
			limits[id] = r.limitOf(q)
		}
		if own := level == 0; id >= firstSubvolume && (own || simple && level == 1 && q.Mark == mark) {
			all[id] = quotaGroups{all[id].own || own, all[id].charged || simple && q.Referenced > 0}
		}
	}
	return limits, all
}

// firstSubvolume is the smallest ID of a subvolume (BTRFS_FIRST_FREE_OBJECTID).
const firstSubvolume = 256

// limitOf returns the limit of a group, in bytes; 0 for none, or if the driver did not make it.
func (r *root) limitOf(q btrfs.Qgroup) int64 {
	if q.MaxReferenced == btrfs.NoLimit || r.disk.mode == btrfs.QuotaSimple && q.Mark != mark {
		return 0
	}
	return clamp(q.MaxReferenced)
}

// clamp converts a counter of the kernel, at most to math.MaxInt64.
func clamp(bytes uint64) int64 { return int64(min(bytes, math.MaxInt64)) }
