package index

import (
	"errors"
	"sync"
	"time"

	bolt "go.etcd.io/bbolt"

	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
)

// gather is the time in which changes are collected for one write. A transaction of bbolt
// costs more than a hundred changes in it.
const gather = 5 * time.Millisecond

// change adds or removes an entry.
type change struct {
	ref   meta.Ref
	apply func(*bolt.Tx) error
}

// behind queues changes that are not in the file yet. Callers do not wait for the write,
// because the ledger already contains them.
type behind struct {
	writing sync.Mutex // held from reading changes until they are written, for their order

	mu      sync.Mutex // protects the three fields below
	changes []change
	touched map[meta.Ref]bool // refs in changes
	failed  error             // error of the last write that was not returned yet

	wake chan struct{}
	stop func()
	ends chan struct{} // closed by stop
	done chan struct{} // closed when the writer has stopped
}

func newBehind() *behind {
	ends := make(chan struct{})
	return &behind{
		touched: map[meta.Ref]bool{}, wake: make(chan struct{}, 1), done: make(chan struct{}),
		ends: ends, stop: sync.OnceFunc(func() { close(ends) }),
	}
}

// add queues a change and returns the error of an earlier write.
func (b *behind) add(c change) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.changes = append(b.changes, c)
	b.touched[c.ref] = true
	select {
	case b.wake <- struct{}{}:
	default: // the writer is already due
	}
	failed := b.failed
	b.failed = nil
	return failed
}

func (b *behind) touches(ref meta.Ref) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.touched[ref]
}

// run writes changes until end is called.
func (b *behind) run(f *file) {
	defer close(b.done)
	for {
		select {
		case <-b.ends:
			return
		case <-b.wake:
		}
		time.Sleep(gather)
		if err := b.write(f); err != nil {
			b.mu.Lock()
			b.failed = err
			b.mu.Unlock()
		}
	}
}

// end writes the remaining changes. Later changes are not written.
func (b *behind) end(f *file) error {
	b.stop()
	<-b.done
	return b.write(f)
}

// write writes all queued changes. If that fails the changes are dropped and the error is
// returned once. The file may then lack them.
func (b *behind) write(f *file) error {
	b.writing.Lock()
	defer b.writing.Unlock()
	b.mu.Lock()
	changes, failed := b.changes, b.failed
	b.failed = nil
	b.mu.Unlock()
	if len(changes) == 0 {
		return failed
	}
	err := f.update(func(tx *bolt.Tx) error {
		for _, c := range changes {
			if err := c.apply(tx); err != nil {
				return err
			}
		}
		return nil
	})
	b.mu.Lock()
	defer b.mu.Unlock()
	b.changes = b.changes[len(changes):]
	clear(b.touched)
	for _, c := range b.changes {
		b.touched[c.ref] = true
	}
	return errors.Join(failed, err)
}
