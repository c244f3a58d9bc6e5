package snaptest

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
	"github.com/btrfs-csi/btrfs-csi/pkg/pool"
	"github.com/btrfs-csi/btrfs-csi/pkg/snapshot"
)

// groups are the cases of groups of snapshots.
var groups = []testCase{
	{"a group shows its volumes at one instant", func(r *rig) {
		var ids []string
		for i := range 5 {
			ids = append(ids, r.volume(fmt.Sprintf("v%d", i), fmt.Sprintf("data %d", i)).ID)
		}
		got := r.commitGroup("group", ids...)
		for i, entry := range got {
			if entry.ID != fmt.Sprintf("group-%d", i) || entry.Group != (meta.Group{ID: "group", Member: i, Members: 5}) ||
				entry.Source != meta.Volume(ids[i]) || entry.CreatedTransid != got[0].CreatedTransid || entry.State != meta.Ready {
				r.Errorf("got %+v", entry)
			}
			r.contains(entry, fmt.Sprintf("data %d", i))
		}
		copied := r.prepare(snapshot.Spec{Name: "copy"}, got[3].Ref())
		r.contains(copied, "data 3")
		r.equal(r.list(meta.Snapshots), []string{"group-0", "group-1", "group-2", "group-3", "group-4"})

		slices.Reverse(ids)
		for range 2 {
			r.equal(r.commitGroup("group", ids...), got)
			again, err := r.e.Group(r.Context(), "group")
			r.check(err)
			r.equal(again, got)
			r.reopen()
		}
	}},
	{"a group of one, and of a name in any script", func(r *rig) {
		r.volume("pvc", "data")
		for _, name := range []string{"one", "数据 卷", strings.Repeat("x", 128), strings.Repeat("y", 129)} {
			got := r.commitGroup(name, "pvc")
			again, err := r.e.Group(r.Context(), got[0].Group.ID)
			r.check(err)
			r.equal(again, got)
		}
	}},
	{"a group made again with other members names what differs", func(r *rig) {
		for _, name := range []string{"a", "b", "c"} {
			r.volume(name, name)
		}
		got := r.commitGroup("group", "a", "b")
		r.commit("plain-0", "a")
		for _, c := range []struct {
			name, differs string
			volumes       []string
		}{
			{"group", "2 members", []string{"a"}},
			{"group", "2 members", []string{"a", "b", "c"}},
			{"group", `volume "b"`, []string{"a", "c"}},
			{"group", `volume "a"`, []string{"b", "c"}},
			{"plain", "no group", []string{"a", "b"}},
			{"plain", "no group", []string{"a"}},
		} {
			_, err := r.e.CommitGroup(r.Context(), snapshot.Spec{Name: c.name}, c.volumes)
			r.wants(err, snapshot.ErrExists, c.name, c.differs)
		}
		_, err := r.e.CommitGroup(r.Context(), snapshot.Spec{Name: "group", Parameters: meta.Parameters{SkipNested: true}}, []string{"a", "b"})
		r.wants(err, snapshot.ErrExists, "parameters")
		r.equal(r.list(meta.Snapshots), []string{"group-0", "group-1", "plain-0"})
		again, err := r.e.Group(r.Context(), "group")
		r.check(err)
		r.equal(again, got)
	}},
	{"volumes in two pools are no group", func(r *rig) {
		r.env.AddPool(r, "fast")
		r.follow()
		r.inUse("fast", true)
		r.volume("slow", "data")
		r.prepare(snapshot.Spec{Name: "quick", Pool: "fast"}, meta.Ref{})
		_, err := r.e.CommitGroup(r.Context(), snapshot.Spec{Name: "group"}, []string{"slow", "quick"})
		r.wants(err, snapshot.ErrPools, `volume "quick" in pool "fast"`, `volume "slow" in pool "default"`)
		r.equal(r.list(meta.Snapshots), []string{})
	}},
	{"groups that cannot be", func(r *rig) {
		r.volume("pvc", "data")
		nests := r.volume("nests", "data")
		r.check(r.pool().Nest(at(nests), "inside"))
		var many []string
		for i := range meta.MaxMembers + 1 {
			many = append(many, fmt.Sprint(i))
		}
		for _, c := range []struct {
			name    string
			volumes []string
			want    error
		}{
			{"", []string{"pvc"}, snapshot.ErrInvalid},
			{"\xff", []string{"pvc"}, snapshot.ErrInvalid},
			{"group", nil, snapshot.ErrInvalid},
			{"group", []string{"pvc", "pvc"}, snapshot.ErrInvalid},
			{"group", many, snapshot.ErrInvalid},
			{"group", []string{"pvc", "missing"}, snapshot.ErrNotFound},
			{"group", []string{"pvc", "nests"}, snapshot.ErrNested},
		} {
			_, err := r.e.CommitGroup(r.Context(), snapshot.Spec{Name: c.name}, c.volumes)
			r.wants(err, c.want)
		}
		_, err := r.e.Group(r.Context(), "group")
		r.wants(err, snapshot.ErrNotFound)
		r.equal(r.list(meta.Snapshots), []string{})
		r.planned()
		got := r.commitGroupAs(snapshot.Spec{Name: "group", Parameters: meta.Parameters{SkipNested: true}}, "pvc", "nests")
		r.equal(len(got), 2)
	}},
	{"a group is removed from its last member to its first", func(r *rig) {
		r.volume("a", "a")
		r.volume("b", "b")
		r.commitGroup("group", "a", "b")
		members, err := r.e.GroupMembers(r.Context(), "group")
		r.check(err)
		r.equal(members, []meta.Ref{meta.Snapshot("group-0"), meta.Snapshot("group-1")})
		r.remove(members[1])
		_, err = r.e.Group(r.Context(), "group")
		r.wants(err, snapshot.ErrIncomplete, "group-1")
		_, err = r.e.CommitGroup(r.Context(), snapshot.Spec{Name: "group"}, []string{"a", "b"})
		r.wants(err, snapshot.ErrIncomplete, "1 of 2")
		again, err := r.e.GroupMembers(r.Context(), "group")
		r.check(err)
		r.equal(again, members)
		r.remove(members[0])
		again, err = r.e.GroupMembers(r.Context(), "group")
		r.check(err)
		r.equal(len(again), 0)
		r.commitGroup("group", "b", "a")
	}},
	{"a member of a group that was cut short is no snapshot", func(r *rig) {
		r.volume("a", "a")
		record := meta.Record{
			ID: "group-0", Name: "group-0", Kind: meta.Committed, State: meta.Creating, Size: mib, Source: meta.Volume("a"),
			Group: meta.Group{ID: "group", Members: 2},
		}
		data, err := record.Encode()
		r.check(err)
		where := pool.Slot{Area: "committed", Name: "group-0"}
		r.check(r.pool().PlantSlot(where, data))
		r.check(r.pool().PlantSubvolume(where, "old"))
		r.wants(r.stat(meta.Snapshot("group-0")), snapshot.ErrUnfinished, "group")
		_, err = r.e.Prepare(r.Context(), snapshot.Spec{Name: "copy"}, meta.Snapshot("group-0"))
		r.wants(err, snapshot.ErrUnfinished, "group")
		r.commitGroup("group", "a")
		snap, err := r.e.Stat(r.Context(), meta.Snapshot("group-0"))
		r.check(err)
		r.contains(snap, "a")
	}},
}

func (r *rig) commitGroup(name string, volumes ...string) []meta.Entry {
	r.Helper()
	return r.commitGroupAs(snapshot.Spec{Name: name}, volumes...)
}

// commitGroupAs asks again while the snapshots miss each other, as on a busy machine, or before Linux
// 6.6.
func (r *rig) commitGroupAs(spec snapshot.Spec, volumes ...string) []meta.Entry {
	r.Helper()
	entries, err := r.e.CommitGroup(r.Context(), spec, volumes)
	for i := 0; errors.Is(err, snapshot.ErrApart) && i < 100; i++ {
		entries, err = r.e.CommitGroup(r.Context(), spec, volumes)
	}
	r.check(err)
	return entries
}
