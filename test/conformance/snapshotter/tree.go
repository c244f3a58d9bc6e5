package snapshotter

import (
	"fmt"
	"sync"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"

	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
)

// tree knows which keys there are and who was made from whom. It is what
// containerd asks beyond the engine: one name space for actives, views and
// committed, and no removal of what has children. It is kept in memory, because
// the records have all of it and New reads them.
//
// A key is busy while the engine works on it. Nobody waits for one: who comes
// second gets ErrUnavailable.
type tree struct {
	mu    sync.Mutex // protects what follows; never held across I/O
	nodes map[string]*node
}

// node is one snapshot, as containerd calls actives, views and committed alike.
type node struct {
	ref    meta.Ref // in the engine
	kind   snapshots.Kind
	parent string // key; empty for none

	children int  // nodes whose parent this is
	busy     bool // being made or removed

	// measured is what the subvolume of this UUID holds, once that was measured.
	measured struct {
		uuid  string
		usage snapshots.Usage
	}
}

// find returns a copy of a node.
func (t *tree) find(key string) (node, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n, ok := t.nodes[key]
	if !ok {
		return node{}, fmt.Errorf("snapshot %q: %w", key, errdefs.ErrNotFound)
	}
	return *n, nil
}

// declare takes a key for a new active or view, busy until settle or drop, and
// returns the engine's reference of its parent. From then on the parent has a
// child and cannot be removed.
func (t *tree) declare(key string, n node) (parent meta.Ref, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if n.parent != "" {
		p, ok := t.nodes[n.parent]
		switch {
		case !ok:
			return parent, fmt.Errorf("parent %q of snapshot %q: %w", n.parent, key, errdefs.ErrNotFound)
		case p.kind != snapshots.KindCommitted:
			return parent, fmt.Errorf("parent %q of snapshot %q is %s, not committed: %w", n.parent, key, p.kind, errdefs.ErrInvalidArgument)
		case p.busy:
			return parent, busy(n.parent)
		}
		parent = p.ref
	}
	return parent, t.take(key, n)
}

// declareCommit takes name for the committed that is made of the active key, and
// makes both busy. It returns the active.
func (t *tree) declareCommit(name, key string) (node, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.free(name); err != nil {
		return node{}, err
	}
	active, ok := t.nodes[key]
	switch {
	case !ok:
		return node{}, fmt.Errorf("active %q: %w", key, errdefs.ErrNotFound)
	case active.kind != snapshots.KindActive:
		return node{}, fmt.Errorf("snapshot %q is %s, not active: %w", key, active.kind, errdefs.ErrFailedPrecondition)
	case active.busy:
		return node{}, busy(key)
	}
	committed := node{ref: meta.Snapshot(meta.ID(name)), kind: snapshots.KindCommitted, parent: active.parent}
	if err := t.take(name, committed); err != nil {
		return node{}, err
	}
	active.busy = true
	return *active, nil
}

// declareRemove makes key busy, to be removed, unless something was made from it.
func (t *tree) declareRemove(key string) (node, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n, ok := t.nodes[key]
	switch {
	case !ok:
		return node{}, fmt.Errorf("snapshot %q: %w", key, errdefs.ErrNotFound)
	case n.children > 0:
		return node{}, fmt.Errorf("cannot remove snapshot %q: %d made from it are there: %w", key, n.children, errdefs.ErrFailedPrecondition)
	case n.busy:
		return node{}, busy(key)
	}
	n.busy = true
	return *n, nil
}

// settle ends what made key busy, drop also forgets key.
func (t *tree) settle(key string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.nodes[key].busy = false
}

func (t *tree) drop(key string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if p, ok := t.nodes[t.nodes[key].parent]; ok {
		p.children--
	}
	delete(t.nodes, key)
}

// remember keeps the usage of a committed, which does not change.
func (t *tree) remember(key, uuid string, usage snapshots.Usage) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if n, ok := t.nodes[key]; ok {
		n.measured.uuid, n.measured.usage = uuid, usage
	}
}

// load fills an empty tree. A parent may have been removed behind our back.
func (t *tree) load(nodes map[string]*node) {
	for _, n := range nodes {
		if p, ok := nodes[n.parent]; ok {
			p.children++
		}
	}
	t.nodes = nodes
}

// free fails when key is taken, or none. The caller holds mu, here and in take.
func (t *tree) free(key string) error {
	n, ok := t.nodes[key]
	switch {
	case key == "": // stands for no parent
		return fmt.Errorf("a snapshot needs a key: %w", errdefs.ErrInvalidArgument)
	case !ok:
		return nil
	case n.busy:
		return busy(key)
	}
	return fmt.Errorf("snapshot %q: %w", key, errdefs.ErrAlreadyExists)
}

func (t *tree) take(key string, n node) error {
	if err := t.free(key); err != nil {
		return err
	}
	n.busy = true
	t.nodes[key] = &n
	if p, ok := t.nodes[n.parent]; ok {
		p.children++
	}
	return nil
}

func busy(key string) error {
	return fmt.Errorf("snapshot %q: another operation is under way: %w", key, errdefs.ErrUnavailable)
}
