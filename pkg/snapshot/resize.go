package snapshot

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
)

// Resize grows a volume to at least want.Required bytes, online, and returns it. A volume that is
// large enough is returned as it is; none is ever shrunk. The new size is durable when Resize
// returns.
func (e *Engine) Resize(ctx context.Context, volume string, want Range) (meta.Entry, error) {
	ref := meta.Volume(volume)
	release, err := e.locks.acquire(ref, meta.Ref{})
	if err != nil {
		return meta.Entry{}, err
	}
	defer release()
	defer e.pin()()

	l, err := e.find(ref)
	if err != nil {
		return meta.Entry{}, err
	}
	entry, err := l.recovered()
	if errors.Is(err, fs.ErrNotExist) {
		err = e.absence(ref)
	}
	if err != nil {
		return meta.Entry{}, err
	}
	old := l.record.Size
	size, err := want.grow(old)
	if err != nil {
		return meta.Entry{}, fmt.Errorf("%s: %w", ref, err)
	}
	if size == old {
		return entry, l.ensureDurable(entry)
	}
	if err := l.pool.CheckRoom(size - old); err != nil {
		return meta.Entry{}, fmt.Errorf("%s: %w", ref, err)
	}
	if err := ctx.Err(); err != nil {
		return meta.Entry{}, err
	}
	l.record.Size = size
	entry, err = l.complete(false)
	if err == nil {
		err = l.fs.Sync(l.slot) // writes the log of the record only; there is no commit to share
	}
	if err != nil {
		return meta.Entry{}, unfinished(fmt.Errorf("%s: %w", ref, err))
	}
	e.indexPut(ctx, entry)
	return entry, nil
}
