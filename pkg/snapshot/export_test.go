package snapshot

import (
	"context"
	"time"

	"github.com/btrfs-csi/btrfs-csi/pkg/pool"
)

// Impatience has everything in a pool take no longer than d.
func Impatience(d time.Duration) Option {
	return func(e *Engine) { e.patience = pool.Patience{Look: d, Walk: d, Step: d, Thaw: d} }
}

// ThawsWithin has a filesystem be taken for frozen after d.
func ThawsWithin(d time.Duration) Option {
	return func(e *Engine) { e.patience.Thaw = d }
}

// LosePatience does what a call that takes too long does, until regain.
func (e *Engine) LosePatience(pool string) (regain func()) {
	p, err := e.pool(pool)
	if err != nil {
		return func() {}
	}
	return p.Distrust()
}

// MaintainEvery sets the time between two looks at the quota of a pool.
func MaintainEvery(d time.Duration) Option {
	return func(e *Engine) { e.maintenance = d }
}

// Maintain does what Run does now and then, and does not wait for it.
func (e *Engine) Maintain(ctx context.Context) {
	for _, p := range e.allPools() {
		go e.tend(ctx, p)
	}
}

// Refresh does what Run does when the pools may have changed.
func (e *Engine) Refresh(ctx context.Context) error { return e.refresh(ctx) }
