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
	// Parameters are those of the last group.
	Parameters map[string]string
	Refuses    error // to expand, and to take, look up and delete a group
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

// CommitGroup adds the members of a group.
func (n *Node) CommitGroup(_ context.Context, name string, volumes []string, parameters map[string]string) ([]meta.Entry, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.Refuses != nil {
		return nil, n.Refuses
	}
	n.Parameters = parameters
	entries := make([]meta.Entry, len(volumes))
	for i, volume := range volumes {
		e := n.Entries[meta.Volume(volume)]
		e.Source, e.Kind, e.Group = meta.Volume(volume), meta.Committed, meta.Group{ID: name, Member: i, Members: len(volumes)}
		e.Name = meta.MemberName(name, i)
		e.ID = meta.ID(e.Name)
		n.Entries[e.Ref()], entries[i] = e, e
	}
	return entries, nil
}

// Group returns the members of a group.
func (n *Node) Group(_ context.Context, id string, _ []string) ([]meta.Entry, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.Refuses != nil {
		return nil, n.Refuses
	}
	return n.members(id), nil
}

func (n *Node) members(id string) (entries []meta.Entry) {
	for _, e := range n.Entries {
		if e.Group.ID == id {
			entries = append(entries, e)
		}
	}
	slices.SortFunc(entries, func(a, b meta.Entry) int { return a.Group.Member - b.Group.Member })
	return entries
}

// DeleteGroup removes the members of a group.
func (n *Node) DeleteGroup(_ context.Context, id string, _ []string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.Refuses != nil {
		return n.Refuses
	}
	for _, e := range n.members(id) {
		delete(n.Entries, e.Ref())
	}
	return nil
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
