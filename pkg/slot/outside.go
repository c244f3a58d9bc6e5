package slot

import (
	"errors"
	"fmt"
	"slices"

	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
	"github.com/btrfs-csi/btrfs-csi/pkg/pool"
)

// When the filesystem around a pool is rolled back, a snapshot takes the place of the subvolume
// that contains the pool's directory. The snapshot contains the old slots and records, and stubs
// in place of the pool's subvolumes. The subvolumes are whole, below the subvolume that was moved
// aside. Only an administrator knows which of the two will be used. So the driver moves nothing,
// and reports where the data is.

var (
	// ErrLost means that the record says ready, but the subvolume is gone.
	ErrLost = errors.New("subvolume is lost")
	// ErrOutside means that the subvolume lies outside of the pool on the same filesystem. It
	// wraps ErrLost.
	ErrOutside = fmt.Errorf("%w from the pool, but not from its filesystem", ErrLost)
)

// lostError returns the error for a slot whose record says ready, but whose subvolume is absent.
func (l *Slot) lostError() error {
	ref := l.Record.Ref()
	o, found, err := l.findOutside()
	if found {
		return fmt.Errorf("%s: %w: %s", ref, ErrOutside, o.WayBack())
	}
	if err != nil { // the data may be outside
		return fmt.Errorf("%s: its record in pool %q is there, its data is not, and cannot be looked for outside of the pool: %w", ref, l.session.Name, err)
	}
	return fmt.Errorf("%s: its record in pool %q is there, its data is not: %w: restore a snapshot, then delete it", ref, l.session.Name, ErrLost)
}

// findOutside returns where the subvolume of a lost slot is, if it lies outside of the pool.
func (l *Slot) findOutside() (o pool.OutsideSubvolume, found bool, err error) {
	all, err := l.session.RecentOutside()
	if at := slices.IndexFunc(all, l.madeAs); at >= 0 {
		return all[at], true, err
	}
	return o, false, err
}

// madeAs reports whether a subvolume outside was made for l, and not for another one of its name.
func (l *Slot) madeAs(o pool.OutsideSubvolume) bool {
	record, err := meta.DecodeRecord(o.Record)
	return err == nil && o.Slot == pool.SlotOf(l.Record.Kind, l.Record.ID) && record.Name == l.Record.Name && record.Created.Equal(l.Record.Created)
}
