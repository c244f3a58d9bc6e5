package snapshot

import (
	"context"
	"errors"
	"maps"

	"k8s.io/klog/v2"

	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
	"github.com/btrfs-csi/btrfs-csi/pkg/pool"
	"github.com/btrfs-csi/btrfs-csi/pkg/slot"
)

// compared is what mend compares with the index: the subvolume in each slot, and the limits by
// subvolume ID.
type compared struct {
	slots  map[pool.Slot]uint64
	limits map[uint64]int64
}

// known is what the index has for a slot.
type known struct {
	subvolume uint64 // 0: it cannot be read
	limit     int64
}

// mend compares the subvolumes in the slots of a pool, and their limits, with the index. They
// differ if somebody has exchanged a subvolume or put one back, has changed a limit, or has
// turned quota off and on again. They also differ if adopt skipped a volume because of a running
// operation. While neither subvolumes nor limits change, mend costs no more than reading both.
func (e *Engine) mend(ctx context.Context, p *servedPool, s *slot.Session, limits map[uint64]int64) error {
	census, err := s.Census()
	if err != nil {
		return err
	}
	now := compared{census.Slots, limits}
	if p.right.slots != nil && maps.Equal(p.right.slots, now.slots) && maps.Equal(p.right.limits, now.limits) {
		return nil
	}
	p.right = compared{}
	right, err := e.mendAll(ctx, s, now)
	if right {
		p.right = now
	}
	return err
}

// mendAll corrects the slots that look wrong, and reports whether none was wrong.
func (e *Engine) mendAll(ctx context.Context, s *slot.Session, now compared) (right bool, err error) {
	indexed, err := e.knownOf(s.Pool())
	if err != nil {
		return false, err
	}
	right = true
	for at, id := range now.slots {
		if k, is := indexed[at]; is && (k.subvolume == 0 || k.subvolume == id && !odd(s, at, k, now.limits)) {
			continue
		}
		mended, err := e.mendSlot(ctx, s, at)
		if err != nil || ctx.Err() != nil {
			return false, err // the others would fail too; try again in the next round
		}
		right = right && !mended
	}
	return right, nil
}

// odd reports whether the limit of a volume may be wrong.
func odd(s *slot.Session, at pool.Slot, k known, limits map[uint64]int64) bool {
	return at.Area == pool.Area(meta.Active) && limits != nil && s.Pool().OddLimit(k.subvolume, k.limit, limits[k.subvolume])
}

// knownOf returns what the index has for the slots of a pool.
func (e *Engine) knownOf(p *slot.Pool) (map[pool.Slot]known, error) {
	all := map[pool.Slot]known{}
	add := func(entry meta.Entry) bool {
		if entry.PoolID == p.ID {
			all[pool.SlotOf(entry.Kind, entry.ID)] = known{entry.SubvolumeID, p.Limit(entry.Content, entry.Size)}
		}
		return true
	}
	err := e.Walk(context.Background(), meta.Volumes, "", add)
	if err == nil {
		err = e.Walk(context.Background(), meta.Snapshots, "", add)
	}
	return all, err
}

// mendSlot looks at a slot under its lock, adds its subvolume to the index if the index has
// another one, and corrects a wrong limit. It reports whether it changed something or the slot is
// locked. It fails if the limit cannot be set.
func (e *Engine) mendSlot(ctx context.Context, s *slot.Session, at pool.Slot) (mended bool, err error) {
	ref, named := at.Ref()
	if !named {
		return false, nil
	}
	release, ok := e.locks.TryAcquire(ref)
	if !ok {
		return true, nil
	}
	defer release()
	found, err := s.Look(at)
	if err != nil || len(found) == 0 || !found[0].IsReady() {
		return false, nil // gone, or a fault that check reports
	}
	entry, err := found[0].Entry()
	if err != nil {
		return false, nil
	}
	if !e.indexHas(entry) {
		klog.FromContext(ctx).Info("Somebody has exchanged a subvolume, or put it back", "pool", s.Name, "path", at.String(), "subvolume", entry.SubvolumeID)
		e.indexPut(ctx, entry)
		mended = true
	}
	for _, a := range found[0].FaultsOfReady() {
		if !a.Repairs() {
			continue
		}
		mended = true
		done := a.Apply()
		logFindings(ctx, []Finding{done})
		if done.Error != "" {
			err = errors.Join(err, errors.New(done.Error))
		}
	}
	return mended, err
}

// notice calls mendSlot if the index has another subvolume in a slot that is about to be mounted,
// and that may have no limit.
func (e *Engine) notice(ctx context.Context, l *slot.Slot, entry meta.Entry) {
	if e.indexHas(entry) {
		return
	}
	err := l.Session().Thawed()
	if err == nil {
		_, err = e.mendSlot(ctx, l.Session(), l.At)
	}
	if err != nil {
		klog.FromContext(ctx).Error(err, "Qgroup limit cannot be set", "pool", entry.Pool, "path", l.At.String())
	}
}
