package mirror

import (
	"sync"
	"time"

	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
)

const (
	// calm is how long nothing has to change before a change is written: a volume that is
	// made, bound and snapshotted at once is written once.
	calm = 500 * time.Millisecond
	// maxDelay is how long changes that follow each other put off the write of one. The API
	// server is busy with what caused them, and users wait for that. But a volume that is not
	// written yet cannot be expanded from another node.
	maxDelay = 5 * time.Second
)

// debounce puts off writes while volumes change on this node, are being bound, or snapshots
// become ready.
type debounce struct {
	mu    sync.Mutex             // protects what follows
	last  time.Time              // when something changed
	until map[meta.Ref]time.Time // when a write that is put off is due in any case
}

// changed notes a change.
func (d *debounce) changed(now time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.last = now
}

// delay returns how much longer the write of ref is put off: until nothing has changed for
// calm, but not longer than maxDelay.
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
