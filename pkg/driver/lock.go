package driver

import (
	"fmt"
	"sync"

	"github.com/btrfs-csi/btrfs-csi/pkg/snapshot"
)

// locks keeps apart what mounts, unmounts or deletes one volume, or works at one
// target path: a volume is not deleted between the look at the mount table and
// the mount. Nobody waits; who comes second gets snapshot.ErrBusy and is called
// again by the CO. They are taken before the engine's own locks, never after.
type locks struct {
	mu   sync.Mutex // protects held
	held map[lockKey]struct{}
}

// lockKey is a volume ID or a target path; the kind keeps the two apart.
type lockKey struct{ kind, name string }

func volumeLock(id string) lockKey { return lockKey{"volume", id} }
func pathLock(path string) lockKey { return lockKey{"path", path} }

// acquire takes all keys or none. The function that it returns lets go.
func (l *locks) acquire(keys ...lockKey) (release func(), err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, key := range keys {
		if _, busy := l.held[key]; busy {
			return nil, fmt.Errorf("%s %q: %w", key.kind, key.name, snapshot.ErrBusy)
		}
	}
	if l.held == nil {
		l.held = map[lockKey]struct{}{}
	}
	for _, key := range keys {
		l.held[key] = struct{}{}
	}
	return func() { l.release(keys) }, nil
}

func (l *locks) release(keys []lockKey) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, key := range keys {
		delete(l.held, key)
	}
}
