package btrfs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// NoLimit is the limit of a qgroup without limit.
const NoLimit = ^uint64(0)

const qgroupLevelShift = 48

// QgroupID contains the level in its upper 16 bits and the number in its lower 48 bits.
type QgroupID uint64

// NewQgroupID returns level/id. On level 0, id is the ID of a subvolume.
func NewQgroupID(level uint16, id uint64) QgroupID {
	return QgroupID(uint64(level)<<qgroupLevelShift | id&(1<<qgroupLevelShift-1))
}

// Level returns the level. Level 0 contains the qgroups of subvolumes.
func (q QgroupID) Level() uint16 { return uint16(q >> qgroupLevelShift) }

// Subvolume returns the number within the level. On level 0 it is the ID of the subvolume.
func (q QgroupID) Subvolume() uint64 { return uint64(q) & (1<<qgroupLevelShift - 1) }

// String returns the notation of btrfs-progs, such as "0/257".
func (q QgroupID) String() string { return fmt.Sprintf("%d/%d", q.Level(), q.Subvolume()) }

// Qgroup is the usage and the limit of a qgroup, in bytes. The usage is as of the last
// commit. The limit is current.
type Qgroup struct {
	ID            QgroupID
	Referenced    uint64 // bytes referenced; with simple quota, bytes written
	Exclusive     uint64 // bytes that no other qgroup references; with simple quota, equal to Referenced
	MaxReferenced uint64 // NoLimit for none
	// Mark is the mark set by LimitOwnQgroup, 0 for none.
	Mark uint64
}

// CreateQgroup creates a qgroup, if it does not exist. Level 0 is the kernel's: newer
// kernels answer EINVAL. Errors: ENOTCONN when quota is off.
func CreateQgroup[D Dir](dir D, id QgroupID) error {
	return withQgroup("create qgroup on", id, dir, func(fd int) error {
		args := qgroupCreateArgs{create: 1, qgroupID: uint64(id)}
		_, err := ioctl(fd, iocQgroupCreate, unsafe.Pointer(&args))
		if errors.Is(err, unix.EEXIST) {
			return nil
		}
		return err
	})
}

// RemoveQgroup removes a qgroup, if it exists and quota is on. Errors: EBUSY while it has
// members. Newer kernels also answer EBUSY while its subvolume exists or, with simple
// quota, usage is charged to it. Older kernels remove the qgroup and limit of a live
// subvolume, so call TreeExists first.
func RemoveQgroup[D Dir](dir D, id QgroupID) error {
	return withQgroup("remove qgroup on", id, dir, func(fd int) error {
		args := qgroupCreateArgs{qgroupID: uint64(id)}
		_, err := ioctl(fd, iocQgroupCreate, unsafe.Pointer(&args))
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTCONN) {
			return nil
		}
		return err
	})
}

// AssignQgroup makes member count towards group, of a higher level, if it does not yet. If
// rescan is true, full quota is inconsistent until RescanQuota. Errors: ENOENT or EINVAL
// when one is absent; ENOTCONN when quota is off.
func AssignQgroup[D Dir](dir D, member, group QgroupID) (rescan bool, err error) {
	err = withQgroup("assign qgroup "+member.String()+" on", group, dir, func(fd int) error {
		rescan, err = assignQgroup(fd, qgroupAssignArgs{assign: 1, src: uint64(member), dst: uint64(group)})
		if errors.Is(err, unix.EEXIST) {
			return nil
		}
		return err
	})
	return rescan, err
}

// UnassignQgroup removes member, with its usage, from group, if it is in it. rescan and
// errors: see AssignQgroup.
func UnassignQgroup[D Dir](dir D, member, group QgroupID) (rescan bool, err error) {
	err = withQgroup("unassign qgroup "+member.String()+" on", group, dir, func(fd int) error {
		rescan, err = assignQgroup(fd, qgroupAssignArgs{src: uint64(member), dst: uint64(group)})
		if isNotFound(err) {
			return nil
		}
		return err
	})
	return rescan, err
}

func assignQgroup(fd int, args qgroupAssignArgs) (rescan bool, err error) {
	code, err := ioctl(fd, iocQgroupAssign, unsafe.Pointer(&args))
	return code > 0, err
}

// LimitQgroup limits what a qgroup may reference, in bytes; NoLimit lifts the limit. Writes
// beyond it fail with EDQUOT. A limit below the usage is accepted. Errors: fs.ErrNotExist;
// ENOTCONN when quota is off.
func LimitQgroup[D Dir](dir D, id QgroupID, maxReferenced uint64) error {
	return withQgroup("limit qgroup on", id, dir, func(fd int) error {
		// The ioctl takes the value of NoLimit to clear a limit.
		args := qgroupLimitArgs{qgroupID: uint64(id), flags: qgroupLimitMaxRfer, maxRfer: maxReferenced}
		_, err := ioctl(fd, iocQgroupLimit, unsafe.Pointer(&args))
		return err
	})
}

