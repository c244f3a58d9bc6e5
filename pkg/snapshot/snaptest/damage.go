package snaptest

import (
	"slices"
	"strings"

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs"
	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
	"github.com/btrfs-csi/btrfs-csi/pkg/pool"
	"github.com/btrfs-csi/btrfs-csi/pkg/snapshot"
)

// damage are the cases of a disk that others have changed.
var damage = []testCase{
	{"a foreign subvolume is reported and kept", func(r *rig) {
		for _, where := range []pool.Slot{
			{Area: "active", Name: "pvc"}, {Area: "committed", Name: "snap"}, {Area: "active", Name: "no id!"},
			{Area: "removing", Name: "active-pvc"}, {Area: "removing", Name: "whatever"},
		} {
			r.check(r.pool().PlantSlot(where, nil))
			r.check(r.pool().PlantSubvolume(where, "somebody's"))
		}
		want := []string{"active/no id!: Foreign", "active/pvc: Foreign", "committed/snap: Foreign",
			"removing/active-pvc: Foreign", "removing/whatever: Foreign"}
		r.planned(want...)
		ctx := r.Context()
		_, err := r.e.Prepare(ctx, sized("pvc", mib), meta.Ref{})
		r.wants(err, pool.ErrForeign, "active/pvc")
		r.wants(r.stat(meta.Volume("pvc")), pool.ErrForeign)
		r.wants(r.e.Remove(ctx, meta.Volume("pvc")), pool.ErrForeign)
		r.wants(r.e.Remove(ctx, meta.Snapshot("snap")), pool.ErrForeign)
		r.reconcile()
		r.reopen()
		r.planned(want...)
		for _, where := range []pool.Slot{{Area: "active", Name: "pvc"}, {Area: "removing", Name: "active-pvc"}} {
			data, err := r.pool().Read(where)
			r.check(err)
			r.equal(data, "somebody's")
		}
	}},
	{"a foreign file is kept", func(r *rig) {
		where := pool.Slot{Area: "active", Name: "pvc"}
		r.check(r.pool().PlantSlot(where, nil))
		r.check(r.pool().PlantFile(where))
		_, err := r.e.Prepare(r.Context(), sized("pvc", mib), meta.Ref{})
		r.wants(err, pool.ErrForeign, "file")
		r.planned("active/pvc: Foreign")
		r.reconcile()
		r.wants(r.pool().PlantFile(where), errExist)
		r.check(r.e.Remove(r.Context(), meta.Volume("pvc")))
		r.wants(r.pool().PlantFile(where), errExist)
	}},
	{"what lies beside the data stops its removal before it begins", func(r *rig) {
		volume := r.volume("pvc", "data")
		snap := r.commit("snap", "pvc")
		for _, entry := range []meta.Entry{volume, snap} {
			where := at(entry)
			r.check(r.pool().PlantFile(where))
			r.planned(where.String() + ": Foreign")
			for range 2 {
				r.wants(r.e.Remove(r.Context(), entry.Ref()), pool.ErrForeign, "file", "move")
				r.contains(entry, "data")
				r.reopen()
				r.reconcile()
			}
			r.check(r.stat(entry.Ref()))
			r.check(r.pool().RemoveFile(where))
			r.planned()
			r.remove(entry.Ref())
		}
	}},
	{"nothing that is wrong with it hides another, or stops its repair", func(r *rig) {
		entry := r.volume("pvc", "data")
		r.check(r.pool().PlantFile(at(entry)))
		if r.env.Mode() == btrfs.QuotaNone {
			return
		}
		entry.Size = 9 * mib // the record alone
		record, err := entry.Encode()
		r.check(err)
		r.check(r.pool().PlantSlot(at(entry), record))
		r.check(r.pool().SetWritable(at(entry), false))
		r.planned("active/pvc: Foreign", "active/pvc: ReadOnlyVolume", "active/pvc: WrongLimit")
		r.reconcile()
		r.planned("active/pvc: Foreign", "active/pvc: ReadOnlyVolume")
		r.limited(entry)
	}},
	{"what lies beside it stops a removal that was cut short", func(r *rig) {
		entry := r.volume("pvc", "data")
		record, err := entry.Encode()
		r.check(err)
		r.remove(entry.Ref())
		where := pool.Slot{Area: pool.AreaRemoving, Name: "active-pvc"}
		r.check(r.pool().PlantSlot(where, record))
		r.check(r.pool().PlantSubvolume(where, "data"))
		r.check(r.pool().PlantFile(where))
		for range 2 {
			r.planned("removing/active-pvc: Foreign", "removing/active-pvc: UnfinishedRemove")
			r.reconcile() // plans no repair that fails
			r.wants(r.e.Remove(r.Context(), entry.Ref()), pool.ErrForeign, "file", "move")
			data, err := r.pool().Read(where)
			r.check(err)
			r.equal(data, "data")
			r.reopen()
		}
		r.check(r.pool().RemoveFile(where))
		r.remove(entry.Ref())
		r.planned()
	}},
	{"what lies beside it stops a create that was cut short from being undone", func(r *rig) {
		where := r.declare("pvc", meta.Creating)
		r.check(r.pool().PlantFile(where))
		r.planned("active/pvc: Foreign", "active/pvc: UnfinishedCreate")
		r.reconcile()
		_, err := r.e.Prepare(r.Context(), sized("pvc", mib), meta.Ref{})
		r.wants(err, pool.ErrNotEmpty, "file")
		r.check(r.pool().RemoveFile(where))
		r.volume("pvc", "data")
	}},
	{"an empty slot is used", func(r *rig) {
		r.check(r.pool().PlantSlot(pool.Slot{Area: "active", Name: "pvc"}, nil))
		r.wants(r.stat(meta.Volume("pvc")), snapshot.ErrNotFound)
		r.planned("active/pvc: UnfinishedCreate")
		r.volume("pvc", "data")
		r.check(r.pool().PlantSlot(pool.Slot{Area: "active", Name: "other"}, nil))
		r.reconcile()
		r.planned()
	}},
	{"a declared volume is undone", func(r *rig) {
		r.declare("pvc", meta.Creating)
		r.wants(r.stat(meta.Volume("pvc")), snapshot.ErrNotFound)
		r.planned("active/pvc: UnfinishedCreate")
		r.reconcile()
		r.planned()
		r.declare("pvc", meta.Creating)
		entry := r.prepare(sized("pvc", 3*mib), meta.Ref{})
		r.equal(entry.Size, int64(3*mib))
		r.declare("gone", meta.Creating)
		r.remove(meta.Volume("gone"))
		r.planned()
	}},
	{"a half made volume is completed", func(r *rig) {
		for _, name := range []string{"by reconcile", "by the same request", "by its removal"} {
			where := r.declare(name, meta.Creating)
			r.check(r.pool().PlantSubvolume(where, "data"))
			r.planned(where.String() + ": UnfinishedCreate")
			switch name {
			case "by reconcile":
				r.reconcile()
			case "by the same request":
				r.prepare(sized(name, 4*mib), meta.Ref{})
			case "by its removal":
				r.remove(meta.Volume(meta.ID(name)))
				r.planned()
				continue
			}
			r.planned()
			entry, err := r.e.Stat(r.Context(), meta.Volume(meta.ID(name)))
			r.check(err)
			r.contains(entry, "data")
			r.limited(entry)
		}
	}},
	{"a lost subvolume is reported and never made anew", func(r *rig) {
		entry := r.volume("pvc", "data")
		r.check(r.pool().Vanish(at(entry)))
		ctx := r.Context()
		for range 2 {
			r.planned("active/pvc: Lost")
			r.wants(r.stat(entry.Ref()), snapshot.ErrLost, "pvc")
			_, err := r.e.Prepare(ctx, sized("pvc", 5*mib), meta.Ref{})
			r.wants(err, snapshot.ErrLost)
			_, err = r.e.Mounts(ctx, "pvc")
			r.wants(err, snapshot.ErrLost)
			_, err = r.e.Resize(ctx, "pvc", snapshot.Range{Required: 9 * mib})
			r.wants(err, snapshot.ErrLost)
			_, err = r.e.Commit(ctx, snapshot.Spec{Name: "snap"}, "pvc")
			r.wants(err, snapshot.ErrLost)
			_, err = r.e.Prepare(ctx, snapshot.Spec{Name: "copy"}, entry.Ref())
			r.wants(err, snapshot.ErrLost)
			r.reconcile()
			r.reopen()
		}
		r.remove(entry.Ref())
		r.wants(r.stat(entry.Ref()), snapshot.ErrNotFound)
		r.planned()
		r.contains(r.volume("pvc", "again"), "again")
	}},
	{"a record that cannot be read is reported and kept", func(r *rig) {
		good, err := r.volume("other", "").Encode()
		r.check(err)
		for name, c := range map[string]struct {
			record string
			wants  error
		}{
			"noise": {"\x00\xff noise", meta.ErrDamaged},
			"empty": {" ", meta.ErrDamaged},
			"cut":   {string(good[:len(good)/2]), meta.ErrDamaged},
			"newer": {strings.Replace(string(good), `"version":1`, `"version":3`, 1), meta.ErrNewer},
			"moved": {string(good), snapshot.ErrUnreadable},
			"large": {strings.Repeat("x", 3*meta.MaxRecordSize), meta.ErrDamaged},
		} {
			where := pool.Slot{Area: "active", Name: name}
			r.check(r.pool().PlantSlot(where, []byte(c.record)))
			r.check(r.pool().PlantSubvolume(where, "data"))
			r.planned(where.String() + ": UnreadableRecord")
			r.reopen()
			r.reconcile()
			r.planned(where.String() + ": UnreadableRecord")
			ctx := r.Context()
			_, prepared := r.e.Prepare(ctx, sized(name, mib), meta.Ref{})
			_, mounted := r.e.Mounts(ctx, name)
			_, resized := r.e.Resize(ctx, name, snapshot.Range{Required: 9 * mib})
			for _, err := range []error{prepared, mounted, resized, r.stat(meta.Volume(name)), r.e.Remove(ctx, meta.Volume(name))} {
				r.wants(err, snapshot.ErrUnreadable, where.String())
				r.wants(err, c.wants)
			}
			data, err := r.pool().Read(where)
			r.check(err)
			r.equal(data, "data")
			r.check(r.pool().Vanish(where))
			r.check(r.pool().PlantSlot(where, declared(name, meta.Ready)))
			r.remove(meta.Volume(name)) // make room for the next case
		}
	}},
	{"a snapshot that was made writable is reported", func(r *rig) {
		r.volume("source", "data")
		snap := r.commit("snap", "source")
		r.check(r.pool().SetWritable(at(snap), true))
		r.planned("committed/snap: Writable")
		r.reconcile()
		r.planned("committed/snap: Writable")
		r.remove(snap.Ref())
	}},
	{"a volume that was made read-only is reported", func(r *rig) {
		entry := r.volume("pvc", "data")
		r.check(r.pool().SetWritable(at(entry), false))
		r.planned("active/pvc: ReadOnlyVolume")
		r.reconcile()
		r.planned("active/pvc: ReadOnlyVolume")
		mount, err := r.e.Mounts(r.Context(), "pvc")
		r.check(err)
		if mount.ReadOnly || mount.MadeReadOnly == "" {
			r.Errorf("got %+v", mount)
		}
		clone := r.prepare(snapshot.Spec{Name: "clone"}, entry.Ref())
		r.check(r.pool().Write(at(clone), "written"))
		r.remove(entry.Ref())
	}},
	{"a disk file that is gone is reported, one that was cut is grown", func(r *rig) {
		spec := sized("pvc", 5*mib)
		spec.Content = meta.Block
		entry := r.prepare(spec, meta.Ref{})
		r.planned()
		r.check(r.pool().CutDisk(at(entry), mib))
		r.planned("active/pvc: DiskCut")
		r.has("pvc", "DiskCut")
		r.reopen() // a start grows it
		r.planned()
		r.has("pvc")
		r.check(r.pool().CutDisk(at(entry), mib))
		r.equal(r.prepare(spec, meta.Ref{}), entry) // so does a repeated request
		r.planned()
		r.check(r.pool().CutDisk(at(entry), 0))
		r.planned("active/pvc: DiskLost")
		r.reopen()
		r.planned("active/pvc: DiskLost") // nothing makes an empty one
		r.has("pvc", "DiskLost")
		r.remove(entry.Ref())
	}},
	{"a qgroup limit that somebody changed is set again", func(r *rig) {
		entry := r.volume("pvc", "data")
		if r.env.Mode() == btrfs.QuotaNone {
			return
		}
		entry.Size = 9 * mib // the record alone
		record, err := entry.Encode()
		r.check(err)
		r.check(r.pool().PlantSlot(at(entry), record))
		r.planned("active/pvc: WrongLimit")
		r.reopen() // a start sets the limit
		r.planned()
		r.limited(entry)
	}},
	{"lost metadata loses no data", func(r *rig) {
		entry := r.volume("pvc", "data")
		snap := r.commit("snap", "pvc")
		r.check(r.e.Close())
		removeFile(r, r.index)
		r.open()
		r.equal(r.prepare(sized("pvc", 5*mib), meta.Ref{}), entry)
		r.equal(r.commit("snap", "pvc"), snap)
		r.contains(entry, "data")
		r.equal(r.list(meta.Volumes), []string{"pvc"})
		r.equal(r.list(meta.Snapshots), []string{"snap"})
	}},
}

// has fails the test unless a volume has exactly the conditions with these reasons.
func (r *rig) has(volume string, reasons ...string) {
	r.Helper()
	all, err := r.e.VolumeConditions(r.Context(), volume)
	r.check(err)
	got := []string{}
	for _, c := range all {
		got = append(got, c.Reason)
	}
	if !slices.Equal(got, reasons) {
		r.Errorf("%s has %q, want %q", volume, got, reasons)
	}
}

// declared returns the record of a volume of 4 MiB.
func declared(name string, state meta.State) []byte {
	data, err := meta.Record{ID: meta.ID(name), Name: name, Kind: meta.Active, State: state, Size: 4 * mib}.Encode()
	if err != nil {
		panic(err)
	}
	return data
}

// declare makes a slot with the record of a volume, without a subvolume.
func (r *rig) declare(name string, state meta.State) pool.Slot {
	r.Helper()
	where := pool.Slot{Area: "active", Name: meta.ID(name)}
	r.check(r.pool().PlantSlot(where, declared(name, state)))
	return where
}
