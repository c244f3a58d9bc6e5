package snaptest

import (
	"errors"
	"io/fs"
	"os"

	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
	"github.com/btrfs-csi/btrfs-csi/pkg/pool"
	"github.com/btrfs-csi/btrfs-csi/pkg/snapshot"
)

// errExist is the error of PlantFile if a file exists already.
var errExist = fs.ErrExist

func removeFile(r *rig, path string) {
	r.Helper()
	r.check(os.Remove(path))
}

// pooling are the cases of several pools, and of pools that are away.
var pooling = []testCase{
	{"a volume is made in the pool that is named", func(r *rig) {
		r.follow()
		r.env.AddPool(r, "fast")
		r.inUse("fast", true)
		spec := sized("pvc", mib)
		spec.Pool = "fast"
		entry := r.prepare(spec, meta.Ref{})
		if entry.Pool != "fast" || entry.PoolID != r.e.PoolIDs()["fast"] || entry.PoolID == r.e.PoolIDs()[pool.Default] {
			r.Errorf("got %+v", entry)
		}
		r.equal(r.prepare(sized("pvc", mib), meta.Ref{}), entry) // found without the pool's name
		snap := r.commit("snap", "pvc")
		if snap.Pool != "fast" {
			r.Errorf("got %+v", snap)
		}
		wrong := snapshot.Spec{Name: "copy", Pool: pool.Default}
		_, err := r.e.Prepare(r.Context(), wrong, snap.Ref())
		r.wants(err, snapshot.ErrInvalid, "fast", pool.Default) // never a full copy
		r.wants(r.stat(meta.Volume("copy")), snapshot.ErrNotFound)
	}},
	{"an unknown pool", func(r *rig) {
		_, err := r.e.Prepare(r.Context(), snapshot.Spec{Name: "pvc", Pool: "missing"}, meta.Ref{})
		r.wants(err, snapshot.ErrNoPool, "missing", pool.Default)
		r.wants(r.stat(meta.Volume("pvc")), snapshot.ErrNotFound)
	}},
	{"a volume whose pool is away is not gone", func(r *rig) {
		r.follow()
		r.env.AddPool(r, "fast")
		r.inUse("fast", true)
		spec := sized("pvc", mib)
		spec.Pool = "fast"
		entry := r.prepare(spec, meta.Ref{})
		r.check(r.env.Pool("fast").Write(at(entry), "data"))
		r.env.Detach(r, "fast")
		ctx := r.Context()
		for range 2 {
			r.inUse("fast", false)
			r.wants(r.stat(entry.Ref()), pool.ErrAway, "fast")
			r.wants(r.e.Remove(ctx, entry.Ref()), pool.ErrAway)
			for _, name := range []string{"", "fast", pool.Default} {
				spec.Pool = name
				_, err := r.e.Prepare(ctx, spec, meta.Ref{})
				r.wants(err, pool.ErrAway)
			}
			_, err := r.e.Prepare(ctx, snapshot.Spec{Name: "copy"}, entry.Ref())
			r.wants(err, pool.ErrAway)
			_, err = r.e.Mounts(ctx, "pvc")
			r.wants(err, pool.ErrAway)
			r.equal(r.list(meta.Volumes), []string{})
			_, err = r.e.Prepare(ctx, snapshot.Spec{Name: "new", Pool: "fast"}, meta.Ref{})
			r.wants(err, snapshot.ErrNoPool)
			r.reconcile()
		}
		r.volume("elsewhere", "data") // others are served
		r.env.Attach(r, "fast")
		r.inUse("fast", true)
		r.contains(entry, "data")
		r.equal(r.list(meta.Volumes), []string{"elsewhere", "pvc"})
		spec.Pool = ""
		r.equal(r.prepare(spec, meta.Ref{}), entry)
	}},
	{"a volume whose pool is away at the start is not gone", func(r *rig) {
		r.env.AddPool(r, "fast")
		r.reopen()
		spec := sized("pvc", mib)
		spec.Pool = "fast"
		entry := r.prepare(spec, meta.Ref{})
		r.env.Detach(r, "fast")
		r.reopen()
		r.wants(r.stat(entry.Ref()), pool.ErrAway)
		_, err := r.e.Prepare(r.Context(), spec, meta.Ref{})
		r.wants(err, pool.ErrAway)
		r.env.Attach(r, "fast")
		r.reopen()
		r.check(r.stat(entry.Ref()))
		r.remove(entry.Ref())
	}},
	{"a pool that is excluded is dropped, reported, and comes back", func(r *rig) {
		r.env.AddPool(r, "fast")
		r.reopen()
		r.follow()
		entry := r.volume("pvc", "data")
		reason := errors.New("another node has it")
		r.e.Exclude(map[string]error{entry.PoolID: reason})
		r.inUse(pool.Default, false)
		r.wants(r.stat(entry.Ref()), pool.ErrAway)
		_, err := r.e.Prepare(r.Context(), snapshot.Spec{Name: "new", Pool: pool.Default}, meta.Ref{})
		r.wants(err, snapshot.ErrNoPool, reason.Error())
		r.inUse("fast", true) // others are served
		r.e.Exclude(nil)
		r.inUse(pool.Default, true)
		r.contains(entry, "data")
	}},
	{"an observer gets each change, and nothing else", func(r *rig) {
		r.env.AddPool(r, "fast")
		r.reopen()
		reported := make(chan meta.Ref, 100)
		r.e.OnChange(func(ref meta.Ref) { reported <- ref })
		wants := func(want ...meta.Ref) {
			r.Helper()
			got := []meta.Ref{}
			for len(reported) > 0 {
				got = append(got, <-reported)
			}
			r.equal(got, want)
		}
		entry := r.prepare(sized("pvc", mib), meta.Ref{})
		wants(entry.Ref())
		r.prepare(sized("pvc", mib), meta.Ref{}) // repeated: fn may be called again for it
		for len(reported) > 0 {
			r.equal(<-reported, entry.Ref())
		}
		snap := r.commit("snap", "pvc")
		wants(snap.Ref())
		_, err := r.e.Resize(r.Context(), "pvc", snapshot.Range{Required: 2 * mib})
		r.check(err)
		wants(entry.Ref())
		r.check(r.stat(entry.Ref()))
		wants([]meta.Ref{}...)
		r.remove(snap.Ref())
		wants(snap.Ref())
		r.e.Exclude(map[string]error{entry.PoolID: errors.New("excluded")})
		r.follow()
		r.inUse(pool.Default, false)
		r.equal(<-reported, meta.Ref{})
	}},
	{"a volume in two pools is nobody's to choose", func(r *rig) {
		r.env.AddPool(r, "fast")
		r.reopen()
		entry := r.volume("pvc", "one")
		record, err := entry.Encode()
		r.check(err)
		r.check(r.env.Pool("fast").PlantSlot(at(entry), record))
		r.check(r.env.Pool("fast").PlantSubvolume(at(entry), "two"))
		r.reconcile()
		r.planned("active/pvc: Duplicate")
		ctx := r.Context()
		r.wants(r.stat(entry.Ref()), snapshot.ErrAmbiguous, "fast", pool.Default)
		r.wants(r.e.Remove(ctx, entry.Ref()), snapshot.ErrAmbiguous)
		_, err = r.e.Prepare(ctx, sized("pvc", 5*mib), meta.Ref{})
		r.wants(err, snapshot.ErrAmbiguous)
		for pool, want := range map[string]string{pool.Default: "one", "fast": "two"} {
			data, err := r.env.Pool(pool).Read(at(entry))
			r.check(err)
			r.equal(data, want)
		}
		r.check(r.env.Pool("fast").Vanish(at(entry)))
		r.check(r.env.Pool("fast").PlantSlot(at(entry), declared("pvc", meta.Creating)))
		r.reconcile()
		r.check(r.stat(entry.Ref()))
	}},
	{"a read-only pool is served", func(r *rig) {
		entry := r.volume("pvc", "data")
		snap := r.commit("snap", "pvc")
		r.pool().PeriodicCommit()
		r.pool().SetReadOnly(true)
		ctx := r.Context()
		for range 2 {
			r.check(r.stat(entry.Ref()))
			r.contains(entry, "data")
			_, err := r.e.Mounts(ctx, "pvc")
			r.check(err)
			r.equal(r.prepare(sized("pvc", 5*mib), meta.Ref{}), entry)
			_, err = r.e.Prepare(ctx, sized("new", mib), meta.Ref{})
			r.wants(err, pool.ErrReadOnly)
			_, err = r.e.Commit(ctx, snapshot.Spec{Name: "other"}, "pvc")
			r.wants(err, pool.ErrReadOnly)
			_, err = r.e.Resize(ctx, "pvc", snapshot.Range{Required: 9 * mib})
			r.wants(err, pool.ErrReadOnly)
			err = r.e.Remove(ctx, snap.Ref())
			r.wants(err, pool.ErrReadOnly)
			if errors.Is(err, snapshot.ErrUnfinished) {
				r.Errorf("nothing was begun, got %v", err)
			}
			r.check(r.stat(snap.Ref()))
			r.equal(r.list(meta.Snapshots), []string{"snap"})
			r.reopen()
		}
		r.pool().SetReadOnly(false)
		r.remove(snap.Ref())
		r.prepare(sized("new", mib), meta.Ref{})
	}},
}
