package slot

import (
	"slices"
	"strings"

	"github.com/btrfs-csi/btrfs-csi/pkg/pool"
)

const (
	// UnfinishedCreate is a slot whose create was interrupted. Repair: completed if the subvolume
	// exists, else undone.
	UnfinishedCreate pool.Problem = "UnfinishedCreate"
	// UnfinishedRemove is a slot whose removal was interrupted. Repair: completed.
	UnfinishedRemove pool.Problem = "UnfinishedRemove"
	// WrongLimit is a volume whose limit differs from its size. Repair: set again.
	WrongLimit pool.Problem = "WrongLimit"
	// StaleQuota are qgroups of destroyed subvolumes. Repair: removed.
	StaleQuota pool.Problem = "StaleQuota"
	// Lost is a record whose subvolume is gone. Kept, and never replaced by an empty one.
	Lost pool.Problem = "Lost"
	// Damaged is a record whose subvolume exists but cannot be read. Kept.
	Damaged pool.Problem = "Damaged"
	// OutsidePool is a volume or snapshot of the pool that lies outside of it, on the same
	// filesystem, and has no slot in it. Kept.
	OutsidePool pool.Problem = "OutsidePool"
	// Foreign is something that btrfs-csi did not make. Kept. In the slot of a volume or snapshot
	// it blocks the removal.
	Foreign pool.Problem = "Foreign"
	// UnreadableRecord is a record that is damaged, of a later version, or in the wrong slot.
	// Kept.
	UnreadableRecord pool.Problem = "UnreadableRecord"
	// Writable is a snapshot or view that somebody made writable. Kept: its content may have
	// changed.
	Writable pool.Problem = "Writable"
	// DiskLost is a volume or snapshot whose disk file is gone, or is something else. Kept, and
	// never replaced by an empty one.
	DiskLost pool.Problem = "DiskLost"
	// DiskCut is a disk file that is smaller than the size of its volume or snapshot, for example
	// after a power cut during an expansion. Repair: grown, if it is that of a volume.
	DiskCut pool.Problem = "DiskCut"
	// ReadOnlyVolume is a volume whose subvolume somebody made read-only. Kept.
	ReadOnlyVolume pool.Problem = "ReadOnlyVolume"
)

// Finding is one difference between a pool and its ledger, or one fault of a pool.
type Finding struct {
	Pool     string       `json:"pool"`
	Path     string       `json:"path,omitempty"` // within the pool
	Problem  pool.Problem `json:"problem"`
	Detail   string       `json:"detail"`
	Repair   string       `json:"repair,omitempty"` // what a reconcile does; empty if only people can
	Repaired bool         `json:"repaired"`
	Error    string       `json:"error,omitempty"` // why the repair failed
	// Routine is set if every driver does the repair as part of its normal work. The finding is
	// harmless until then, and no fault.
	Routine bool `json:"routine,omitempty"`
}

// String returns one line for people.
func (f Finding) String() string {
	parts := []string{f.Pool, f.Path, string(f.Problem), f.Detail}
	return strings.Join(slices.DeleteFunc(parts, func(s string) bool { return s == "" }), ": ")
}

// Action is a finding with its repair.
type Action struct {
	Finding
	At  pool.Slot    // zero for a finding about the whole pool
	run func() error // nil if it is only reported
}

// Repairs reports whether Apply changes something.
func (a Action) Repairs() bool { return a.run != nil }

// Apply runs the repair, if any.
func (a Action) Apply() Finding {
	if a.run == nil {
		return a.Finding
	}
	if err := a.run(); err != nil {
		a.Error = err.Error()
	} else {
		a.Repaired = true
	}
	return a.Finding
}
