package snapshot_test

import (
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs"
	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs/btrfstest"
	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
	"github.com/btrfs-csi/btrfs-csi/pkg/pool"
	"github.com/btrfs-csi/btrfs-csi/pkg/pool/pooltest"
	"github.com/btrfs-csi/btrfs-csi/pkg/snapshot"
)

var groupRounds = flag.Int("groups", 20, "how many groups TestGroupsAreOrdered takes; make groups takes 1000")

// TestGroupApart takes a group whose snapshots never share a transaction. Nothing of it is left,
// and the request is answered once they do.
func TestGroupApart(t *testing.T) {
	t.Parallel()
	host := pooltest.NewHost(btrfs.QuotaFull)
	fs := host.Pool(pool.Default)
	e := open(t, host, filepath.Join(t.TempDir(), "index.db"))
	for _, name := range []string{"a", "b"} {
		must(t, second(e.Prepare(t.Context(), snapshot.Spec{Name: name}, meta.Ref{})))
	}
	before := fs.Dump()
	fs.Part(1000)
	took := func() error {
		return second(e.CommitGroup(t.Context(), snapshot.Spec{Name: "group"}, []string{"a", "b"}))
	}
	wants(t, took(), snapshot.ErrApart)
	fs.Clean()
	if after := fs.Dump(); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
	fs.Part(2)
	must(t, took())
	entries, err := e.Group(t.Context(), "group")
	must(t, err)
	if entries[0].CreatedTransid != entries[1].CreatedTransid {
		t.Errorf("of two transactions: %+v", entries)
	}
}

// TestGroupsAreOrdered has a writer that syncs a counter to each volume in turn, beside writers that
// sync nothing. In every group that is taken meanwhile, and restored, the counters are ordered as
// they were written: the largest one, and of each other volume the last one before it.
func TestGroupsAreOrdered(t *testing.T) {
	t.Parallel()
	btrfstest.SnapshotsShare.Need(t)
	const members = 4
	n := newNode(t, btrfs.QuotaFull)
	e := n.start(t)
	var volumes []string
	counters := make([]*os.File, members)
	for i := range members {
		id := fmt.Sprint("v", i)
		must(t, second(e.Prepare(t.Context(), snapshot.Spec{Name: id, Size: snapshot.Range{Required: 64 * mib}}, meta.Ref{})))
		f, err := os.Create(filepath.Join(n.path("default"), "active", id, "fs", "counter"))
		must(t, err)
		t.Cleanup(func() { _ = f.Close() })
		volumes, counters[i] = append(volumes, id), f
	}
	var synced atomic.Uint64
	write := func(k uint64) error {
		f := counters[k%members]
		if _, err := f.WriteAt(binary.BigEndian.AppendUint64(nil, k), 0); err != nil {
			return err
		}
		return f.Sync()
	}
	next := uint64(0)
	for ; next < members; next++ {
		must(t, write(next))
	}
	synced.Store(next - 1)
	stop := make(chan struct{})
	var writers sync.WaitGroup
	running := func() bool {
		select {
		case <-stop:
			return false
		default:
			return true
		}
	}
	writers.Go(func() {
		for k := next; running(); k++ {
			if err := write(k); err != nil {
				t.Error(err)
				return
			}
			synced.Store(k)
		}
	})
	for i, f := range counters {
		writers.Go(func() {
			for at := int64(1); running(); at = at%256 + 1 {
				if _, err := f.WriteAt([]byte(fmt.Sprint(i, at)), at*4096); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	defer writers.Wait()
	defer close(stop)
	for round := range *groupRounds {
		name := fmt.Sprint("group", round)
		before := synced.Load()
		entries, err := e.CommitGroup(t.Context(), snapshot.Spec{Name: name}, volumes)
		for errors.Is(err, snapshot.ErrApart) { // on a machine that is too busy
			before = synced.Load()
			entries, err = e.CommitGroup(t.Context(), snapshot.Spec{Name: name}, volumes)
		}
		must(t, err)
		after := synced.Load() + 1 // may be written, and not synced
		checkOrder(t, n.restored(t, e, entries), before, after)
	}
}

// restored restores the members of a group, returns their counters, and removes all.
func (n *node) restored(t *testing.T, e *snapshot.Engine, entries []meta.Entry) (counters []uint64) {
	t.Helper()
	for _, entry := range entries {
		volume, err := e.Prepare(t.Context(), snapshot.Spec{Name: entry.ID}, entry.Ref())
		must(t, err)
		data, err := os.ReadFile(filepath.Join(n.path("default"), "active", volume.ID, "fs", "counter"))
		must(t, err)
		counters = append(counters, binary.BigEndian.Uint64(data))
		must(t, e.Remove(t.Context(), volume.Ref()))
	}
	for i := len(entries) - 1; i >= 0; i-- {
		must(t, e.Remove(t.Context(), entries[i].Ref()))
	}
	return counters
}

// checkOrder fails unless counters are what was written at one instant, after before and not after
// after.
func checkOrder(t *testing.T, counters []uint64, before, after uint64) {
	t.Helper()
	n := uint64(len(counters))
	last := uint64(0)
	for _, k := range counters {
		last = max(last, k)
	}
	if last < before || last > after {
		t.Errorf("the last counter is %d, wanted %d to %d", last, before, after)
	}
	for i, k := range counters {
		if want := last - (last-uint64(i))%n; k != want {
			t.Errorf("counters %d: that of volume %d is %d, wanted %d", counters, i, k, want)
		}
	}
}
