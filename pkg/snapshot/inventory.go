package snapshot

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/btrfs-csi/btrfs-csi/pkg/pool"
	"github.com/btrfs-csi/btrfs-csi/pkg/slot"
)

// Item describes one slot for people.
type Item = slot.Item

// Inventory reads every slot of every pool from the ledgers, ordered by pool and path. A pool
// that is away is an item without an ID, whose Detail has the reason. The cost grows with the
// number of slots.
func (e *Engine) Inventory(context.Context) ([]Item, error) {
	var items []Item
	for _, p := range e.allPools() {
		found, err := p.items()
		items = append(items, found...)
		if errors.Is(err, pool.ErrAway) {
			items, err = append(items, slot.UnreadableItem(p.Pool, err)), nil
		}
		if err != nil {
			return nil, err
		}
	}
	return items, nil
}

func (p *servedPool) items() (items []Item, err error) {
	session, err := p.Open()
	if err != nil {
		return nil, err
	}
	defer session.Close()
	slots, err := session.Scan()
	for _, l := range slots {
		item, err := l.Item()
		if errors.Is(err, fs.ErrNotExist) {
			continue // removed since the scan
		}
		if err != nil {
			return items, fmt.Errorf("%s in pool %q: %w", l.At, p.Name, err)
		}
		items = append(items, item)
	}
	return items, err
}
