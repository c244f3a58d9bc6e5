package snaptest

import (
	"strings"

	"golang.org/x/sys/unix"

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs"
	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
	"github.com/btrfs-csi/btrfs-csi/pkg/pool"
	"github.com/btrfs-csi/btrfs-csi/pkg/snapshot"
)

// removal are the cases of removals, and of what must stay after them.
var removal = []testCase{
	{"Remove may be repeated", func(r *rig) {
		entry := r.volume("pvc", "data")
		for range 3 {
			r.remove(entry.Ref())
			r.wants(r.stat(entry.Ref()), snapshot.ErrNotFound)
		}
		_, err := r.e.Mounts(r.Context(), "pvc")
		r.wants(err, snapshot.ErrNotFound)
		r.remove(meta.Snapshot("missing"))
		r.equal(r.list(meta.Volumes), []string{})
		r.planned()
		history, err := r.e.History()
		r.check(err)
		if len(history) != 1 || history[0].UUID != entry.UUID {
			r.Errorf("history is %+v", history)
		}
	}},
	{"a name can be used again, empty", func(r *rig) {
		old := r.volume("pvc", "data")
		r.remove(old.Ref())
		again := r.prepare(sized("pvc", 7*mib), meta.Ref{})
		if again.UUID == old.UUID || again.Size != 7*mib {
			r.Errorf("got %+v", again)
		}
		r.contains(again, "")
		r.limited(again)
	}},
	{"a snapshot outlives its volume", func(r *rig) {
		source := r.volume("source", "data")
		snap := r.commit("snap", "source")
		r.remove(source.Ref())
		r.contains(snap, "data")
		r.reopen()
		r.check(r.stat(snap.Ref()))
		r.contains(r.prepare(snapshot.Spec{Name: "restored"}, snap.Ref()), "data")
	}},
	{"a source can be removed before its copies", func(r *rig) {
		source := r.volume("source", "data")
		snap := r.commit("snap", "source")
		restored := r.prepare(snapshot.Spec{Name: "restored"}, snap.Ref())
		clone := r.prepare(snapshot.Spec{Name: "clone"}, source.Ref())
		view, err := r.e.View(r.Context(), snapshot.Spec{Name: "view"}, snap.Ref())
		r.check(err)
		r.remove(snap.Ref())
		r.remove(source.Ref())
		for _, entry := range []meta.Entry{restored, clone, view} {
			r.check(r.stat(entry.Ref()))
			r.contains(entry, "data")
		}
		r.remove(view.Ref())
		r.equal(r.list(meta.Volumes), []string{"clone", "restored"})
	}},
	{"a copy can be asked for again when its source is gone", func(r *rig) {
		source := r.volume("source", "data")
		clone := r.prepare(snapshot.Spec{Name: "clone"}, source.Ref())
		r.remove(source.Ref())
		r.equal(r.prepare(snapshot.Spec{Name: "clone"}, source.Ref()), clone)
		_, err := r.e.Prepare(r.Context(), snapshot.Spec{Name: "late"}, source.Ref())
		r.wants(err, snapshot.ErrNotFound, "source")
	}},
	{"nested subvolumes go with their volume", func(r *rig) {
		entry := r.volume("pvc", "data")
		r.check(r.pool().Nest(at(entry), "a"))
		r.check(r.pool().Nest(at(entry), "b"))
		r.remove(entry.Ref())
		r.wants(r.stat(entry.Ref()), snapshot.ErrNotFound)
		r.planned()
	}},
	{"a full volume can be removed", func(r *rig) {
		entry := r.volume("pvc", "")
		if r.env.Mode() != btrfs.QuotaNone {
			r.wants(r.pool().Write(at(entry), strings.Repeat("x", 6*mib)), unix.EDQUOT)
		}
		_ = r.pool().Write(at(entry), strings.Repeat("x", 5*mib))
		r.pool().PeriodicCommit()
		r.remove(entry.Ref())
	}},
	{"a removal that was cut short is finished", func(r *rig) {
		for _, name := range []string{"by reconcile", "by the same request"} {
			entry := r.volume(name, "data")
			record, err := entry.Encode()
			r.check(err)
			unfinished := pool.Slot{Area: pool.AreaRemoving, Name: "active-" + entry.ID}
			r.remove(entry.Ref())
			r.check(r.pool().PlantSlot(unfinished, record))
			r.check(r.pool().PlantSubvolume(unfinished, "data"))
			r.planned(unfinished.String() + ": UnfinishedRemove")
			r.wants(r.stat(entry.Ref()), snapshot.ErrNotFound)
			if name == "by reconcile" {
				r.reconcile()
			} else {
				r.remove(entry.Ref())
			}
			r.planned()
		}
	}},
	{"a name can be used again while its removal is unfinished", func(r *rig) {
		record, err := r.volume("pvc", "data").Encode()
		r.check(err)
		r.remove(meta.Volume("pvc"))
		unfinished := pool.Slot{Area: pool.AreaRemoving, Name: "active-pvc"}
		r.check(r.pool().PlantSlot(unfinished, record))
		r.check(r.pool().PlantSubvolume(unfinished, "old"))
		entry := r.volume("pvc", "new")
		r.reopen()
		r.planned()
		r.contains(entry, "new")
		r.remove(entry.Ref())
	}},
}
