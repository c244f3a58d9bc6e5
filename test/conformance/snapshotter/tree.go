package snapshotter

import (
	"fmt"
	"sync"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"

	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
)

// tree has all keys and their parents. containerd requires two rules that the engine does not have: one
// name space for actives, views and committed, and no removal of a snapshot with children. The tree is in
// memory. New builds it from the records.
//
// A key is busy while the engine works on it. A second operation on it fails at once with ErrUnavailable.
type tree struct {
	mu    sync.Mutex // protects what follows; never held across I/O
	nodes map[string]*node
}

// node is one snapshot: an active, a view or a committed.
type node struct {
	ref    meta.Ref // its reference in the engine
	kind   snapshots.Kind
	parent string // the key of the parent; empty for none

	children int  // number of children
	busy     bool // being created or removed

	// measured is the usage of the subvolume with this UUID, once it was measured.
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

// declare adds a key for a new active or view, which is busy until settle or drop. It returns the engine's
// reference of the parent, which cannot be removed from now on.
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

// declareCommit adds name for the committed that is made from the active key, and makes both busy. It
// returns the active.
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

// declareRemove makes key busy for its removal. It fails if key has children.
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

// settle makes key idle. drop also removes it from the tree.
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

// remember stores the usage of a committed, which does not change.
func (t *tree) remember(key, uuid string, usage snapshots.Usage) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if n, ok := t.nodes[key]; ok {
		n.measured.uuid, n.measured.usage = uuid, usage
	}
}

// load fills an empty tree. A parent may be missing, if somebody has removed it without the Snapshotter.
func (t *tree) load(nodes map[string]*node) {
	for _, n := range nodes {
		if p, ok := nodes[n.parent]; ok {
			p.children++
		}
	}
	t.nodes = nodes
}

// free fails if key exists or is empty. The caller of free and take holds mu.
func (t *tree) free(key string) error {
	n, ok := t.nodes[key]
	switch {
	case key == "": // the empty key means no parent
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
