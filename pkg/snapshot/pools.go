package snapshot

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
	"github.com/btrfs-csi/btrfs-csi/pkg/pool"
)

// retryBroken is the time between two attempts to open a pool that cannot be used.
const retryBroken = time.Second

// servedPool is one pool in use. Its name and Filesystem do not change.
type servedPool struct {
	*pool.Pool

	tending  sync.Mutex  // held during maintenance; a second maintenance is skipped
	returned atomic.Bool // the silence has ended, and unfinished operations are to be completed
	stale    staleQgroups
	erased   erased
	unread   atomic.Bool // the pool could not be read when the index was rebuilt
	nested   nested
	rescans  atomic.Uint64 // started since the pool is in use

	right    looked         // the last look that found nothing wrong; protected by tending
	problems []pool.Problem // that were logged; protected by tending, like note
	note     string         // that was logged
}

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

// openPool opens a pool after a look at it. Opening may take as long as turning on quota does. A
// silent or frozen pool, which the look finds, must not delay the others for that long.
func (e *Engine) openPool(ctx context.Context, name string) (*servedPool, error) {
	if err := e.lookAtPool(ctx, name); err != nil {
		return nil, err
	}
	opened := make(chan pool.Filesystem, 1) // buffered, because nobody reads it after the attempt is given up
	err := e.attempt(name, pool.SilentError(name, "Open", time.Now()), time.After(e.patience.Step), nil, func() error {
		filesystem, err := e.host.Open(ctx, name)
		opened <- filesystem
		return err
	})
	if err != nil {
		return nil, err
	}
	filesystem := <-opened
	p := &servedPool{Pool: pool.New(name, filesystem, e.patience), erased: erased{turn: make(chan struct{}, 1)}}
	p.OnSilence(func() { e.answered(ctx, p) })
	return p, nil
}

// takePool is addPool for a pool that may become silent meanwhile.
func (e *Engine) takePool(ctx context.Context, p *servedPool, fresh []*servedPool) error {
	silent, _ := p.Silence()
	return e.attempt(p.Name, pool.SilentError(p.Name, "Reconcile", time.Now()), nil, silent, func() error { return e.addPool(ctx, p, fresh) })
}

// lookAtPool fails if a pool cannot be opened now: its disk does not answer, or its filesystem is
// frozen. An engine of Inspect may open a frozen one.
func (e *Engine) lookAtPool(ctx context.Context, name string) error {
	err := e.attempt(name, pool.SilentError(name, "Look", time.Now()), time.After(e.patience.Look), nil, func() error { return e.host.Look(ctx, name) })
	if err != nil || e.index == nil {
		return err
	}
	return e.attempt(name, pool.FrozenError(name, time.Now()), time.After(e.patience.Look), nil, func() error { return e.host.Thawed(name) })
}

// attempt runs fn, one step of taking a pool into use. It returns late if fn is not done at the
// timeout, or when the pool becomes silent. Until fn has ended, further attempts return late at
// once.
func (e *Engine) attempt(name string, late error, timeout <-chan time.Time, silent <-chan struct{}, fn func() error) error {
	e.mu.Lock()
	underWay := e.attempts[name]
	if underWay == nil {
		e.attempts[name] = late
	}
	e.mu.Unlock()
	if underWay != nil {
		return underWay
	}
	ended := make(chan error, 1)
	go func() {
		err := fn()
		e.mu.Lock()
		delete(e.attempts, name)
		e.mu.Unlock()
		ended <- err
	}()
	select {
	case err := <-ended:
		return err
	case <-timeout:
	case <-silent:
	}
	return late
}

// addPool reconciles a pool and takes it into use. fresh are all pools that were just opened.
func (e *Engine) addPool(ctx context.Context, p *servedPool, fresh []*servedPool) error {
	if err := errors.Join(e.exclusion(p), e.onlyOne(p, fresh)); err != nil {
		return err
	}
	if e.index != nil {
		if err := e.adopt(ctx, p); err != nil {
			return fmt.Errorf("pool %q: reconcile: %w", p.Name, err)
		}
	}
	e.mu.Lock()
	e.pools[p.Name] = p
	delete(e.broken, p.Name)
	e.mu.Unlock()
	klog.FromContext(ctx).V(2).Info("Pool in use", "pool", p.Name, "poolID", p.PoolID())
	e.changed(meta.Ref{})
	return nil
}

