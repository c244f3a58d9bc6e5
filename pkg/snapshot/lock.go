package snapshot

import (
	"fmt"
	"sync"

	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
)

// locks keeps concurrent operations on one volume or snapshot apart. Nobody
// waits: who comes second gets ErrBusy, and the caller's own retry is the queue.
// What is made or changed is held exclusively, its source shared, so that any
// number of snapshots of one volume run side by side.
type locks struct {
	mu    sync.Mutex       // protects what follows
	users map[meta.Ref]int // holders; exclusive is -1
}

// acquire takes exclusive, and shared unless it is zero, or neither. The
// function that it returns lets go.
func (l *locks) acquire(exclusive, shared meta.Ref) (release func(), err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.users == nil {
		l.users = map[meta.Ref]int{}
	}
	if l.users[exclusive] != 0 {
		return nil, fmt.Errorf("%s: %w", exclusive, ErrBusy)
	}
	if !shared.IsZero() && (l.users[shared] < 0 || shared == exclusive) {
		return nil, fmt.Errorf("%s: %w", shared, ErrBusy)
	}
	l.users[exclusive] = -1
	if !shared.IsZero() {
		l.users[shared]++
	}
	return func() { l.release(exclusive, shared) }, nil
}

func (l *locks) release(exclusive, shared meta.Ref) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.users, exclusive)
	if shared.IsZero() {
		return
	}
	if l.users[shared]--; l.users[shared] == 0 {
		delete(l.users, shared)
	}
}
