package pool

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"

	"golang.org/x/sys/unix"

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs"
	"github.com/btrfs-csi/btrfs-csi/pkg/diskfile"
	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
)

func (r *root) Create(s Slot) (btrfs.SubvolumeInfo, error) {
	path := r.subvolume(s)
	if err := btrfs.Create(path); err != nil {
		return btrfs.SubvolumeInfo{}, err
	}
	return btrfs.Info(path)
}

func (r *root) Snapshot(from, to Slot, readOnly bool) (btrfs.SubvolumeInfo, error) {
	path := r.subvolume(to)
	if err := btrfs.Snapshot(path, r.subvolume(from), readOnly); err != nil {
		return btrfs.SubvolumeInfo{}, err
	}
	return btrfs.Info(path)
}

func (r *root) SnapshotTogether(copies ...Copy) ([]btrfs.SubvolumeInfo, error) {
	pairs := make([]btrfs.Pair, len(copies))
	for i, c := range copies {
		pairs[i] = btrfs.Pair{Dst: r.subvolume(c.To), Src: r.subvolume(c.From)}
	}
	if err := btrfs.SnapshotTogether(r.dir, pairs...); err != nil {
		return nil, err
	}
	infos := make([]btrfs.SubvolumeInfo, len(copies))
	for i, p := range pairs {
		info, err := btrfs.Info(p.Dst)
		if err != nil {
			return nil, err
		}
		infos[i] = info
	}
	return infos, nil
}

// Destroy lifts the limits that block it (EDQUOT). Nested subvolumes cannot be destroyed at their
// limit, and Bound may have set the volume's own limit again after LiftLimit. Under simple quota
// the group 1/<id> stays while a snapshot contains data of the volume. Destroy closes this group,
// because a pod could nest a subvolume into it.
func (r *root) Destroy(s Slot) error {
	path := r.subvolume(s)
	info, err := btrfs.Info(path)
	if err != nil {
		return err
	}
	err = btrfs.Destroy(path)
	if errors.Is(err, unix.EDQUOT) {
		if lifted := errors.Join(r.LiftLimit(info.ID), r.liftNested(info.ID)); lifted != nil {
			return errors.Join(err, lifted)
		}
		err = btrfs.Destroy(path)
	}
	if err == nil {
		_ = r.closeGroup(info.ID) // after an error ForgetQuota closes it
	}
	return err
}

// liftNested does nothing under simple quota, where nested subvolumes count towards their volume.
func (r *root) liftNested(subvolume uint64) error {
	if r.disk.mode == btrfs.QuotaSimple {
		return nil
	}
	census, err := r.Census()
	for _, id := range census.Hosts()[subvolume] {
		err = errors.Join(err, r.LiftLimit(id))
	}
	return err
}

func (r *root) Census() (census Census, err error) {
	entries, err := btrfs.EntriesSince(r.dir, 0)
	if err != nil {
		return census, err
	}
	slots, err := r.slotsByInode()
	if err != nil {
		return census, err
	}
	census.Slots = make(map[Slot]uint64, len(slots))
	census.Nested, err = nestedAmong(r.dir, entries, func(e btrfs.Entry) {
		if slot, is := slots[e.Directory]; is && e.Name == subvolumeName {
			census.Slots[slot] = e.ID
		}
	})
	census.Last = last(entries)
	return census, err
}

func (r *root) NestedSince(from uint64) (census Census, err error) {
	entries, err := btrfs.EntriesSince(r.dir, from)
	if err != nil || len(entries) == 0 {
		return census, err
	}
	census.Last = last(entries)
	census.Nested, err = nestedAmong(r.dir, entries, func(btrfs.Entry) {})
	return census, err
}

// nestedAmong returns the parents of the entries that lie neither in the subvolume around the
// pool nor in the top level, by ID. It calls ours for each entry in the subvolume around the
// pool.
func nestedAmong(dir *os.File, entries []btrfs.Entry, ours func(btrfs.Entry)) (map[uint64]uint64, error) {
	around, err := btrfs.Around(dir)
	if err != nil {
		return nil, err
	}
	parents := map[uint64]uint64{}
	for _, e := range entries {
		switch e.Parent {
		case around:
			ours(e)
		case btrfs.TopLevel:
		default:
			parents[e.ID] = e.Parent
		}
	}
	return parents, nil
}

