package snapshot

import (
	"fmt"
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
// busy it takes neither. release unlocks both.
func (l *locks) acquire(exclusive, shared meta.Ref) (release func(), err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.users == nil {
		l.users = map[meta.Ref]int{}
	}
	if l.users[exclusive] != 0 {
		return nil, fmt.Errorf("%s: %w", exclusive, ErrBusy)
	}
	shares := !shared.IsZero()
	if shares && (l.users[shared] < 0 || shared == exclusive) {
		return nil, fmt.Errorf("%s: %w", shared, ErrBusy)
	}
	l.users[exclusive] = -1
	if shares {
		l.users[shared]++
	}
	return func() { l.release(exclusive, shared, shares) }, nil
}

func (l *locks) release(exclusive, shared meta.Ref, shares bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.users, exclusive)
	if !shares {
		return
	}
	if l.users[shared]--; l.users[shared] == 0 {
		delete(l.users, shared)
	}
}
