package snapshot

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
	"github.com/btrfs-csi/btrfs-csi/pkg/pool"
)

// Item describes one slot for people.
type Item struct {
	meta.Entry
	Path   string      `json:"path"`   // within the pool
	Status string      `json:"status"` // see slotState
	Detail string      `json:"detail,omitempty"`
	Usage  *pool.Usage `json:"usage,omitempty"` // nil without quota
	// Nested are the subvolumes that pods have made in it, one level deep.
	Nested []string `json:"nested,omitempty"`
}

// statuses are the slot states in the words of users.
var statuses = map[slotState]string{
	slotReady:      "Ready",
	slotDeclared:   "Creating",
	slotHalf:       "Creating",
	slotLost:       "Lost",
	slotDamaged:    "Damaged",
	slotForeign:    "Foreign",
	slotUnreadable: "Unreadable",
	slotRemoving:   "Removing",
}

// Inventory reads every slot of every pool from the ledgers, ordered by pool and path. A pool
// that is away is an item without an ID, whose Detail has the reason. The cost grows with the
// number of slots.
func (e *Engine) Inventory(context.Context) ([]Item, error) {
	var items []Item
	for _, p := range e.allPools() {
		found, err := p.items()
		items = append(items, found...)
		if errors.Is(err, pool.ErrAway) {
			items = append(items, Item{
				Entry:  meta.Entry{Pool: p.Name, PoolID: p.PoolID()},
				Status: statuses[slotUnreadable], Detail: err.Error(),
			})
			err = nil
		}
		if err != nil {
			return nil, err
		}
	}
	return items, nil
}

func (p *servedPool) items() (items []Item, err error) {
	slots, err := p.scan()
	for _, s := range slots {
		item, err := s.item()
		if errors.Is(err, fs.ErrNotExist) {
			continue // removed since the scan
		}
		if err != nil {
			return items, fmt.Errorf("%s in pool %q: %w", s.slot, p.Name, err)
		}
		items = append(items, item)
	}
	return items, err
}

func (s *scanned) item() (Item, error) {
	item := Item{Entry: entryOf(s.pool, s.record, s.info), Path: s.slot.String(), Status: statuses[s.state]}
	if s.err != nil {
		item.Detail = s.err.Error()
	}
	if item.ID == "" { // no record
		ref, _ := s.slot.Ref()
		item.ID = ref.ID
	}
	if s.info.ID == 0 {
		return item, nil
	}
	var err error
	if item.Nested, err = s.fs.Nested(s.slot); err != nil {
		return item, err
	}
	usage, err := s.pool.usageOf(s.info.ID)
	if errors.Is(err, pool.ErrNoQuota) {
		return item, nil
	}
	item.Usage = &usage
	return item, err
}