// LimitOwnQgroup is LimitQgroup that also marks the qgroup as the caller's. The mark is in
// the field rsv_excl of the limit, which every kernel stores, none uses, and btrfs-progs
// keeps.
func LimitOwnQgroup[D Dir](dir D, id QgroupID, maxReferenced, mark uint64) error {
	return withQgroup("limit qgroup on", id, dir, func(fd int) error {
		args := qgroupLimitArgs{qgroupID: uint64(id), flags: qgroupLimitMaxRfer | qgroupLimitRsvExcl, maxRfer: maxReferenced, rsvExcl: mark}
		_, err := ioctl(fd, iocQgroupLimit, unsafe.Pointer(&args))
		return err
	})
}

// QgroupOf returns one qgroup, at the cost of two lookups. Errors: fs.ErrNotExist when it
// is absent or quota is off.
func QgroupOf[D Dir](dir D, id QgroupID) (Qgroup, error) {
	var group Qgroup
	err := withQgroup("qgroup of", id, dir, func(fd int) (err error) {
		group, err = findQgroup(fd, id)
		return err
	})
	return group, err
}

// fewQgroups is the number up to which single lookups are cheaper than reading all qgroups.
const fewQgroups = 256

// QgroupsOf is QgroupOf for many qgroups. Absent qgroups are left out.
func QgroupsOf[D Dir](dir D, ids []QgroupID) (map[QgroupID]Qgroup, error) {
	groups := make(map[QgroupID]Qgroup, len(ids))
	if len(ids) > fewQgroups {
		return groups, allQgroupsOf(dir, ids, groups)
	}
	err := withDir("qgroups of", dir, func(fd int) error {
		for _, id := range ids {
			group, err := findQgroup(fd, id)
			if isNotFound(err) {
				continue
			}
			if err != nil {
				return fmt.Errorf("%s: %w", id, err)
			}
			groups[id] = group
		}
		return nil
	})
	return groups, err
}

func allQgroupsOf[D Dir](dir D, ids []QgroupID, groups map[QgroupID]Qgroup) error {
	wanted := make(map[QgroupID]struct{}, len(ids))
	for _, id := range ids {
		wanted[id] = struct{}{}
	}
	return WalkQgroups(dir, func(group Qgroup) error {
		if _, is := wanted[group.ID]; is {
			groups[group.ID] = group
		}
		return nil
	})
}

func findQgroup(fd int, id QgroupID) (Qgroup, error) {
	info, err := findItem(fd, quotaTree, itemKey{0, qgroupInfoKey, uint64(id)})
	if err != nil {
		return Qgroup{}, err
	}
	group, err := decodeQgroup(info)
	if err != nil {
		return group, err
	}
	limit, err := findItem(fd, quotaTree, itemKey{0, qgroupLimitKey, uint64(id)})
	if isNotFound(err) {
		return group, nil
	}
	if err == nil {
		err = group.decodeLimit(limit)
	}
	return group, err
}

// ReservedOf returns the reserved bytes of each qgroup: data in memory or in the running
// transaction. The kernel counts these towards limits, but not in the usage. They come from
// sysfs. Without sysfs, and on older kernels, the result is empty.
func ReservedOf[D Dir](dir D, ids []QgroupID) (map[QgroupID]uint64, error) {
	reserved := map[QgroupID]uint64{}
	err := withDir("reserved of qgroups of", dir, func(fd int) error {
		info, err := fsInfo(fd)
		if err != nil {
			return err
		}
		dir, err := unix.Open("/sys/fs/btrfs/"+info.fsid.String()+"/qgroups", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil
		}
		defer unix.Close(dir)
		for _, id := range ids {
			if bytes, ok := readNumber(dir, fmt.Sprintf("%d_%d/rsv_data", id.Level(), id.Subvolume())); ok {
				reserved[id] = bytes
			}
		}
		return nil
	})
	return reserved, err
}

// readNumber reads a number from a file of sysfs in an open directory.
func readNumber(dir int, name string) (uint64, bool) {
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, false
	}
	defer unix.Close(fd)
	var text [24]byte
	n, err := unix.Read(fd, text[:])
	if err != nil {
		return 0, false
	}
	number, err := strconv.ParseUint(strings.TrimSpace(string(text[:n])), 10, 64)
	return number, err == nil
}

