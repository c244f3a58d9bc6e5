package snapshot

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/btrfs-csi/btrfs-csi/internal/keylock"
	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
	"github.com/btrfs-csi/btrfs-csi/pkg/meta/index"
	"github.com/btrfs-csi/btrfs-csi/pkg/pool"
)

// defaultMaintenance is the time between two rounds of maintenance of a pool.
const defaultMaintenance = 30 * time.Second

// Engine makes, changes and removes the volumes and snapshots of one node. It is safe for
// concurrent use. Operations on different volumes never wait for each other. A second operation
// on one volume waits, and fails with ErrBusy if that takes too long.
type Engine struct {
	host  pool.Host
	index *index.Index // nil for Inspect
	locks keylock.Set[meta.Ref]

	// indexBehind is set if the index has to be rebuilt from the ledgers, because an access
	// failed.
	indexBehind atomic.Bool
	seen        seenPools
	// indexing has a lock for each pool ID. A rebuild of the index from the pool's ledger holds
	// it for as long as the disk needs. Writers of single entries share it; otherwise the rebuild
	// would remove entries that were added after it read the ledger.
	indexing sync.Map // of *sync.RWMutex

	onChange atomic.Pointer[func(meta.Ref)] // nil until OnChange; a pool may fall silent before
	wake     chan struct{}                  // makes Run look at the pools
	patience pool.Patience                  // for each pool
	troubles troubles

	maintenance time.Duration // time between two rounds of a pool

	mu       sync.RWMutex            // protects what follows; never held across I/O
	pools    map[string]*servedPool  // by name
	broken   map[string]error        // why directories cannot be used as pools, by name
	excluded map[string]error        // why pools are kept out of use, by ID
	attempts map[string]func() error // running attempts to use pools, by name, with the error if they last too long
}

// An Option is a setting of an Engine.
type Option func(*Engine)

// Patience sets how long a pool may take to answer one look-up. After that the pool is silent,
// and left out until it answers. The default is 5 s.
func Patience(d time.Duration) Option {
	return func(e *Engine) {
		e.patience = e.patience.WithLook(d)
	}
}

// Open reconciles each pool of the host with its ledger, and returns an engine that serves the
// pools. The index belongs to the engine from then on. Open serves the other pools if one cannot
// be used or does not answer.
func Open(ctx context.Context, host pool.Host, index *index.Index, options ...Option) (*Engine, error) {
	e := &Engine{
		host: host, index: index, wake: make(chan struct{}, 1), patience: pool.DefaultPatience, maintenance: defaultMaintenance,
		pools: map[string]*servedPool{}, broken: map[string]error{}, attempts: map[string]func() error{},
	}
	for _, option := range options {
		option(e)
	}
	if err := e.refresh(ctx); err != nil {
		return nil, err
	}
	return e, nil
}

// Inspect returns an engine over the pools of a state directory that changes nothing by itself.
// Beside a running driver, only Inventory, Plan and Pools may be called; without one, Reconcile
// too.
func Inspect(ctx context.Context, stateDir string) (*Engine, error) {
	return Open(ctx, pool.PassiveHost(stateDir), nil)
}

// Close closes the index. All operations must have ended.
func (e *Engine) Close() error {
	if e.index == nil {
		return nil
	}
	return e.index.Close()
}

// Run follows the pools as they come and go, and maintains them, until ctx ends.
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

// OnChange sets fn, which is called for every volume and snapshot that was made, changed or
// removed. A zero Ref means that pools came or went and anything may have changed. fn must not
// block, and may be called concurrently. Call OnChange before the engine is used. Changes before
// that are lost, such as a pool that falls silent just after Open.
func (e *Engine) OnChange(fn func(meta.Ref)) { e.onChange.Store(&fn) }

func (e *Engine) changed(ref meta.Ref) {
	if fn := e.onChange.Load(); fn != nil {
		(*fn)(ref)
	}
}
