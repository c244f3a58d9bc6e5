package driver

import (
	"context"
	"fmt"

	"github.com/btrfs-csi/btrfs-csi/pkg/snapshot"
)

// lockKey is a volume ID or a target path, according to kind.
type lockKey struct{ kind, name string }

func volumeLock(id string) lockKey { return lockKey{"volume", id} }
func pathLock(path string) lockKey { return lockKey{"path", path} }

// lock allows one operation at a time for each volume and each target path. So no volume
// is deleted between the check of the mount table and the mount. A second request waits, and
// fails with snapshot.ErrBusy if that takes too long. Take these locks before those of the engine.
func (d *Driver) lock(ctx context.Context, keys ...lockKey) (release func(), err error) {
	release, busy, ok := d.locks.Acquire(ctx, keys, nil)
	if !ok {
		return nil, fmt.Errorf("%s %q: %w", busy.kind, busy.name, snapshot.ErrBusy)
	}
	return release, nil
}
