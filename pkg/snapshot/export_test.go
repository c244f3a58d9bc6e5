package snapshot

import (
	"context"
	"math"
	"time"
)

// Impatience has everything in a pool take no longer than d.
func Impatience(d time.Duration) Option {
	return func(e *Engine) { e.patience = patience{look: d, walk: d, step: d, thaw: d} }
}

// ThawsWithin has a filesystem be taken for frozen after d.
func ThawsWithin(d time.Duration) Option {
	return func(e *Engine) { e.patience.thaw = d }
}

// LosePatience does what a call that takes too long does, until regain.
func (e *Engine) LosePatience(pool string) (regain func()) {
	p, err := e.pool(pool)
	if err != nil {
		return func() {}
	}
	c := &call{}
	p.guard.giveUp(c, what{method: "Silence"})
	return func() { p.guard.end(c) }
}

// Guarded returns a pool in which everything may take no longer than d.
func Guarded(filesystem Filesystem, d time.Duration) Filesystem {
	return newGuard("guarded", filesystem, patience{look: d, walk: d, step: d, thaw: d})
}

// PollNever has a Host of this machine end its Wait for a change alone.
func PollNever(host Host) { host.(*node).poll = math.MaxInt64 }

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
