package snapshot

import (
	"context"
	"fmt"

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs"
	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
	"github.com/btrfs-csi/btrfs-csi/pkg/pool"
	"github.com/btrfs-csi/btrfs-csi/pkg/slot"
)

// Mount describes what to bind-mount for a volume.
type Mount struct {
	Source   string // absolute path of the subvolume
	Content  meta.Content
	ReadOnly bool // a view, which no mount option makes writable
	// MadeReadOnly says what to do about a read-write volume whose subvolume somebody made
	// read-only; empty for any other.
	MadeReadOnly string
}

// VolumeCondition is a state of a volume that its users should know.
type VolumeCondition = slot.VolumeCondition

// Stat returns a volume or snapshot, or fails with ErrNotFound, ErrLost or pool.ErrAway. It takes
// no lock. A volume that is being made is found as soon as its subvolume exists.
func (e *Engine) Stat(_ context.Context, ref meta.Ref) (meta.Entry, error) {
	visits := e.visit()
	defer visits.end()
	l, err := e.find(visits, ref)
	if err != nil {
		return meta.Entry{}, err
	}
	if l.IsDeclared() {
		return meta.Entry{}, e.absence(ref)
	}
	return l.Entry()
}

// Mounts returns what to mount for a volume.
func (e *Engine) Mounts(ctx context.Context, volume string) (Mount, error) {
	visits := e.visit()
	defer visits.end()
	l, err := e.find(visits, meta.Volume(volume))
	if err != nil {
		return Mount{}, err
	}
	entry, err := l.Entry()
	if err != nil {
		return Mount{}, err
	}
	e.notice(ctx, l, entry)
	return Mount{Source: l.Path(), Content: entry.Content, ReadOnly: entry.Kind.ReadOnly(), MadeReadOnly: l.MadeReadOnly()}, nil
}

// Usage returns the usage of a volume or snapshot; pool.ErrNoQuota if its pool has no quota.
func (e *Engine) Usage(_ context.Context, ref meta.Ref) (pool.Usage, error) {
	visits := e.visit()
	defer visits.end()
	l, err := e.find(visits, ref)
	if err != nil {
		return pool.Usage{}, err
	}
	if _, err := l.Entry(); err != nil {
		return pool.Usage{}, err
	}
	usage, err := l.Usage()
	if err != nil {
		return pool.Usage{}, fmt.Errorf("%s: %w", ref, err)
	}
	return usage, nil
}

// Nested returns the paths of the subvolumes nested in a volume, one level deep.
func (e *Engine) Nested(_ context.Context, volume string) ([]string, error) {
	visits := e.visit()
	defer visits.end()
	l, err := e.find(visits, meta.Volume(volume))
	if err != nil {
		return nil, err
	}
	return l.Nested()
}

// VolumeConditions returns the conditions of a volume that its subvolume and the mount of its pool
// show.
func (e *Engine) VolumeConditions(_ context.Context, volume string) ([]VolumeCondition, error) {
	visits := e.visit()
	defer visits.end()
	l, err := e.find(visits, meta.Volume(volume))
	if err != nil {
		return nil, err
	}
	return l.Conditions()
}

// Room returns the free space of the filesystem that contains a volume or snapshot.
func (e *Engine) Room(_ context.Context, ref meta.Ref) (btrfs.Room, error) {
	visits := e.visit()
	defer visits.end()
	l, err := e.find(visits, ref)
	if err != nil {
		return btrfs.Room{}, err
	}
	return l.Session().Room()
}
