package snapshot

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"k8s.io/klog/v2"

	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
	"github.com/btrfs-csi/btrfs-csi/pkg/pool"
)

// retryBroken is the time between two attempts to open a pool that cannot be used.
const retryBroken = time.Second

// wait returns when the pools may have changed. While a pool cannot be used, it returns after
// retryBroken at the latest, because the fault may end without a change of the mounts.
func (e *Engine) wait(ctx context.Context) {
	ctx, cancel := e.awake(ctx)
	defer cancel()
	e.mu.RLock()
	broken := len(e.broken) > 0
	e.mu.RUnlock()
	if broken {
		soon, cancel := context.WithTimeout(ctx, retryBroken)
		defer cancel()
		ctx = soon
	}
	e.host.Wait(ctx)
}

// awake returns a context that ends with ctx, or when e.wake requests a look at the pools. Once
// its cancel has returned, it takes no more requests from e.wake, which would be lost.
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

// refresh drops the pools that are gone or excluded, and takes new ones into use.
func (e *Engine) refresh(ctx context.Context) error {
	names, refused, err := e.host.Pools()
	if err != nil {
		return fmt.Errorf("look for pools: %w", err)
	}
	pools := e.allPools()
	alive := each(pools, (*servedPool).alive)
	for i, p := range pools {
		if err := alive[i]; err != nil || !slices.Contains(names, p.Name) {
			e.drop(ctx, p, cmp.Or(err, refused[p.Name]))
		} else if err := e.exclusion(p); err != nil {
			e.drop(ctx, p, err)
		}
	}
	e.forget(names, refused)
	fresh := e.openPools(ctx, names)
	for i, err := range each(fresh, func(p *servedPool) error { return e.takePool(ctx, p, fresh) }) {
		if err != nil {
			e.refuse(ctx, fresh[i].Name, err)
		}
	}
	for name, err := range refused {
		e.refuse(ctx, name, err)
	}
	return nil
}

// alive fails for a pool that is gone. A silent pool stays in use: it may answer again at any
// moment, and the node would lose and regain its topology.
func (p *servedPool) alive() error {
	err := p.Alive()
	if errors.Is(err, pool.ErrSilent) {
		return nil
	}
	return err
}

// openPools opens the pools that are not in use.
func (e *Engine) openPools(ctx context.Context, names []string) (fresh []*servedPool) {
	names = slices.DeleteFunc(slices.Clone(names), func(name string) bool {
		e.mu.RLock()
		defer e.mu.RUnlock()
		return e.pools[name] != nil
	})
	opened := each(names, func(name string) *servedPool {
		p, err := e.openPool(ctx, name)
		if err != nil {
			e.refuse(ctx, name, err)
		}
		return p
	})
	return slices.DeleteFunc(opened, func(p *servedPool) bool { return p == nil })
}

// drop takes a pool out of use. Requests for the pool then get the reason, if there is one.
func (e *Engine) drop(ctx context.Context, p *servedPool, reason error) {
	e.mu.Lock()
	delete(e.pools, p.Name)
	if reason != nil {
		e.broken[p.Name] = reason
	}
	e.mu.Unlock()
	klog.FromContext(ctx).Info("Pool is gone", "pool", p.Name, "poolID", p.ID, "reason", reason)
	e.changed(meta.Ref{})
}

func (e *Engine) refuse(ctx context.Context, name string, reason error) {
	e.mu.Lock()
	known := e.broken[name]
	if e.pools[name] == nil { // not nil: an attempt that was given up has succeeded meanwhile
		e.broken[name] = reason
	}
	e.mu.Unlock()
	if e.troubles.news("Pool cannot be used", name, reason) || known == nil {
		klog.FromContext(ctx).Error(reason, "Pool cannot be used", "pool", name)
	}
	if known == nil || known.Error() != reason.Error() {
		e.changed(meta.Ref{})
	}
}

// forget drops the errors of directories that are gone.
func (e *Engine) forget(names []string, refused map[string]error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for name := range e.broken {
		if _, ok := refused[name]; !ok && !slices.Contains(names, name) {
			delete(e.broken, name)
		}
	}
}
