package snapshot

import (
	"context"
	"time"

	"github.com/btrfs-csi/btrfs-csi/pkg/pool"
)

// Impatience limits each call to a pool to d.
func Impatience(d time.Duration) Option {
	return func(e *Engine) { e.patience = pool.Patience{Look: d, Walk: d, Step: d, Thaw: d} }
}

// ThawsWithin sets the time after which a filesystem counts as frozen.
func ThawsWithin(d time.Duration) Option {
	return func(e *Engine) { e.patience.Thaw = d }
}

// LosePatience marks a pool as silent until regain, as a call that takes too long does.
func (e *Engine) LosePatience(pool string) (regain func()) {
	p, err := e.pool(pool)
	if err != nil {
		return func() {}
	}
	return p.Distrust()
}

// MaintainEvery sets the time between two rounds of maintenance of a pool.
func MaintainEvery(d time.Duration) Option {
	return func(e *Engine) { e.maintenance = d }
}

// Maintain starts the maintenance that Run does, and does not wait for it.
func (e *Engine) Maintain(ctx context.Context) {
	for _, p := range e.allPools() {
		go e.tend(ctx, p)
	}
}

// Refresh does what Run does when the pools may have changed.
func (e *Engine) Refresh(ctx context.Context) error { return e.refresh(ctx) }
