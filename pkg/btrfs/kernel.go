package btrfs

import "github.com/btrfs-csi/btrfs-csi/internal/kernel"

// SnapshotsShare reports whether snapshots can share a transaction, as they do since Linux 6.6.
func SnapshotsShare() bool { return kernel.AtLeast(6, 6) }
