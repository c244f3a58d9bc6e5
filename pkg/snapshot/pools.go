package snapshot

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/btrfs-csi/btrfs-csi/pkg/pool"
	"github.com/btrfs-csi/btrfs-csi/pkg/slot"
)

// servedPool is one pool in use. Its name and Filesystem do not change.
type servedPool struct {
	*slot.Pool

	tending  sync.Mutex  // held during maintenance; a second maintenance is skipped
	returned atomic.Bool // the silence has ended, and unfinished operations are to be completed
	unread   atomic.Bool // the pool could not be read when the index was rebuilt

	right    compared       // the last comparison that found nothing wrong; protected by tending
	problems []pool.Problem // that were logged; protected by tending, like note
	note     string         // that was logged
}

// each calls fn for all pools concurrently, so that a silent pool delays no other. It returns the
// results in the order of the pools.
func each[P, T any](pools []P, fn func(P) T) []T {
	results := make([]T, len(pools))
	if len(pools) == 1 {
		results[0] = fn(pools[0])
		return results
	}
	var all sync.WaitGroup
	for i, p := range pools {
		all.Go(func() { results[i] = fn(p) })
	}
	all.Wait()
	return results
}

// allPools returns the pools in use, by name.
func (e *Engine) allPools() []*servedPool {
	e.mu.RLock()
	defer e.mu.RUnlock()
	all := make([]*servedPool, 0, len(e.pools))
	for _, p := range e.pools {
		all = append(all, p)
	}
	slices.SortFunc(all, func(a, b *servedPool) int { return strings.Compare(a.Name, b.Name) })
	return all
}

func (e *Engine) inUse(poolID string) bool {
	e.mu.RLock()
	defer e.mu.RUnlock()
	for _, p := range e.pools {
		if p.ID == poolID {
			return true
		}
	}
	return false
}

// pool returns the pool of a name. An empty name stands for pool.Default. If there is no such
// pool, not even one that cannot be used, it stands for the only pool.
func (e *Engine) pool(name string) (*servedPool, error) {
	e.mu.RLock()
	defer e.mu.RUnlock()
	wanted := name
	if wanted == "" {
		wanted = pool.Default
	}
	if p, ok := e.pools[wanted]; ok {
		return p, nil
	}
	if reason, ok := e.broken[wanted]; ok {
		return nil, fmt.Errorf("pool %q: %w: %w", wanted, ErrNoPool, reason)
	}
	if name == "" && len(e.pools) == 1 {
		for _, p := range e.pools {
			return p, nil
		}
	}
	have := make([]string, 0, len(e.pools))
	for name := range e.pools {
		have = append(have, name)
	}
	slices.Sort(have)
	return nil, fmt.Errorf("pool %q: %w, which has %q: name one of them, or mount a btrfs filesystem at pools/%s", wanted, ErrNoPool, have, wanted)
}

// PoolIDs returns the IDs of the pools in use, by name.
func (e *Engine) PoolIDs() map[string]string {
	ids := map[string]string{}
	for _, p := range e.allPools() {
		ids[p.Name] = p.ID
	}
	return ids
}

// Pools returns the state of every pool, also of those that cannot be used, ordered by name.
func (e *Engine) Pools(context.Context) []pool.Status {
	all := each(e.allPools(), func(p *servedPool) pool.Status { return p.Status() })
	e.mu.RLock()
	for name, err := range e.broken {
		all = append(all, pool.Status{Name: name, Error: err.Error(), Silent: pool.ProblemOf(err) == pool.Silent})
	}
	e.mu.RUnlock()
	slices.SortFunc(all, func(a, b pool.Status) int { return strings.Compare(a.Name, b.Name) })
	return all
}

// Answering fails if no pool of this node answers and at least one is silent.
func (e *Engine) Answering() error {
	var silent []error
	for _, p := range e.allPools() {
		_, silence := p.Silence()
		if silence == nil {
			return nil
		}
		silent = append(silent, silence)
	}
	e.mu.RLock()
	defer e.mu.RUnlock()
	for _, reason := range e.broken {
		if errors.Is(reason, pool.ErrSilent) {
			silent = append(silent, reason)
		}
	}
	return errors.Join(silent...)
}
