package slot

import (
	"sync"
	"time"

	"github.com/btrfs-csi/btrfs-csi/pkg/pool"
)

// nested records what pods have nested in the volumes of a pool.
type nested struct {
	looking sync.Mutex // held during a look; protects all but usage

	// A look asks for IDs above from, the largest ID of the last look but one. So it asks for
	// each ID twice, because the entry of an ID may appear after that of a larger one.
	from, last uint64    // last is the largest ID of the last look
	full       time.Time // when the last full look began
	next       time.Time // the time of the next look at the earliest

	mu    sync.Mutex            // protects what follows
	usage map[uint64]pool.Usage // results of Bound, by ID of each volume with nested subvolumes
}

// volumes returns the number of volumes with nested subvolumes.
func (n *nested) volumes() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.usage)
}

// in returns the usage of the subvolumes nested in a volume, as of the last look, and whether
// there are any.
func (n *nested) in(volume uint64) (pool.Usage, bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	inside, nests := n.usage[volume]
	return inside, nests
}

// set records the result of a look at a volume, and reports whether it is the first one with
// nested subvolumes, or the first one without.
func (n *nested) set(volume uint64, inside pool.Usage, nests bool) (changed bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	_, did := n.usage[volume]
	switch {
	case !nests:
		delete(n.usage, volume)
	case n.usage == nil:
		n.usage = map[uint64]pool.Usage{volume: inside}
	default:
		n.usage[volume] = inside
	}
	return did != nests
}

// keep removes the volumes that are not in slots.
func (n *nested) keep(slots map[uint64]pool.Slot) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for volume := range n.usage {
		if _, there := slots[volume]; !there {
			delete(n.usage, volume)
		}
	}
}
