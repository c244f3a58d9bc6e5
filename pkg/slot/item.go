package slot

import (
	"errors"

	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
	"github.com/btrfs-csi/btrfs-csi/pkg/pool"
)

// Item describes one slot for people.
type Item struct {
	meta.Entry
	Path   string      `json:"path"`   // within the pool
	Status string      `json:"status"` // see statuses
	Detail string      `json:"detail,omitempty"`
	Usage  *pool.Usage `json:"usage,omitempty"` // nil without quota
	// Nested are the subvolumes that pods have made in it, one level deep.
	Nested []string `json:"nested,omitempty"`
}

// statuses are the states in the words of users.
var statuses = map[state]string{
	ready:      "Ready",
	declared:   "Creating",
	half:       "Creating",
	lost:       "Lost",
	damaged:    "Damaged",
	foreign:    "Foreign",
	unreadable: "Unreadable",
	removing:   "Removing",
}

// Item describes the slot; fs.ErrNotExist if it was removed since it was read.
func (l *Slot) Item() (Item, error) {
	item := Item{Entry: l.entry(), Path: l.At.String(), Status: statuses[l.state]}
	if l.err != nil {
		item.Detail = l.err.Error()
	}
	if item.ID == "" { // no record
		ref, _ := l.At.Ref()
		item.ID = ref.ID
	}
	if l.info.ID == 0 {
		return item, nil
	}
	var err error
	if item.Nested, err = l.session.Nested(l.At); err != nil {
		return item, err
	}
	usage, err := l.Usage()
	if errors.Is(err, pool.ErrNoQuota) {
		return item, nil
	}
	item.Usage = &usage
	return item, err
}

// UnreadableItem is the item of a pool that cannot be read.
func UnreadableItem(p *Pool, reason error) Item {
	return Item{Entry: meta.Entry{Pool: p.Name, PoolID: p.ID}, Status: statuses[unreadable], Detail: reason.Error()}
}