// QgroupParents returns the qgroups that each member counts towards, without members that
// have none.
func QgroupParents[D Dir](dir D, members []QgroupID) (map[QgroupID][]QgroupID, error) {
	parents := map[QgroupID][]QgroupID{}
	err := withDir("parents of qgroups of", dir, func(fd int) error {
		for _, member := range members {
			// The tree stores each relation in both directions: see QgroupMembers.
			higher := uint64(member.Level()+1) << qgroupLevelShift
			last := itemKey{uint64(member), qgroupRelation, ^uint64(0)}
			for item, err := range searchTree(fd, quotaTree, itemKey{uint64(member), qgroupRelation, higher}, last, itemBuffer) {
				if err != nil && isNotFound(err) {
					break
				}
				if err != nil {
					return fmt.Errorf("%s: %w", member, err)
				}
				parents[member] = append(parents[member], QgroupID(item.offset))
			}
		}
		return nil
	})
	return parents, err
}

// WalkQgroups calls fn with every qgroup, ordered by ID, or with none when quota is off. It
// stops at the first error of fn and returns it.
func WalkQgroups[D Dir](dir D, fn func(Qgroup) error) error {
	_, groups, err := Qgroups(dir)
	for _, group := range groups {
		if err == nil {
			err = fn(group)
		}
	}
	return err
}

// Qgroups returns the state of quota, as Quota does, and every qgroup, ordered by ID. It reads
// the quota tree once, and may miss concurrent changes.
func Qgroups[D Dir](dir D) (status QuotaStatus, groups []Qgroup, err error) {
	err = withDir("qgroups of", dir, func(fd int) error {
		status.Mode = QuotaNone
		first, last := itemKey{0, qgroupStatusKey, 0}, itemKey{0, qgroupLimitKey, ^uint64(0)}
		limited := 0 // the first qgroup whose limit may follow
		for item, err := range searchTree(fd, quotaTree, first, last, bulkBuffer) {
			switch {
			case err != nil:
				if isNotFound(err) { // quota is off
					err = nil
				}
				return err
			case item.itemType == qgroupStatusKey:
				status, err = decodeStatus(item)
			case item.itemType == qgroupInfoKey: // those of all qgroups precede all limits
				var group Qgroup
				group, err = decodeQgroup(item)
				groups = append(groups, group)
			case item.itemType == qgroupLimitKey:
				for limited < len(groups) && uint64(groups[limited].ID) < item.offset {
					limited++
				}
				if limited < len(groups) && uint64(groups[limited].ID) == item.offset {
					err = groups[limited].decodeLimit(item)
				}
			}
			if err != nil {
				return err
			}
		}
		return status.refresh(fd)
	})
	return status, groups, err
}

// QgroupMembers reports whether group has members, and so cannot be removed. Level 0 never
// has any.
func QgroupMembers[D Dir](dir D, group QgroupID) (bool, error) {
	if group.Level() == 0 {
		return false, nil
	}
	var found bool
	err := withQgroup("members of qgroup on", group, dir, func(fd int) (err error) {
		// Keys that begin with group end first in its members, whose levels are lower, then
		// in its parents: the tree stores each relation in both directions.
		lower := uint64(group.Level())<<qgroupLevelShift - 1
		_, found, err = findFirst(fd, quotaTree,
			itemKey{uint64(group), qgroupRelation, 0}, itemKey{uint64(group), qgroupRelation, lower})
		if isNotFound(err) {
			return nil
		}
		return err
	})
	return found, err
}

// withQgroup is withDir that adds the qgroup to errors.
func withQgroup[D Dir](operation string, id QgroupID, dir D, fn func(fd int) error) error {
	return withDir(operation, dir, func(fd int) error {
		err := fn(fd)
		if err != nil {
			err = fmt.Errorf("%s: %w", id, err)
		}
		return err
	})
}

// decodeQgroup reads struct btrfs_qgroup_info_item: generation, rfer, rfer_cmpr,
// excl, excl_cmpr.
func decodeQgroup(item treeItem) (Qgroup, error) {
	if len(item.data) < 40 {
		return Qgroup{}, item.tooShort(40)
	}
	return Qgroup{
		ID:            QgroupID(item.offset),
		Referenced:    binary.LittleEndian.Uint64(item.data[8:]),
		Exclusive:     binary.LittleEndian.Uint64(item.data[24:]),
		MaxReferenced: NoLimit,
	}, nil
}

// decodeLimit reads struct btrfs_qgroup_limit_item: flags, max_rfer, max_excl, rsv_rfer,
// rsv_excl.
func (q *Qgroup) decodeLimit(item treeItem) error {
	if len(item.data) < 40 {
		return item.tooShort(40)
	}
	flags := binary.LittleEndian.Uint64(item.data)
	if flags&qgroupLimitMaxRfer != 0 {
		q.MaxReferenced = binary.LittleEndian.Uint64(item.data[8:])
	}
	if flags&qgroupLimitRsvExcl != 0 {
		q.Mark = binary.LittleEndian.Uint64(item.data[32:])
	}
	return nil
}
