package mirror

import (
	"sync"
	"time"

	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
)

const (
	// calm is how long nothing must change before a write. So a volume that is created, bound and
	// snapshotted within a moment is written once.
	calm = 500 * time.Millisecond
	// maxDelay limits how long further changes postpone a write. Postponing leaves the API server
	// to the requests that users wait for. But a volume that is not published yet cannot be
	// expanded from another node.
	maxDelay = 5 * time.Second
)

// debounce postpones writes while volumes change on this node or are being bound, or snapshots
// become ready.
type debounce struct {
	mu    sync.Mutex             // protects what follows
	last  time.Time              // the last change
	until map[meta.Ref]time.Time // the latest time of each postponed write
}

// changed records a change.
func (d *debounce) changed(now time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.last = now
}

// delay returns how much longer to postpone the write of ref: until nothing has changed for calm,
// but no longer than maxDelay.
func (d *debounce) delay(ref meta.Ref, now time.Time) time.Duration {
	d.mu.Lock()
	defer d.mu.Unlock()
	until, known := d.until[ref]
	if !known {
		until = now.Add(maxDelay)
	}
	delay := min(d.last.Add(calm).Sub(now), until.Sub(now))
	if delay > 0 {
		d.until[ref] = until
	} else {
		delete(d.until, ref)
	}
	return delay
}
