package pooltest

import (
	"context"
	"fmt"
	"maps"
	"sync"

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs"
	"github.com/btrfs-csi/btrfs-csi/pkg/pool"
)

// Host is a node whose pools are in memory.
type Host struct {
	mu      sync.Mutex // protects pools, refused and known
	pools   map[string]*Filesystem
	known   map[string]string
	refused map[string]error
	changed chan struct{}
}

var _ pool.Host = (*Host)(nil)

// NewHost returns a node with the pool pool.Default.
func NewHost(mode btrfs.QuotaMode) *Host {
	h := &Host{known: map[string]string{}, pools: map[string]*Filesystem{}, refused: map[string]error{}, changed: make(chan struct{}, 1)}
	h.Add(pool.Default, NewFilesystem(mode))
	return h
}

// Add makes f the pool of a name, in place of any other.
func (h *Host) Add(name string, f *Filesystem) {
	h.change(func() { h.pools[name] = f })
}

// Refuse adds a directory that is refused as a pool; a nil reason removes it.
func (h *Host) Refuse(name string, reason error) {
	h.change(func() {
		if h.refused[name] = reason; reason == nil {
			delete(h.refused, name)
		}
	})
}

// Pool returns the pool of a name, also if it is away; nil for none.
func (h *Host) Pool(name string) *Filesystem {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.pools[name]
}

// Detach takes the disk of a pool away, Attach brings it back.
func (h *Host) Detach(name string) { h.setAway(name, true) }
func (h *Host) Attach(name string) { h.setAway(name, false) }

func (h *Host) setAway(name string, away bool) {
	h.change(func() {
		f := h.pools[name]
		f.mu.Lock()
		defer f.mu.Unlock()
		f.away = away
	})
}

func (h *Host) change(fn func()) {
	h.mu.Lock()
	fn()
	h.mu.Unlock()
	select {
	case h.changed <- struct{}{}:
	default:
	}
}

func (h *Host) Pools() (names []string, refused map[string]error, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	refused = map[string]error{}
	for name, reason := range h.refused {
		refused[name] = reason
	}
	for name, f := range h.pools {
		if f.isAway() {
			refused[name] = fmt.Errorf("pool %q: nothing is mounted", name)
			continue
		}
		names = append(names, name)
	}
	return names, refused, nil
}

func (h *Host) Open(_ context.Context, name string) (pool.Filesystem, error) {
	f := h.Pool(name)
	if f == nil {
		return nil, fmt.Errorf("pool %q: no such directory", name)
	}
	if err := f.Alive(); err != nil {
		return nil, fmt.Errorf("pool %q: %w", name, err)
	}
	return f, nil
}

func (h *Host) Remember(poolID, name string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.known[poolID] = name
	return nil
}

func (h *Host) Known() (map[string]string, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return maps.Clone(h.known), nil
}

func (h *Host) Forget(poolID string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.known, poolID)
	return nil
}

func (h *Host) Wait(ctx context.Context) {
	select {
	case <-ctx.Done():
	case <-h.changed:
	}
}

func (f *Filesystem) isAway() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.away
}