// last returns the largest ID of sorted entries, 0 for none.
func last(entries []btrfs.Entry) uint64 {
	if len(entries) == 0 {
		return 0
	}
	return entries[len(entries)-1].ID
}

// slotsByInode returns the slots of all kinds by the inode of their directory.
func (r *root) slotsByInode() (map[uint64]Slot, error) {
	slots := map[uint64]Slot{}
	for _, area := range Areas {
		if area == AreaRemoving {
			continue
		}
		inodes, err := btrfs.Inodes(r.area(area))
		if err != nil {
			return nil, err
		}
		for name, inode := range inodes {
			slots[inode] = Slot{area, name}
		}
	}
	return slots, nil
}

// Info returns fs.ErrNotExist for an entry fs that is not a subvolume. btrfs-csi did not make it,
// and Rmdir does not remove it.
func (r *root) Info(s Slot) (btrfs.SubvolumeInfo, error) {
	info, err := btrfs.Info(r.subvolume(s))
	if errors.Is(err, btrfs.ErrNotSubvolume) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		err = fmt.Errorf("%w: %w", fs.ErrNotExist, err)
	}
	return info, err
}

func (r *root) Nested(s Slot) ([]string, error) { return r.NestedUpTo(s, math.MaxUint64) }

func (r *root) NestedUpTo(s Slot, transid uint64) (paths []string, err error) {
	path := r.subvolume(s)
	nested, err := btrfs.NestedSubvolumes(path)
	for _, n := range nested {
		later, failed := madeAfter(path, n.ID, transid)
		if err = errors.Join(err, failed); later || failed != nil {
			continue
		}
		if n.Path == "" {
			n.Path = fmt.Sprintf("subvolume %d", n.ID)
		}
		paths = append(paths, n.Path)
	}
	return paths, err
}

// madeAfter reports whether a subvolume was made after transaction transid, or is gone by now.
func madeAfter(path string, subvolume, transid uint64) (bool, error) {
	if transid == math.MaxUint64 {
		return false, nil
	}
	made, err := btrfs.CreatedTransid(path, subvolume)
	if errors.Is(err, fs.ErrNotExist) {
		return true, nil
	}
	return made > transid, err
}

// SyncRoot syncs the directory first: operations share its commit, which may cover the disk file.
func (r *root) SyncRoot(s Slot) error {
	path := r.subvolume(s)
	if err := btrfs.Sync(path); err != nil {
		return err
	}
	err := diskfile.Sync(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

func (r *root) MakeDisk(s Slot, content meta.Content, size int64) error {
	return diskfile.Make(r.subvolume(s), content, size)
}

func (r *root) GrowDisk(s Slot, size int64) error { return diskfile.Grow(r.subvolume(s), size) }

func (r *root) DiskSize(s Slot) (int64, error) { return diskfile.Size(r.subvolume(s)) }

// Apply sets only properties that differ: a clone has those of its source, and each change is a
// transaction. btrfs refuses compression and nodatacow on one inode, so Apply clears the one
// before it sets the other. Files that exist keep their properties.
func (r *root) Apply(s Slot, p meta.Parameters) error {
	if !p.NoDataCow && p.Compression == "" {
		return nil
	}
	path := r.subvolume(s)
	compression, err := btrfs.Compression(path)
	if err != nil {
		return err
	}
	inPlace, err := btrfs.NoDataCow(path)
	if err != nil {
		return err
	}
	if p.NoDataCow {
		return applyNoDataCow(path, inPlace, compression)
	}
	return applyCompression(path, inPlace, compression, p.Compression)
}

func applyNoDataCow(path string, inPlace bool, compression string) error {
	if compression != "" {
		if err := btrfs.SetCompression(path, ""); err != nil {
			return err
		}
	}
	if inPlace {
		return nil
	}
	return btrfs.SetNoDataCow(path, true)
}

func applyCompression(path string, inPlace bool, have, want string) error {
	if inPlace {
		if err := btrfs.SetNoDataCow(path, false); err != nil {
			return err
		}
	}
	if have == want {
		return nil
	}
	return btrfs.SetCompression(path, want)
}
