package slot

import (
	"errors"
	"fmt"
	"io/fs"

	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
	"github.com/btrfs-csi/btrfs-csi/pkg/pool"
)

// Faults returns all faults of a slot.
func (l *Slot) Faults() []Action { return l.faults(l.session.limitOf) }

// faults returns all faults of a slot. While the slot contains something foreign, a repair that
// would remove the slot is dropped.
func (l *Slot) faults(limit func(subvolume uint64) (int64, bool)) []Action {
	all := l.faultsOfState(limit)
	if len(l.beside) == 0 || l.state == foreign {
		return all
	}
	if l.state == declared || l.state == removing {
		all[0].Repair, all[0].run = "", nil
	}
	return append(all, l.fault(Foreign, l.obstacle(), "", nil))
}

// fault returns one fault of the slot with its repair.
func (l *Slot) fault(problem pool.Problem, detail, repair string, run func() error) Action {
	return Action{At: l.At, run: run, Finding: Finding{
		Pool: l.session.Name, Path: l.At.String(), Problem: problem, Detail: detail, Repair: repair}}
}

// faultsOfState returns the faults that the slot's state shows.
func (l *Slot) faultsOfState(limit func(subvolume uint64) (int64, bool)) []Action {
	switch l.state {
	case ready:
		return l.faultsOfReady(limit)
	case declared:
		return []Action{l.fault(UnfinishedCreate, "declared, but no subvolume was made", "undo", l.withdraw)}
	case half:
		return []Action{l.fault(UnfinishedCreate, "subvolume was made, but not completed", "complete", l.finish)}
	case removing:
		return []Action{l.fault(UnfinishedRemove, "on its way out", "complete", l.finishRemove)}
	case lost:
		return []Action{l.fault(Lost, l.lostDetail(), "", nil)}
	case damaged:
		return []Action{l.fault(Damaged, fmt.Sprintf("its data cannot be read (%v); mend the filesystem, or restore a snapshot", l.err), "", nil)}
	case foreign:
		return []Action{l.fault(Foreign, l.foreignDetail(), "", nil)}
	}
	return []Action{l.fault(UnreadableRecord, l.err.Error(), "", nil)}
}

// FaultsOfReady returns the faults of a whole volume or snapshot that its contents do not show.
func (l *Slot) FaultsOfReady() []Action { return l.faultsOfReady(l.session.limitOf) }

func (l *Slot) faultsOfReady(limit func(subvolume uint64) (int64, bool)) (all []Action) {
	if l.Record.Kind != meta.Active {
		if !l.info.ReadOnly {
			all = append(all, l.fault(Writable, "was made writable; its content may have changed", "", nil))
		}
		return append(all, l.faultsOfDisk()...)
	}
	if have, limited := limit(l.info.ID); limited && l.limitWrong(have) {
		all = append(all, l.fault(WrongLimit, fmt.Sprintf("the qgroup limit is %d bytes, it should be %d", have, l.limit()), "set", l.setLimit))
	}
	if l.info.ReadOnly {
		all = append(all, l.fault(ReadOnlyVolume, l.MadeReadOnly(), "", nil))
	}
	return append(all, l.faultsOfDisk()...)
}

// faultsOfDisk returns the faults of the disk file.
func (l *Slot) faultsOfDisk() []Action {
	if !l.Record.Content.IsDisk() {
		return nil
	}
	size, err := l.session.DiskSize(l.At)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return []Action{l.fault(DiskLost, "its disk file is gone; restore a snapshot, or delete it", "", nil)}
	case err != nil:
		return []Action{l.fault(DiskLost, fmt.Sprintf("its disk file cannot be opened (%v); restore a snapshot", err), "", nil)}
	case size >= l.Record.Size:
		return nil
	case !l.hasDisk() || l.info.ReadOnly:
		return []Action{l.fault(DiskCut, fmt.Sprintf("its disk file has %d bytes, its size is %d: somebody has cut it", size, l.Record.Size), "", nil)}
	}
	return []Action{l.fault(DiskCut, fmt.Sprintf("its disk file has %d bytes, its size is %d", size, l.Record.Size), "grow", l.growDisk)}
}

func (l *Slot) lostDetail() string {
	o, found, err := l.findOutside()
	if found {
		return o.WayBack()
	}
	if err != nil {
		return fmt.Sprintf("its record is there, its data is not, and cannot be looked for outside of the pool (%v)", err)
	}
	return "its record is there, its data is not; restore a snapshot, or delete it"
}

func (l *Slot) foreignDetail() string {
	if l.err != nil {
		return fmt.Sprintf("was not made by btrfs-csi (%v); it is kept", l.err)
	}
	return "was not made by btrfs-csi; it is kept"
}

// withdraw removes a slot without a subvolume.
func (l *Slot) withdraw() error {
	if err := l.thawSource(); err != nil {
		return err
	}
	return l.removeSlot()
}

// finish completes a slot, or undoes a copy that lacks part of its source.
func (l *Slot) finish() error {
	err := l.resume()
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
