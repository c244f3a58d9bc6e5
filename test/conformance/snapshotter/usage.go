package snapshotter

import (
	"context"
	"errors"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/continuity/fs"

	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
	"github.com/btrfs-csi/btrfs-csi/pkg/pool"
)

// Usage returns the space that a snapshot uses besides its parent.
//
// With quota, the usage of an active is the kernel's count as of the last transaction, without the number
// of inodes. Its cost does not depend on the size. A committed shares its data with its children, so its
// exclusive usage has no meaning. Usage measures it once, by comparing its files with those of its parent,
// and does the same for an active without quota. A view uses nothing.
func (s *snapshotter) Usage(ctx context.Context, key string) (snapshots.Usage, error) {
	n, err := s.tree.find(key)
	if err != nil {
		return snapshots.Usage{}, err
	}
	switch n.kind {
	case snapshots.KindView:
		return snapshots.Usage{}, nil
	case snapshots.KindActive:
		usage, err := s.engine.Usage(ctx, n.ref)
		if errors.Is(err, pool.ErrNoQuota) {
			break
		}
		if usage.Exclusive == 0 { // simple quota counts all data that was written here as used
			usage.Exclusive = usage.Used
		}
		return snapshots.Usage{Size: usage.Exclusive}, classify(err)
	}
	_, entry, err := s.recorded(ctx, key)
	if err != nil {
		return snapshots.Usage{}, err
	}
	if n.measured.uuid == entry.UUID {
		return n.measured.usage, nil
	}
	usage, err := s.measure(ctx, entry, n.parent)
	if err == nil && n.kind == snapshots.KindCommitted {
		s.tree.remember(key, entry.UUID, usage)
	}
	return usage, err
}

// measure measures a snapshot by comparing its files with those of its parent.
func (s *snapshotter) measure(ctx context.Context, entry meta.Entry, parent string) (snapshots.Usage, error) {
	if parent == "" {
		usage, err := fs.DiskUsage(ctx, s.path(entry))
		return snapshots.Usage(usage), err
	}
	_, base, err := s.recorded(ctx, parent)
	if err != nil {
		return snapshots.Usage{}, err
	}
	usage, err := fs.DiffUsage(ctx, s.path(base), s.path(entry))
	return snapshots.Usage(usage), err
}
