package snapshot

import (
	"context"
	"time"
)

// Impatience has everything in a pool take no longer than d.
func Impatience(d time.Duration) Option {
	return func(e *Engine) { e.patience = patience{look: d, walk: d, step: d, thaw: d} }
}

// MaintainEvery sets the time between two looks at the quota of a pool.
func MaintainEvery(d time.Duration) Option {
	return func(e *Engine) { e.maintenance = d }
}

// MostAsking is how many look-ups in one pool may be under way.
const MostAsking = mostAsking

// Maintain does what Run does now and then, and does not wait for it.
func (e *Engine) Maintain(ctx context.Context) {
	for _, p := range e.allPools() {
		go e.tend(ctx, p)
	}
}

// Refresh does what Run does when the pools may have changed.
func (e *Engine) Refresh(ctx context.Context) error { return e.refresh(ctx) }
