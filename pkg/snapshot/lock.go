package snapshot

import (
	"fmt"
	"slices"
	"sync"

	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
)

// locks keeps concurrent operations on one volume or snapshot apart. No operation waits: the
// second one gets ErrBusy, and the caller's retry is the queue. An operation locks what it makes
// or changes, and shares the lock of its source, so that many snapshots of one volume run
// concurrently.
type locks struct {
	mu    sync.Mutex       // protects what follows
	users map[meta.Ref]int // how many operations share the lock; -1: exclusive
}

// acquire locks exclusive, and shares the lock of shared unless that is zero. If one of them is
// busy acquire takes neither. release unlocks both.
func (l *locks) acquire(exclusive, shared meta.Ref) (release func(), err error) {
	if shared.IsZero() {
		return l.acquireAll([]meta.Ref{exclusive}, nil)
	}
	return l.acquireAll([]meta.Ref{exclusive}, []meta.Ref{shared})
}

// acquireAll is acquire for several. None may occur twice.
func (l *locks) acquireAll(exclusive, shared []meta.Ref) (release func(), err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.users == nil {
		l.users = map[meta.Ref]int{}
	}
	for _, ref := range exclusive {
		if l.users[ref] != 0 {
			return nil, fmt.Errorf("%s: %w", ref, ErrBusy)
		}
	}
	for _, ref := range shared {
		if l.users[ref] < 0 || slices.Contains(exclusive, ref) {
			return nil, fmt.Errorf("%s: %w", ref, ErrBusy)
		}
	}
	for _, ref := range exclusive {
		l.users[ref] = -1
	}
	for _, ref := range shared {
		l.users[ref]++
	}
	return func() { l.release(exclusive, shared) }, nil
}

func (l *locks) release(exclusive, shared []meta.Ref) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, ref := range exclusive {
		delete(l.users, ref)
	}
	for _, ref := range shared {
		if l.users[ref]--; l.users[ref] == 0 {
			delete(l.users, ref)
		}
	}
}
