package snapshot

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs"
	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
	"github.com/btrfs-csi/btrfs-csi/pkg/meta/index"
	"github.com/btrfs-csi/btrfs-csi/pkg/pool"
)

// defaultMaintenance is the time between two looks at the quota of every pool.
const defaultMaintenance = 30 * time.Second

// retryBroken is the time between two attempts at a pool that cannot be used.
const retryBroken = time.Second

// Engine makes, changes and removes the volumes and snapshots of one node.
// It is safe for concurrent use: operations on different volumes never wait for
// each other, two on the same one do not wait either (ErrBusy).
type Engine struct {
	host  pool.Host
	index *index.Index // nil for Inspect
	locks locks

	// indexBehind is set when a write to the index failed.
	indexBehind atomic.Bool
	// indexing has a lock for each pool ID. It is held by who reads the pool's ledger to
	// make the index anew, which takes as long as its disk does, and shared by who adds to
	// both: what is added in between would be taken out again.
	indexing sync.Map // of *sync.RWMutex

	onChange func(meta.Ref) // nil: nobody wants to know
	wake     chan struct{}  // has Run look at the pools
	patience pool.Patience  // with each pool
	troubles troubles

	maintenance time.Duration // between two looks at the quota of a pool

	mu       sync.RWMutex           // protects what follows; never held across I/O
	pools    map[string]*servedPool // by name
	broken   map[string]error       // what looks like a pool and is none, by name
	denied   map[string]error       // pools to be kept out of use, by ID
	attempts map[string]error       // to take pools into use, that are under way, by name: what one that lasts too long means
}

// pool is one pool in use. Its name and Filesystem do not change.
type servedPool struct {
	*pool.Pool

	tending  sync.Mutex  // held while it is maintained; whoever finds it held does without
	returned atomic.Bool // after a silence: what operations left half done meanwhile is to be completed
	stale    staleQgroups
	erased   erased
	unread   atomic.Bool // could not be read when the index was made anew
	nested   nested
	rescans  atomic.Uint64 // begun since the pool is in use

	right    looked         // the last look that found nothing wrong; under tending
	problems []pool.Problem // that were logged; under tending, as is note
	note     string         // that was logged
}

// An Option is a setting of an Engine.
type Option func(*Engine)

// Patience sets how long a pool may take to answer one look-up before it is taken for
// silent, and left out until it answers: 5 s without this option.
func Patience(d time.Duration) Option {
	return func(e *Engine) {
		e.patience = e.patience.WithLook(d)
	}
}

// Open finds the pools of the host, reconciles each with its ledger, and
// returns an engine that serves them. The index belongs to the engine from then
// on. A pool that cannot be used does not keep Open from serving the others, nor does one
// whose disk does not answer.
func Open(ctx context.Context, host pool.Host, index *index.Index, options ...Option) (*Engine, error) {
	e := &Engine{
		host: host, index: index, wake: make(chan struct{}, 1), patience: pool.DefaultPatience, maintenance: defaultMaintenance,
		pools: map[string]*servedPool{}, broken: map[string]error{}, attempts: map[string]error{},
	}
	for _, option := range options {
		option(e)
	}
	if err := e.refresh(ctx); err != nil {
		return nil, err
	}
	return e, nil
}

// Inspect returns an engine over the pools of a state directory that changes
// nothing by itself, for looking at them beside a running driver: for Inventory,
// Plan and Pools. Reconcile may be called where no driver runs.
func Inspect(ctx context.Context, stateDir string) (*Engine, error) {
	return Open(ctx, pool.PassiveHost(stateDir), nil)
}

// Close releases the index. Operations under way must have ended.
func (e *Engine) Close() error {
	if e.index == nil {
		return nil
	}
	return e.index.Close()
}

// Run follows the pools as they come and go and maintains their quota, until
// ctx ends.
func (e *Engine) Run(ctx context.Context) {
	for _, p := range e.allPools() {
		go p.logProblems(ctx)
	}
	go e.everyPool(ctx, e.maintenance, e.tend)
	go e.everyPool(ctx, nestedInterval, e.lookForNested)
	go every(ctx, e.maintenance, func() { e.maintainIndex(ctx) })
	for ctx.Err() == nil {
		e.wait(ctx)
		if err := e.refresh(ctx); err != nil && ctx.Err() == nil {
			e.complain(ctx, "Pools cannot be read", "", err)
		}
	}
}

// wait returns when the pools may have changed; soon, while one cannot be used:
// what is wrong with it may pass without a change of the mounts.
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

