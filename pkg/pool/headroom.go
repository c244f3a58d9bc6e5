package pool

import (
	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs"
)

// headroom is what creating leaves of a pool, in bytes. What is there already goes
// on to be written, and may use it up; but no promise is made any more of what
// is needed to get out of it: copy on write wants new space for every change,
// also for those that free some, and so does a balance.
//
//   - data: the greater of 1 % and 64 MiB, no more than 1 GiB, and a 16th of a pool
//     that is small.
//   - metadata: 64 MiB, and a 32nd of a pool that is small. That is more than the
//     kernel wants left for one operation (about 4 MiB beyond its own reserve, on a
//     pool of any size), so that renaming what is removed still goes.
func headroom(size int64) (data, metadata int64) {
	const mib = 1 << 20
	return min(max(size/100, 64*mib), 1024*mib, size/16), min(64*mib, size/32)
}

// backingHeadroom is what has to stay free in the filesystem of a sparse file that a pool
// lies in, in bytes of that: of metadata there are two copies as a rule.
func backingHeadroom(room btrfs.Room) int64 {
	data, metadata := headroom(room.Size)
	return data + 2*metadata
}

// backingFull reports whether a sparse file below a pool may want more than there is, and
// less than its headroom is left.
func backingFull(room btrfs.Room) bool {
	return room.Backing != nil && room.Backing.Available < backingHeadroom(room)
}

// beyondHeadroom returns what creating may promise.
func beyondHeadroom(room btrfs.Room) int64 {
	data, metadata := headroom(room.Size)
	if room.ReadOnly || room.Metadata < metadata || backingFull(room) {
		return 0
	}
	return max(0, room.Available-data)
}
