package snapshot

import (
	"fmt"

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

// room fails when the pool cannot be written, or when growth bytes more would leave
// less than the headroom.
func (p *pool) room(growth int64) error {
	room, err := p.Room()
	if err != nil {
		return err
	}
	data, metadata := headroom(room.Size)
	switch {
	case room.ReadOnly:
		return fmt.Errorf("pool %q: %w: %s", p.name, ErrReadOnly, PoolStatus{Space: btrfs.Space{Room: room}}.whyReadOnly(""))
	case room.Backing != nil && (backingFull(room) || growth > room.Available-data):
		return fmt.Errorf("pool %q: %w: the filesystem of the file %s, which the pool lies in, has %d bytes left, of which %d have to stay free, and %d are wanted: free space there",
			p.name, ErrNoSpace, room.Backing.Path, room.Backing.Available, backingHeadroom(room), growth)
	case room.Metadata < metadata:
		return fmt.Errorf("pool %q: %w for metadata: %d bytes have to stay free, %d are: delete volumes, snapshots or files, "+
			"add a device, or free chunks by btrfs balance start -dusage=20", p.name, ErrNoSpace, metadata, room.Metadata)
	case growth > room.Available-data:
		return fmt.Errorf("pool %q: %w: %d bytes wanted, and %d that have to stay free, of %d it has %d left: delete volumes, snapshots or files, or add a device",
			p.name, ErrNoSpace, growth, data, room.Size, room.Available)
	}
	return nil
}
