package snaptest

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs"
	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
	"github.com/btrfs-csi/btrfs-csi/pkg/pool"
	"github.com/btrfs-csi/btrfs-csi/pkg/snapshot"
)

const (
	mib = 1 << 20
	gib = 1 << 30
)

// creation are the cases of making, changing and querying volumes and snapshots.
var creation = []testCase{
	{"Prepare makes an empty volume", func(r *rig) {
		entry := r.prepare(snapshot.Spec{
			Name: "pvc-1", Size: snapshot.Range{Required: 5 * mib}, Labels: map[string]string{"pvc": "data"},
			Parameters: meta.Parameters{Compression: "zstd"},
		}, meta.Ref{})
		if entry.ID != "pvc-1" || entry.Kind != meta.Active || entry.State != meta.Ready || entry.Size != 5*mib ||
			entry.Pool != pool.Default || entry.PoolID == "" || entry.UUID == "" || entry.ParentUUID != "" ||
			entry.SubvolumeID < 256 || entry.Labels["pvc"] != "data" || entry.Parameters.Compression != "zstd" {
			r.Errorf("got %+v", entry)
		}
		again, err := r.e.Stat(r.Context(), entry.Ref())
		r.check(err)
		r.equal(again, entry)
		mount, err := r.e.Mounts(r.Context(), "pvc-1")
		r.check(err)
		if mount.ReadOnly || !strings.HasSuffix(mount.Source, "/active/pvc-1/fs") {
			r.Errorf("got %+v", mount)
		}
		r.contains(entry, "")
		r.limited(entry)
	}},
	{"Prepare makes a volume of a snapshot", func(r *rig) {
		r.volume("source", "old")
		snap := r.commit("snap", "source")
		r.check(r.pool().Write(at(snapOf(r, "source")), "new"))
		entry := r.prepare(snapshot.Spec{Name: "copy"}, meta.Snapshot("snap"))
		if entry.Source != meta.Snapshot("snap") || entry.ParentUUID != snap.UUID || entry.Size != snap.Size {
			r.Errorf("got %+v of %+v", entry, snap)
		}
		r.contains(entry, "old")
		r.limited(entry)
		r.check(r.pool().Write(at(entry), "copy's"))
		r.contains(snap, "old")
	}},
	{"Prepare makes a volume of a volume", func(r *rig) {
		source := r.volume("source", "data")
		entry := r.prepare(snapshot.Spec{Name: "copy"}, source.Ref())
		if entry.Source != source.Ref() || entry.ParentUUID != source.UUID {
			r.Errorf("got %+v of %+v", entry, source)
		}
		r.check(r.pool().Write(at(source), "changed"))
		r.contains(entry, "data")
		r.limited(entry)
	}},
	{"a larger clone has a larger qgroup limit", func(r *rig) {
		source := r.volume("source", "data")
		entry := r.prepare(sized("copy", 64*mib), source.Ref())
		r.equal(entry.Size, int64(64*mib))
		r.limited(entry)
		r.limited(source)
		if r.env.Mode() == btrfs.QuotaNone {
			return
		}
		large := strings.Repeat("x", 6*mib)
		r.check(r.pool().Write(at(entry), large))
		r.wants(r.pool().Write(at(source), large), unix.EDQUOT)
	}},
	{"a clone smaller than its source is refused", func(r *rig) {
		source := r.volume("source", "data")
		r.commit("snap", "source")
		for _, want := range []snapshot.Range{{Limit: 4 * mib}, {Required: mib, Limit: 4 * mib}, {Required: mib}} {
			for _, from := range []meta.Ref{source.Ref(), meta.Snapshot("snap")} {
				_, err := r.e.Prepare(r.Context(), snapshot.Spec{Name: "copy", Size: want}, from)
				r.wants(err, snapshot.ErrOutOfRange)
			}
		}
		r.wants(r.stat(meta.Volume("copy")), snapshot.ErrNotFound)
	}},
	{"View is read-only", func(r *rig) {
		source := r.volume("source", "data")
		r.commit("snap", "source")
		entry, err := r.e.View(r.Context(), snapshot.Spec{Name: "view"}, meta.Snapshot("snap"))
		r.check(err)
		mount, err := r.e.Mounts(r.Context(), "view")
		r.check(err)
		if entry.Kind != meta.View || !mount.ReadOnly {
			r.Errorf("got %+v, %+v", entry, mount)
		}
		r.wants(r.pool().Write(at(entry), "x"), unix.EROFS)
		r.contains(entry, "data")
		_, err = r.e.View(r.Context(), snapshot.Spec{Name: "other"}, meta.Ref{})
		r.wants(err, snapshot.ErrInvalid)
		r.equal(r.list(meta.Volumes), []string{"source", "view"})
		live, err := r.e.View(r.Context(), snapshot.Spec{Name: "live"}, source.Ref()) // as it is now
		r.check(err)
		r.check(r.pool().Write(at(source), "later"))
		r.contains(live, "data")
		r.wants(r.pool().Write(at(live), "x"), unix.EROFS)
	}},
	{"Commit makes a read-only snapshot and the volume lives on", func(r *rig) {
		source := r.volume("source", "one")
		one := r.commit("one", "source")
		r.check(r.pool().Write(at(source), "two"))
		two := r.commit("two", "source")
		r.contains(one, "one")
		r.contains(two, "two")
		r.wants(r.pool().Write(at(one), "x"), unix.EROFS)
		if one.Kind != meta.Committed || one.Size != source.Size || one.ParentUUID != source.UUID || one.CreatedTransid >= two.CreatedTransid {
			r.Errorf("got %+v", one)
		}
		_, err := r.e.Commit(r.Context(), snapshot.Spec{Name: "three"}, "missing")
		r.wants(err, snapshot.ErrNotFound, "missing")
		r.wants(r.stat(meta.Snapshot("three")), snapshot.ErrNotFound)
	}},
	{"a request made again returns what is there", func(r *rig) {
		spec := sized("source", 5*mib)
		spec.Parameters = meta.Parameters{NoDataCow: true}
		source := r.prepare(spec, meta.Ref{})
		r.check(r.pool().Write(at(source), "data"))
		r.equal(r.prepare(spec, meta.Ref{}), source)
		snap := r.commit("snap", "source")
		r.equal(r.commit("snap", "source"), snap)
		view, err := r.e.View(r.Context(), snapshot.Spec{Name: "view"}, snap.Ref())
		r.check(err)
		again, err := r.e.View(r.Context(), snapshot.Spec{Name: "view"}, snap.Ref())
		r.check(err)
		r.equal(again, view)
		r.contains(source, "data")
		r.reopen()
		r.equal(r.prepare(spec, meta.Ref{}), source)
		r.equal(r.commit("snap", "source"), snap)
		r.contains(source, "data")
	}},
	{"a request made again with other options names what differs", func(r *rig) {
		source := r.volume("source", "data")
		r.commit("snap", "source")
		entry := r.prepare(sized("copy", 8*mib), meta.Snapshot("snap"))
		ctx := r.Context()
		for _, c := range []struct {
			differs string
			spec    snapshot.Spec
			source  meta.Ref
		}{
			{"size", sized("copy", 9*mib), meta.Snapshot("snap")},
			{"size", snapshot.Spec{Name: "copy", Size: snapshot.Range{Limit: 7 * mib}}, meta.Snapshot("snap")},
			{"source", sized("copy", 8*mib), meta.Ref{}},
			{"source", sized("copy", 8*mib), source.Ref()},
			{"pool", snapshot.Spec{Name: "copy", Pool: "fast"}, meta.Snapshot("snap")},
			{"parameters", snapshot.Spec{Name: "copy", Parameters: meta.Parameters{NoDataCow: true}}, meta.Snapshot("snap")},
		} {
			_, err := r.e.Prepare(ctx, c.spec, c.source)
			r.wants(err, snapshot.ErrExists, "copy", c.differs)
		}
		_, err := r.e.View(ctx, snapshot.Spec{Name: "copy"}, meta.Snapshot("snap"))
		r.wants(err, snapshot.ErrExists, "kind")
		r.volume("other", "")
		_, err = r.e.Commit(ctx, snapshot.Spec{Name: "snap"}, "other")
		r.wants(err, snapshot.ErrExists, "source")
		r.contains(entry, "data")
	}},
	{"volumes and snapshots have names of their own", func(r *rig) {
		r.volume("same", "data")
		snap := r.commit("same", "same")
		r.remove(meta.Volume("same"))
		r.contains(snap, "data")
		r.remove(meta.Snapshot("same"))
	}},
	{"names in any script and of any length", func(r *rig) {
		var want []string
		for _, name := range []string{
			"Ünïcödé", "数据卷", "том данных", "बड़ा", "🐧", strings.Repeat("x", 128), strings.Repeat("x", 129), strings.Repeat("語", 128),
			"..", ".", "../../etc", "/", "a/b", "-rf", "a b", "a\nb", "a\x00b", "fs", "active", "pool.json", "con", "a:b", "CamelCase", "camelcase",
			meta.ID("a/b"), "sha256-", "%s%d", "\"quoted\"", "'; rm -rf /",
		} {
			entry := r.prepare(sized(name, mib), meta.Ref{})
			if entry.Name != name || entry.ID != meta.ID(name) || !meta.ValidID(entry.ID) {
				r.Errorf("%q: got %+v", name, entry.Record)
			}
			r.check(r.pool().Write(at(entry), name))
			want = append(want, entry.ID)
		}
		slices.Sort(want)
		r.equal(r.list(meta.Volumes), want)
		if len(slices.Compact(want)) != len(want) {
			r.Error("two names share an ID")
		}
		r.reopen()
		for _, id := range want {
			entry, err := r.e.Stat(r.Context(), meta.Volume(id))
			r.check(err)
			r.contains(entry, entry.Name)
			r.remove(entry.Ref())
		}
	}},
	{"names that cannot be", func(r *rig) {
		for _, name := range []string{"", "\xff", strings.Repeat("x", 4000)} {
			_, err := r.e.Prepare(r.Context(), sized(name, mib), meta.Ref{})
			r.wants(err, snapshot.ErrInvalid)
		}
		r.planned()
		for _, id := range []string{"", ".", "..", "../default", "a/b", strings.Repeat("x", 129), "-x"} {
			r.wants(r.stat(meta.Volume(id)), snapshot.ErrNotFound)
			r.remove(meta.Volume(id))
			_, err := r.e.Commit(r.Context(), snapshot.Spec{Name: "snap"}, id)
			r.wants(err, snapshot.ErrNotFound)
		}
	}},
	{"sizes", func(r *rig) {
		for i, c := range []struct {
			want snapshot.Range
			size int64
			err  error
		}{
			{snapshot.Range{}, snapshot.DefaultSize, nil},
			{snapshot.Range{Required: 1}, mib, nil},
			{snapshot.Range{Required: mib}, mib, nil},
			{snapshot.Range{Required: mib + 1}, 2 * mib, nil},
			{snapshot.Range{Required: mib + 1, Limit: mib + 1}, mib + 1, nil},
			{snapshot.Range{Required: mib + 1, Limit: mib + 2}, mib + 2, nil},
			{snapshot.Range{Limit: 500 * mib}, 500 * mib, nil},
			{snapshot.Range{Limit: 500*mib + 7}, 500*mib + 7, nil},
			{snapshot.Range{Limit: math.MaxInt64}, snapshot.DefaultSize, nil},
			{snapshot.Range{Limit: mib - 1}, 0, snapshot.ErrOutOfRange},
			{snapshot.Range{Required: 3 * mib, Limit: 2 * mib}, 0, snapshot.ErrOutOfRange},
			{snapshot.Range{Required: -1}, 0, snapshot.ErrOutOfRange},
			{snapshot.Range{Limit: -1}, 0, snapshot.ErrOutOfRange},
			{snapshot.Range{Required: math.MinInt64}, 0, snapshot.ErrOutOfRange},
			{snapshot.Range{Required: math.MaxInt64}, 0, snapshot.ErrOutOfRange},
			{snapshot.Range{Required: math.MaxInt64, Limit: math.MaxInt64}, 0, snapshot.ErrOutOfRange},
			{snapshot.Range{Required: math.MaxInt64 - mib}, 0, pool.ErrNoSpace},
			{snapshot.Range{Required: 1 << 50}, 0, pool.ErrNoSpace},
		} {
			name := fmt.Sprintf("pvc-%d", i)
			entry, err := r.e.Prepare(r.Context(), snapshot.Spec{Name: name, Size: c.want}, meta.Ref{})
			if c.err != nil {
				r.wants(err, c.err)
				r.wants(r.stat(meta.Volume(name)), snapshot.ErrNotFound)
				continue
			}
			r.check(err)
			if entry.Size != c.size {
				r.Errorf("%+v: got %d, wanted %d", c.want, entry.Size, c.size)
			}
			r.limited(entry)
		}
	}},
	{"Resize grows and never shrinks", func(r *rig) {
		entry := r.volume("pvc", "data")
		ctx := r.Context()
		for _, c := range []struct {
			want snapshot.Range
			size int64
			err  error
		}{
			{snapshot.Range{Required: 5 * mib}, 5 * mib, nil},
			{snapshot.Range{Required: mib}, 5 * mib, nil},
			{snapshot.Range{}, 5 * mib, nil},
			{snapshot.Range{Required: 7*mib + 1}, 8 * mib, nil},
			{snapshot.Range{Required: 8*mib + 1, Limit: 8*mib + 2}, 8*mib + 2, nil},
			{snapshot.Range{Required: 9 * mib, Limit: 8 * mib}, 0, snapshot.ErrOutOfRange},
			{snapshot.Range{Limit: 8 * mib}, 0, snapshot.ErrOutOfRange},
			{snapshot.Range{Required: -1}, 0, snapshot.ErrOutOfRange},
			{snapshot.Range{Required: math.MaxInt64}, 0, snapshot.ErrOutOfRange},
			{snapshot.Range{Required: 1 << 50}, 0, pool.ErrNoSpace},
			{snapshot.Range{Required: 20 * mib}, 20 * mib, nil},
		} {
			got, err := r.e.Resize(ctx, "pvc", c.want)
			if c.err != nil {
				r.wants(err, c.err)
				continue
			}
			r.check(err)
			if got.Size != c.size {
				r.Errorf("%+v: got %d, wanted %d", c.want, got.Size, c.size)
			}
			r.limited(got)
		}
		r.contains(entry, "data")
		_, err := r.e.Resize(ctx, "missing", snapshot.Range{Required: mib})
		r.wants(err, snapshot.ErrNotFound)
		r.reopen()
		got, err := r.e.Stat(ctx, entry.Ref())
		r.check(err)
		r.equal(got.Size, int64(20*mib))
		r.limited(got)
	}},
	{"Usage counts the data of the volume", func(r *rig) {
		entry := r.prepare(sized("pvc", 16*mib), meta.Ref{})
		r.check(r.pool().Write(at(entry), strings.Repeat("x", 4*mib)))
		r.pool().PeriodicCommit()
		usage, err := r.e.Usage(r.Context(), entry.Ref())
		if r.env.Mode() == btrfs.QuotaNone {
			r.wants(err, pool.ErrNoQuota)
			return
		}
		r.check(err)
		if usage.Used < 4*mib || usage.Used > 5*mib || usage.Limit != 16*mib {
			r.Errorf("got %+v", usage)
		}
		_, err = r.e.Usage(r.Context(), meta.Volume("missing"))
		r.wants(err, snapshot.ErrNotFound)
	}},
	{"Capacity is the room of one pool", func(r *rig) {
		ctx := r.Context()
		c, err := r.e.Capacity(ctx, "")
		r.check(err)
		if c.Available < gib || c.Available%mib != 0 || c.MaximumSize != c.Available || c.MinimumSize != snapshot.MinSize {
			r.Errorf("got %+v", c)
		}
		named, err := r.e.Capacity(ctx, pool.Default)
		r.check(err)
		r.equal(named, c)
		_, err = r.e.Capacity(ctx, "missing")
		r.wants(err, snapshot.ErrNoPool, "missing", pool.Default)
		_, err = r.e.Prepare(ctx, sized("large", c.MaximumSize+mib), meta.Ref{})
		r.wants(err, pool.ErrNoSpace)
		r.pool().SetReadOnly(true)
		defer r.pool().SetReadOnly(false)
		c, err = r.e.Capacity(ctx, "")
		r.check(err)
		r.equal(c, snapshot.Capacity{PoolID: c.PoolID, MinimumSize: snapshot.MinSize})
	}},
	{"Walk pages in order", func(r *rig) {
		var want []string
		for i := range 12 {
			name := fmt.Sprintf("pvc-%02d", (i*7)%12)
			r.prepare(sized(name, mib), meta.Ref{})
			want = append(want, fmt.Sprintf("pvc-%02d", i))
		}
		r.commit("snap", "pvc-00")
		var got []string
		for after, pages := "", 0; pages < 4; pages++ {
			n := 0
			r.check(r.e.Walk(r.Context(), meta.Volumes, after, func(e meta.Entry) bool {
				got, after = append(got, e.ID), e.ID
				n++
				return n < 5
			}))
		}
		r.equal(got, want)
		r.remove(meta.Volume("pvc-04")) // a page may begin after a removed volume
		got = nil
		r.check(r.e.Walk(r.Context(), meta.Volumes, "pvc-04", func(e meta.Entry) bool { got = append(got, e.ID); return true }))
		r.equal(got, want[5:])
		r.equal(r.list(meta.Snapshots), []string{"snap"})
	}},
	{"WalkSnapshots visits those of one volume, also when it is gone", func(r *rig) {
		r.volume("a", "")
		r.volume("ab", "")
		for i := range 4 {
			r.commit(fmt.Sprintf("a-%d", i), "a")
			r.commit(fmt.Sprintf("ab-%d", i), "ab")
		}
		r.prepare(snapshot.Spec{Name: "a-clone"}, meta.Volume("a"))
		tell := func(volume, after string) []string {
			ids := []string{}
			r.check(r.e.WalkSnapshots(r.Context(), volume, after, func(e meta.Entry) bool { ids = append(ids, e.ID); return len(ids) < 3 }))
			return ids
		}
		r.equal(tell("a", ""), []string{"a-0", "a-1", "a-2"})
		r.remove(meta.Volume("a"))
		r.equal(tell("a", ""), []string{"a-0", "a-1", "a-2"})
		r.equal(tell("a", "a-2"), []string{"a-3"})
		r.equal(tell("missing", ""), []string{})
	}},
	{"concurrent snapshots of one volume", func(r *rig) {
		source := r.volume("source", "data")
		var wg sync.WaitGroup
		errs := make([]error, 16)
		for i := range errs {
			wg.Go(func() {
				_, errs[i] = r.e.Commit(r.Context(), snapshot.Spec{Name: fmt.Sprintf("snap-%d", i)}, "source")
			})
		}
		wg.Wait()
		for i, err := range errs {
			r.check(err)
			entry, err := r.e.Stat(r.Context(), meta.Snapshot(fmt.Sprintf("snap-%d", i)))
			r.check(err)
			r.contains(entry, "data")
		}
		r.contains(source, "data")
	}},
	{"the same request at once is made once", func(r *rig) {
		var wg sync.WaitGroup
		var mu sync.Mutex
		ids := map[uint64]bool{}
		for range 16 {
			wg.Go(func() {
				entry, err := r.e.Prepare(r.Context(), sized("pvc", mib), meta.Ref{})
				mu.Lock()
				defer mu.Unlock()
				if err == nil {
					ids[entry.SubvolumeID] = true
				} else if !isAny(err, snapshot.ErrBusy) {
					r.Error(err)
				}
			})
		}
		wg.Wait()
		if len(ids) != 1 {
			r.Errorf("made %v", ids)
		}
	}},
	{"a locked ID is busy", busy},
	{"nothing is made once the caller has gone", func(r *rig) {
		ctx, cancel := contextWithCancel(r)
		cancel()
		_, err := r.e.Prepare(ctx, sized("pvc", mib), meta.Ref{})
		if err == nil {
			r.Error("made")
		}
		r.wants(r.stat(meta.Volume("pvc")), snapshot.ErrNotFound)
		r.volume("kept", "data")
		if r.e.Remove(ctx, meta.Volume("kept")) == nil {
			r.Error("removed")
		}
		r.check(r.stat(meta.Volume("kept")))
	}},
	{"nested subvolumes refuse a copy by name", func(r *rig) {
		source := r.volume("source", "data")
		r.check(r.pool().Nest(at(source), "docker"))
		ctx := r.Context()
		_, err := r.e.Commit(ctx, snapshot.Spec{Name: "snap"}, "source")
		r.wants(err, snapshot.ErrNested, "docker")
		_, err = r.e.Prepare(ctx, snapshot.Spec{Name: "copy"}, source.Ref())
		r.wants(err, snapshot.ErrNested, "docker")
		r.planned()
		skip := snapshot.Spec{Name: "snap", Parameters: meta.Parameters{SkipNested: true}}
		entry, err := r.e.Commit(ctx, skip, "source")
		r.check(err)
		r.contains(entry, "data")
		r.prepare(snapshot.Spec{Name: "restored"}, entry.Ref())
	}},
}
