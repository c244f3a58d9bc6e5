package pool

import (
	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs"
)

// headroom returns how much free space, in bytes, a new volume leaves in a pool of size bytes.
// Existing volumes may use the headroom up. New volumes may not, because copy on write needs
// space for every change, also for a deletion or a balance that frees space.
//
//   - data: 1 %, at least 64 MiB, at most 1 GiB and at most a 16th of the pool.
//   - metadata: 64 MiB, at most a 32nd of the pool. The kernel wants about 4 MiB beyond its own
//     reserve for one operation, on a pool of any size, so the rename of a removal still
//     succeeds.
func headroom(size int64) (data, metadata int64) {
	const mib = 1 << 20
	return min(max(size/100, 64*mib), 1024*mib, size/16), min(64*mib, size/32)
}

// backingHeadroom returns how many bytes must stay free in the filesystem of a sparse file that
// contains the pool. Metadata counts twice, because it usually has two copies.
func backingHeadroom(room btrfs.Room) int64 {
	data, metadata := headroom(room.Size)
	return data + 2*metadata
}

// backingFull reports whether the pool lies in a sparse file that may outgrow its filesystem, and
// that filesystem has less than the headroom left.
func backingFull(room btrfs.Room) bool {
	return room.Backing != nil && room.Backing.Available < backingHeadroom(room)
}

// metadataFull reports whether less than the headroom is left for metadata. For a pool whose sparse
// file has no room, backingFull is the cause.
func metadataFull(room btrfs.Room) bool {
	_, metadata := headroom(room.Size)
	return room.Metadata < metadata && !backingFull(room)
}

// beyondHeadroom returns how much may be promised to new volumes, in bytes.
func beyondHeadroom(room btrfs.Room) int64 {
	data, _ := headroom(room.Size)
	if room.ReadOnly || metadataFull(room) || backingFull(room) {
		return 0
	}
	return max(0, room.Available-data)
}
