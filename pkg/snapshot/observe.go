package snapshot

import (
	"context"
	"fmt"
	"maps"

	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
)

// OnChange has fn told of every volume and snapshot that was made, changed or
// removed, and, with a zero Ref, that pools have come or gone and anything may
// have changed. fn must not block, and may be called by many at once. OnChange
// itself is to be called before the engine is used.
func (e *Engine) OnChange(fn func(meta.Ref)) { e.onChange = fn }

func (e *Engine) changed(ref meta.Ref) {
	if e.onChange != nil {
		e.onChange(ref)
	}
}

// Deny keeps the pools with these IDs out of use until a later call leaves them
// out; each is told as unusable for its reason. Pools in use are let go of at
// the next look at the pools, which Run takes at once. What is mounted stays
// mounted.
func (e *Engine) Deny(reasons map[string]error) {
	e.mu.Lock()
	same := maps.EqualFunc(e.denied, reasons, func(a, b error) bool { return a.Error() == b.Error() })
	e.denied = maps.Clone(reasons)
	e.mu.Unlock()
	if same {
		return
	}
	select {
	case e.wake <- struct{}{}:
	default: // one is on its way
	}
}

// deniedFor returns why a pool is denied, nil if it is not.
func (e *Engine) deniedFor(p *pool) error {
	e.mu.RLock()
	defer e.mu.RUnlock()
	if reason := e.denied[p.PoolID()]; reason != nil {
		return fmt.Errorf("pool %q: %w", p.name, reason)
	}
	return nil
}

// awake returns a context that ends with ctx, or when the pools are to be looked
// at for another reason than a change of the host. Once its cancel has returned it takes
// no such reason any more, which would be one that nobody looks for.
func (e *Engine) awake(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		select {
		case <-e.wake:
			cancel()
		case <-ctx.Done():
		}
	}()
	return ctx, func() { cancel(); <-ended }
}
