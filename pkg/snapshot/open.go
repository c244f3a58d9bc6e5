package snapshot

import (
	"context"
	"time"

	"github.com/btrfs-csi/btrfs-csi/pkg/pool"
	"github.com/btrfs-csi/btrfs-csi/pkg/slot"
)

// openPool opens a pool, and makes it ready for use if its disk answers and its filesystem is not
// frozen. Making it ready may take as long as turning on quota does. A silent or frozen pool must
// not delay the others for that long.
func (e *Engine) openPool(ctx context.Context, name string) (*servedPool, error) {
	opened := make(chan pool.Filesystem, 1) // buffered, because nobody reads it after the attempt is given up
	err := e.attempt(name, silent(name, "Open"), time.After(e.patience.Look), nil, func() error {
		filesystem, err := e.host.Open(ctx, name)
		opened <- filesystem
		return err
	})
	if err != nil {
		return nil, err
	}
	filesystem := <-opened
	if e.index != nil { // an engine of Inspect may use a frozen pool
		frozen := func(since time.Time) error { return pool.FrozenError(name, since) }
		err := e.attempt(name, frozen, time.After(e.patience.Look), nil, func() error { return thawed(filesystem) })
		if err != nil {
			return nil, err
		}
	}
	err = e.attempt(name, silent(name, "Prepare"), time.After(e.patience.Step), nil, func() error { return filesystem.Prepare(ctx) })
	if err != nil {
		return nil, err
	}
	p := &servedPool{Pool: slot.NewPool(pool.New(name, filesystem, e.patience))}
	p.OnSilence(func() { e.answered(ctx, p) })
	return p, nil
}

// thawed returns when a filesystem lets a writer in.
func thawed(filesystem pool.Filesystem) error {
	d, err := filesystem.Open()
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Thawed()
}

// attempt runs fn, one step of taking a pool into use. It returns late if fn is not done at the
// timeout, or when the pool becomes silent. Until fn has ended, further attempts return late at
// once.
func (e *Engine) attempt(name string, late func(since time.Time) error, timeout <-chan time.Time, silent <-chan struct{}, fn func() error) error {
	began := time.Now()
	e.mu.Lock()
	underWay := e.attempts[name]
	if underWay == nil {
		e.attempts[name] = func() error { return late(began) }
	}
	e.mu.Unlock()
	if underWay != nil {
		return underWay()
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
	return late(began)
}

// silent returns the error of an attempt that lasts too long.
func silent(name, method string) func(since time.Time) error {
	return func(since time.Time) error { return pool.SilentError(name, method, since) }
}