// onlyOne refuses a pool whose ID another pool has. Of a disk and its copy, the one that is in
// use, or was last known under its name, can be used. If neither is known, nobody can say which
// is the copy, and both are refused.
func (e *Engine) onlyOne(p *servedPool, fresh []*servedPool) error {
	for _, other := range append(e.allPools(), fresh...) {
		if other.Name == p.Name || other.PoolID() != p.PoolID() {
			continue
		}
		known, err := e.host.Known()
		inUse := e.inUse(p.PoolID())
		switch {
		case !inUse && known[p.PoolID()] == p.Name:
			continue
		case inUse || known[p.PoolID()] == other.Name:
			return fmt.Errorf("pool %q: has the ID %s of pool %q: a copy of its disk? remove pool.json and the volumes of one of them",
				p.Name, p.PoolID(), other.Name)
		}
		return errors.Join(fmt.Errorf("pool %q: has the ID %s, and so has pool %q: a disk and its copy? neither is used, since nobody can know which is which; unmount the copy",
			p.Name, p.PoolID(), other.Name), err)
	}
	return nil
}

// adopt reconciles a pool that is taken into use. Operations from before the pool was reopened
// may still run. Their IDs are skipped, and maintainPool checks their limits.
func (e *Engine) adopt(ctx context.Context, p *servedPool) error {
	defer p.Pin()()
	// A driver that was killed may have left changes that are not durable. A read-only pool is
	// opened again when it can be written.
	if err := errors.Join(p.Sync(pool.Slot{}), p.syncErased(true)); errors.Is(err, unix.EROFS) {
		p.erased.unsynced = false
	} else if err != nil {
		klog.FromContext(ctx).Error(err, "The pool's directories cannot be synced, what was deleted before may not be gone durably", "pool", p.Name)
	}
	// The sweep removes qgroups when the kernel no longer needs them. PinnedQuota must be called
	// before the repair, which removes those that are stale by then. Called after it, PinnedQuota
	// would miss the qgroups that became stale in between.
	pinned, err := p.PinnedQuota()
	if err != nil {
		return err
	}
	for _, subvolume := range pinned {
		p.stale.add(subvolume)
	}
	indexing := e.indexingOf(p.PoolID())
	indexing.Lock()
	defer indexing.Unlock()
	findings, slots, err := e.repair(ctx, p)
	if err != nil {
		return err
	}
	logFindings(ctx, findings)
	e.indexed(ctx, e.indexPool(p, slots))
	if err := e.host.Remember(p.PoolID(), p.Name); err != nil {
		klog.FromContext(ctx).Error(err, "Pool cannot be remembered for when it is away and the index is lost", "pool", p.Name)
	}
	return nil
}

// drop takes a pool out of use. Requests for the pool then get the reason, if there is one.
func (e *Engine) drop(ctx context.Context, p *servedPool, reason error) {
	e.mu.Lock()
	delete(e.pools, p.Name)
	if reason != nil {
		e.broken[p.Name] = reason
	}
	e.mu.Unlock()
	klog.FromContext(ctx).Info("Pool is gone", "pool", p.Name, "poolID", p.PoolID(), "reason", reason)
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

// Exclude keeps the pools with these IDs out of use until a later call omits them. They are reported
// as unusable for their reasons. Run drops those in use at once. Volumes that are mounted stay
// mounted.
func (e *Engine) Exclude(reasons map[string]error) {
	e.mu.Lock()
	same := maps.EqualFunc(e.excluded, reasons, func(a, b error) bool { return a.Error() == b.Error() })
	e.excluded = maps.Clone(reasons)
	e.mu.Unlock()
	if same {
		return
	}
	select {
	case e.wake <- struct{}{}:
	default: // a look is already requested
	}
}

// exclusion returns why a pool is excluded, nil if it is not.
func (e *Engine) exclusion(p *servedPool) error {
	e.mu.RLock()
	defer e.mu.RUnlock()
	if reason := e.excluded[p.PoolID()]; reason != nil {
		return fmt.Errorf("pool %q: %w", p.Name, reason)
	}
	return nil
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
	return slices.ContainsFunc(e.allPools(), func(p *servedPool) bool { return p.PoolID() == poolID })
}

// pin keeps all pools open for an operation that does not know yet which pools it needs.
func (e *Engine) pin() (release func()) {
	releases := each(e.allPools(), func(p *servedPool) func() { return p.Pin() })
	return func() {
		for _, release := range releases {
			release()
		}
	}
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
		ids[p.Name] = p.PoolID()
	}
	return ids
}

// Pools returns the state of every pool, also of those that cannot be used, ordered by name.
func (e *Engine) Pools(context.Context) []pool.Status {
	all := each(e.allPools(), (*servedPool).status)
	e.mu.RLock()
	for name, err := range e.broken {
		all = append(all, pool.Status{Name: name, Error: err.Error(), Silent: pool.ProblemOf(err) == pool.Silent})
	}
	e.mu.RUnlock()
	slices.SortFunc(all, func(a, b pool.Status) int { return strings.Compare(a.Name, b.Name) })
	return all
}

// status is Status with the counters of the engine.
func (p *servedPool) status() pool.Status {
	s := p.Status()
	if !s.Silent {
		s.Rescans, s.Nesting = p.rescans.Load(), p.nested.volumes()
	}
	return s
}
