package clustertest

import (
	"context"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/btrfs-csi/btrfs-csi/pkg/cluster/node"
	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
)

// Node is a node in memory. A test may change its fields while no controller runs.
type Node struct {
	mu       sync.Mutex // protects what follows while something runs
	Entries  map[meta.Ref]meta.Entry
	Present  []node.Pool
	Gone     []string // IDs of pools that are away
	Excluded map[string]error
	Lost     map[meta.Ref]bool
	Looked   func(meta.Ref)
	Refuses  error // to expand
}

// NewNode returns a node that has entries.
func NewNode(entries ...meta.Entry) *Node {
	n := &Node{Entries: map[meta.Ref]meta.Entry{}}
	for _, e := range entries {
		n.Entries[e.Ref()] = e
	}
	return n
}

// Look implements node.Reader.
func (n *Node) Look(_ context.Context, ref meta.Ref) (meta.Entry, node.State) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.Looked != nil {
		n.Looked(ref)
	}
	e, ok := n.Entries[ref]
	switch {
	case !ok:
		return e, node.Gone
	case n.Lost[ref]:
		e.Lineage = meta.Lineage{}
		return e, node.Lost
	}
	return e, node.Ready
}

// Walk implements node.Reader, in the order of the entries.
func (n *Node) Walk(ctx context.Context, class meta.Class, fn func(meta.Entry) bool) error {
	for _, ref := range n.Refs() {
		if e, state := n.Look(ctx, ref); state == node.Ready && ref.Class == class && !fn(e) {
			return nil
		}
	}
	return nil
}

// Refs returns all volumes and snapshots, in order.
func (n *Node) Refs() []meta.Ref {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.SortedFunc(maps.Keys(n.Entries), func(a, b meta.Ref) int { return strings.Compare(a.String(), b.String()) })
}

// Used returns the same for all.
func (n *Node) Used(context.Context, meta.Ref) (int64, bool) { return 4096, true }

// Pools returns the pools on the node. An excluded one has no ID.
func (n *Node) Pools(context.Context) []node.Pool {
	n.mu.Lock()
	defer n.mu.Unlock()
	pools := slices.Clone(n.Present)
	for i := range pools {
		if reason := n.Excluded[pools[i].ID]; reason != nil {
			pools[i] = node.Pool{Name: pools[i].Name, Message: reason.Error()}
		}
	}
	return pools
}

// Away returns the IDs of the pools that are gone.
func (n *Node) Away(context.Context) []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.Gone)
}

// Forget forgets a pool that is gone.
func (n *Node) Forget(_ context.Context, poolID string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.Gone = slices.DeleteFunc(n.Gone, func(id string) bool { return id == poolID })
}

// Expand sets the size of an entry.
func (n *Node) Expand(_ context.Context, volume string, size int64) (int64, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.Refuses != nil {
		return 0, n.Refuses
	}
	e := n.Entries[meta.Volume(volume)]
	e.Size = size
	n.Entries[e.Ref()] = e
	return size, nil
}

// Remove removes an entry.
func (n *Node) Remove(_ context.Context, ref meta.Ref) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.Entries, ref)
	return nil
}

// Exclude records the excluded pools.
func (n *Node) Exclude(reasons map[string]error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.Excluded = reasons
}

// Owner implements node.Owner. The test sets what it owns.
type Owner struct {
	IDs     []string
	Pending bool // Decided is not closed
}

// Owns reports whether a pool is owned.
func (o *Owner) Owns(poolID string) bool { return slices.Contains(o.IDs, poolID) }

// Decided is closed unless the owner is pending.
func (o *Owner) Decided() <-chan struct{} {
	decided := make(chan struct{})
	if !o.Pending {
		close(decided)
	}
	return decided
}
