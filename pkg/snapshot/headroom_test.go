package snapshot_test

import (
	"fmt"
	"path/filepath"
	"testing"

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs"
	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
	"github.com/btrfs-csi/btrfs-csi/pkg/pool"
	"github.com/btrfs-csi/btrfs-csi/pkg/pool/pooltest"
	"github.com/btrfs-csi/btrfs-csi/pkg/snapshot"
)

// roomyPool is a pool with a given free space.
type roomyPool struct {
	pool.Directory
	room btrfs.Room
}

func (p roomyPool) Room() (btrfs.Room, error) { return p.room, nil }

// TestHeadroom has pools with exactly the data and metadata space that a volume and the headroom
// need, and with a MiB more and less.
func TestHeadroom(t *testing.T) {
	t.Parallel()
	const gib, size = 1024 * mib, 8 * mib
	for _, c := range []struct{ size, data, metadata int64 }{
		{256 * mib, 16 * mib, 8 * mib},
		{512 * mib, 32 * mib, 16 * mib},
		{1 * gib, 64 * mib, 32 * mib},
		{2 * gib, 64 * mib, 64 * mib},
		{50 * gib, 512 * mib, 64 * mib},
		{100 * gib, 1 * gib, 64 * mib},
		{10_000 * gib, 1 * gib, 64 * mib},
	} {
		for _, data := range []int64{-mib, 0, mib} {
			for _, metadata := range []int64{-mib, 0, mib} {
				room := btrfs.Room{Size: c.size, Available: size + c.data + data, Metadata: c.metadata + metadata}
				t.Run(fmt.Sprintf("%d MiB, data %+d, metadata %+d", c.size/mib, data/mib, metadata/mib), func(t *testing.T) {
					t.Parallel()
					creates(t, room, size, data >= 0 && metadata >= 0)
				})
			}
		}
	}
}

// creates compares whether a pool makes a volume, and the capacity it reports, with whether the
// volume fits.
func creates(t *testing.T, room btrfs.Room, size int64, fits bool) {
	t.Helper()
	host := pooltest.Wrap(pooltest.NewHost(btrfs.QuotaNone), func(_ string, d pool.Directory) pool.Directory { return roomyPool{d, room} })
	e := open(t, host, filepath.Join(t.TempDir(), "index.db"))
	capacity, err := e.Capacity(t.Context(), "")
	if must(t, err); capacity.MaximumSize >= size != fits {
		t.Errorf("reports %+v", capacity)
	}
	_, err = e.Prepare(t.Context(), sized("pvc", size), meta.Ref{})
	if fits {
		must(t, err)
		return
	}
	wants(t, err, pool.ErrNoSpace)
	wants(t, second(e.Stat(t.Context(), meta.Volume("pvc"))), snapshot.ErrNotFound)
}