// refresh brings the pools in use in line with those that are there.
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
		} else if err := e.deniedFor(p); err != nil {
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

// each calls fn for all pools at once, so that one that does not answer holds up no other,
// and returns what it returned, in their order.
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

// alive fails for a pool that is not there any more. One that is silent stays in use: it
// may answer again at any moment, and the node would lose and gain its topology for it.
func (p *servedPool) alive() error {
	err := p.Alive()
	if errors.Is(err, pool.ErrSilent) {
		return nil
	}
	return err
}

// openPools opens those that are not in use.
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

// openPool looks at a pool first: opening it may take as long as its filesystem takes to
// turn quota on, and one that is silent or frozen is not to hold up the others for as long.
func (e *Engine) openPool(ctx context.Context, name string) (*servedPool, error) {
	if err := e.lookAtPool(ctx, name); err != nil {
		return nil, err
	}
	opened := make(chan pool.Filesystem, 1) // nobody reads it when the attempt is given up
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

// lookAtPool fails for a pool that cannot be opened now: its disk does not answer, or its
// filesystem is frozen. Who only looks may open a frozen one.
func (e *Engine) lookAtPool(ctx context.Context, name string) error {
	err := e.attempt(name, pool.SilentError(name, "Look", time.Now()), time.After(e.patience.Look), nil, func() error { return e.host.Look(ctx, name) })
	if err != nil || e.index == nil {
		return err
	}
	return e.attempt(name, pool.FrozenError(name, time.Now()), time.After(e.patience.Look), nil, func() error { return e.host.Thawed(name) })
}

// attempt makes one step of taking a pool into use, and does not wait for it any more when
// the time is over or the pool is found silent: it returns late then. No other is begun
// before it has ended.
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

// addPool reconciles a pool and takes it into use. fresh are all that could be.
func (e *Engine) addPool(ctx context.Context, p *servedPool, fresh []*servedPool) error {
	if err := errors.Join(e.deniedFor(p), e.onlyOne(p, fresh)); err != nil {
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

// onlyOne refuses a pool whose ID another one has: of a disk and its copy one can be
// used, which is the one that is, or the one that was under its name. Where neither
// is known nobody can say which is the copy.
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

// adopt reconciles a pool that is taken into use. Operations that began in it before it
// was opened again may go on: what they hold is passed over, and its limit looked at by
// maintain.
func (e *Engine) adopt(ctx context.Context, p *servedPool) error {
	defer p.Pin()()
	// What a driver that was killed left undurable is not known. One that is read-only is
	// opened again when it can be written.
	if err := errors.Join(p.Sync(pool.Slot{}), p.syncErased(true)); errors.Is(err, unix.EROFS) {
		p.erased.unsynced = false
	} else if err != nil {
		klog.FromContext(ctx).Error(err, "The pool's directories cannot be synced, what was deleted before may not be gone durably", "pool", p.Name)
	}
	// What the kernel still needs of what was destroyed before is swept when it lets go of
	// it, by whoever runs then. It is asked before the repair, which removes what it has
	// let go of by then: asked after, what it lets go of in between would be neither.
	held, err := p.PinnedQuota()
	if err != nil {
		return err
	}
	for _, subvolume := range held {
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

// drop takes a pool out of use. Whoever asks for it in the meantime gets the reason, if
// there is one.
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
	if e.pools[name] == nil { // an attempt that was given up may have come to its end
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

// forget drops what was said of directories that are not there any more.
func (e *Engine) forget(names []string, refused map[string]error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for name := range e.broken {
		if _, ok := refused[name]; !ok && !slices.Contains(names, name) {
			delete(e.broken, name)
		}
	}
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

// pin keeps all pools open for an operation, which does not know yet in which of
// them it has to look.
func (e *Engine) pin() (release func()) {
	releases := each(e.allPools(), func(p *servedPool) func() { return p.Pin() })
	return func() {
		for _, release := range releases {
			release()
		}
	}
}

// pool returns the pool of a name; an empty name stands for pool.Default, or, where there
// is none of that name, not even one that cannot be used, for the only pool there is.
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

// located is a slot and its record, in the pool that contains it.
type located struct {
	pool   *servedPool
	fs     pool.Filesystem // the pool's; from begin on a patient one
	slot   pool.Slot
	record meta.Record
	ticket *pool.Ticket // to a commit; nil where none was announced
}

// begin admits an operation to the pool, which fails where it could not be ended: its
// filesystem is frozen. From then on it is as patient as the kernel. What it looks up may
// have to wait for a commit, and it is not to be given up between two steps.
func (l *located) begin() error {
	if err := l.pool.Thawed(); err != nil {
		return fmt.Errorf("%s: %w", l.slot, err)
	}
	l.fs = l.pool.Patiently()
	return nil
}

// read returns the record of a slot; fs.ErrNotExist for none, and also for an
// empty directory, which a crash left before it wrote the record.
func (p *servedPool) read(slot pool.Slot) (located, error) {
	l := located{pool: p, fs: p.Filesystem, slot: slot}
	data, err := p.Record(slot)
	switch {
	case err != nil:
		return l, err
	case data == nil:
		_, err := p.Info(slot)
		if errors.Is(err, fs.ErrNotExist) {
			return l, fs.ErrNotExist
		}
		if errors.Is(err, pool.ErrSilent) { // nobody knows what is there
			return l, err
		}
		return l, fmt.Errorf("%s in pool %q: %w: move it away", slot, p.Name, pool.ErrForeign)
	}
	err = l.decode(data)
	return l, err
}

// decode reads the record.
func (l *located) decode(data []byte) (err error) {
	if l.record, err = meta.DecodeRecord(data); err != nil {
		return fmt.Errorf("%s in pool %q: %w: %w", l.slot, l.pool.Name, ErrUnreadable, err)
	}
	if of := pool.SlotOf(l.record.Kind, l.record.ID); of != l.slot {
		return fmt.Errorf("%s in pool %q: %w: it is that of %s", l.slot, l.pool.Name, ErrUnreadable, of)
	}
	return nil
}

// recovered is entry for an operation, which is admitted to the pool. What a crash left half
// made is completed, and what it left declared only is undone: fs.ErrNotExist. The caller has
// the lock of the ID.
func (l *located) recovered() (meta.Entry, error) {
	if err := l.begin(); err != nil {
		return meta.Entry{}, err
	}
	if l.record.State == meta.Creating {
		return l.resume()
	}
	return l.entry()
}

// entry reads the lineage beside the record. Of what is lost the record is returned.
func (l *located) entry() (meta.Entry, error) {
	info, err := l.subvolume()
	if err != nil && !errors.Is(err, ErrLost) {
		return meta.Entry{}, err
	}
	return entryOf(l.pool, l.record, info), err
}

// subvolume is Info; ErrLost where there is none.
func (l *located) subvolume() (btrfs.SubvolumeInfo, error) {
	info, err := l.fs.Info(l.slot)
	if errors.Is(err, fs.ErrNotExist) {
		return info, l.lost()
	}
	return info, err
}

// indexPut writes to the index that an entry is there. Its failure fails nothing:
// the ledger has it, and the index is made anew from that.
func (e *Engine) indexPut(ctx context.Context, entry meta.Entry) {
	defer e.changed(entry.Ref())
	indexing := e.indexingOf(entry.PoolID)
	indexing.RLock()
	defer indexing.RUnlock()
	e.indexed(ctx, e.index.Put(entry))
}

// indexRemove takes an entry out of the index.
func (e *Engine) indexRemove(ctx context.Context, p *servedPool, ref meta.Ref) {
	defer e.changed(ref)
	indexing := e.indexingOf(p.PoolID())
	indexing.RLock()
	defer indexing.RUnlock()
	e.indexed(ctx, e.index.Remove(ref, p.PoolID()))
}

// syncIndex brings the index in line with the ledgers of all pools. Of one that cannot
// be read it keeps what it has, until maintain finds that it can.
func (e *Engine) syncIndex() error {
	if e.index == nil {
		return nil
	}
	e.indexBehind.Store(false) // before: what fails meanwhile sets it again
	for _, p := range e.allPools() {
		if err := e.syncPool(p); err != nil && !errors.Is(err, pool.ErrAway) {
			e.indexBehind.Store(true)
			return err
		}
	}
	return nil
}

func (e *Engine) indexingOf(poolID string) *sync.RWMutex {
	indexing, _ := e.indexing.LoadOrStore(poolID, new(sync.RWMutex))
	return indexing.(*sync.RWMutex)
}

func (e *Engine) syncPool(p *servedPool) error {
	indexing := e.indexingOf(p.PoolID())
	indexing.Lock()
	defer indexing.Unlock()
	slots, err := p.scan()
	p.unread.Store(err != nil)
	if err != nil {
		return err
	}
	return e.indexPool(p, slots)
}

// indexPool has the index say what was found in a pool. The caller holds the pool's indexing
// lock, since before it looked.
func (e *Engine) indexPool(p *servedPool, slots []scanned) error {
	entries, unlisted := p.entries(slots)
	_, err := e.index.SyncPool(p.PoolID(), index.PoolState{Name: p.Name, Unlisted: unlisted}, entries)
	return err
}

// indexed notices a failed write to the index.
func (e *Engine) indexed(ctx context.Context, err error) {
	if err == nil {
		return
	}
	e.indexBehind.Store(true)
	e.complain(ctx, "Index not written, it will be made anew from the ledger", "", err)
}
