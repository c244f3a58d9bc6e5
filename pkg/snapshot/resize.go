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
	release, err := e.lock(ctx, ref, meta.Ref{})
	if err != nil {
		return meta.Entry{}, err
	}
	defer release()
	visits := e.visit()
	defer visits.end()

	l, err := e.find(visits, ref)
	if err != nil {
		return meta.Entry{}, err
	}
	entry, err := l.Recover()
	if errors.Is(err, fs.ErrNotExist) {
		err = e.absence(ref)
	}
	if err != nil {
		return meta.Entry{}, err
	}
	if entry.Content.IsDisk() {
		return meta.Entry{}, fmt.Errorf("%s contains a disk file (%s): %w: it cannot be expanded yet", ref, entry.Content, ErrInvalid)
	}
	size, err := want.grow(entry.Size)
	if err != nil {
		return meta.Entry{}, fmt.Errorf("%s: %w", ref, err)
	}
	if size == entry.Size {
		return entry, l.EnsureDurable()
	}
	if err := l.Session().CheckRoom(size - entry.Size); err != nil {
		return meta.Entry{}, fmt.Errorf("%s: %w", ref, err)
	}
	if err := ctx.Err(); err != nil {
		return meta.Entry{}, err
	}
	if entry, err = l.Resize(size); err == nil {
		e.indexPut(ctx, entry)
	}
	return entry, err
}
