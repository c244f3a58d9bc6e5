package driver

import (
	"fmt"
	"sync"

	"github.com/btrfs-csi/btrfs-csi/pkg/snapshot"
)

// locks allows one operation at a time for each volume and each target path. So no volume
// is deleted between the check of the mount table and the mount. The second request fails
// with snapshot.ErrBusy, and the CO retries. Acquire these locks before those of the
// engine.
type locks struct {
	mu   sync.Mutex // protects held
	held map[lockKey]struct{}
}

// lockKey is a volume ID or a target path, according to kind.
type lockKey struct{ kind, name string }

func volumeLock(id string) lockKey { return lockKey{"volume", id} }
func pathLock(path string) lockKey { return lockKey{"path", path} }

// acquire locks all keys, or none and returns snapshot.ErrBusy. release unlocks them.
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
