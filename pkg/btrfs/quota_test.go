package btrfs

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"testing"

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs/btrfstest"
	"golang.org/x/sys/unix"
)

func TestQgroupID(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		level uint16
		id    uint64
		want  string
	}{
		{0, 257, "0/257"},
		{1, 257, "1/257"},
		{65535, 1<<48 - 1, "65535/281474976710655"},
		{2, 0, "2/0"},
	} {
		id := NewQgroupID(test.level, test.id)
		if id.String() != test.want || id.Level() != test.level || id.Subvolume() != test.id {
			t.Errorf("got %s, %d, %d; wanted %s", id, id.Level(), id.Subvolume(), test.want)
		}
	}
}

// withQuota mounts a filesystem with quota on and no rescan running.
func withQuota(t testing.TB, mode QuotaMode, options ...btrfstest.Option) string {
	t.Helper()
	if mode == QuotaSimple {
		btrfstest.SimpleQuota.Need(t)
	}
	mnt := btrfstest.Mount(t, options...)
	must(t, EnableQuota(mnt, mode))
	must(t, WaitRescan(mnt))
	return mnt
}

// eachQuota runs a test in both modes.
func eachQuota(t *testing.T, test func(t *testing.T, mode QuotaMode)) {
	for _, mode := range []QuotaMode{QuotaFull, QuotaSimple} {
		t.Run(string(mode), func(t *testing.T) {
			t.Parallel()
			test(t, mode)
		})
	}
}

func TestQuotaModes(t *testing.T) {
	t.Parallel()
	eachQuota(t, func(t *testing.T, mode QuotaMode) {
		btrfstest.SimpleQuota.Need(t)
		other := map[QuotaMode]QuotaMode{QuotaFull: QuotaSimple, QuotaSimple: QuotaFull}[mode]
		mnt := btrfstest.Mount(t)
		volume, _ := create(t, mnt, "volume")
		off := QuotaStatus{Mode: QuotaNone}
		on := QuotaStatus{Mode: mode, Enabled: true}
		if got := value(Quota(mnt))(t); got != off {
			t.Errorf("before: %+v", got)
		}
		must(t, DisableQuota(mnt))
		for range 2 {
			must(t, EnableQuota(mnt, mode))
			must(t, WaitRescan(mnt))
			if got := value(Quota(volume))(t); got != on {
				t.Errorf("enabled: %+v", got)
			}
		}
		wantError(t, EnableQuota(mnt, other), ErrQuotaMode)
		wantError(t, EnableQuota(mnt, QuotaNone), ErrQuotaMode)
		for range 2 {
			must(t, DisableQuota(mnt))
			if got := value(Quota(mnt))(t); got != off {
				t.Errorf("disabled: %+v", got)
			}
		}
		wantError(t, EnableQuota(mnt, "fancy"), unix.EINVAL)
		must(t, EnableQuota(mnt, other))
	})
}

func TestQgroupsWithQuotaOff(t *testing.T) {
	t.Parallel()
	mnt := btrfstest.Mount(t)
	id := NewQgroupID(0, topLevelSubvol)
	_, err := QgroupOf(mnt, id)
	wantError(t, err, fs.ErrNotExist)
	wantError(t, LimitQgroup(mnt, id, 1<<20), unix.ENOTCONN)
	wantError(t, CreateQgroup(mnt, NewQgroupID(1, 1)), unix.ENOTCONN)
	must(t, RemoveQgroup(mnt, NewQgroupID(1, 1)))
	must(t, WalkQgroups(mnt, func(Qgroup) error { return errors.New("called") }))
	if value(QgroupMembers(mnt, NewQgroupID(1, 1)))(t) {
		t.Error("members without quota")
	}
	must(t, WaitRescan(mnt))
}

func TestRescan(t *testing.T) {
	t.Parallel()
	mnt := withQuota(t, QuotaFull)
	for range 3 { // the first rescan may still run at the second call
		must(t, RescanQuota(mnt))
	}
	must(t, WaitRescan(mnt))
	if got := value(Quota(mnt))(t); got.Rescanning || got.Inconsistent {
		t.Errorf("after the rescan: %+v", got)
	}
	t.Run("simple", func(t *testing.T) { wantError(t, RescanQuota(withQuota(t, QuotaSimple)), unix.EINVAL) })
}

func TestLimitQgroup(t *testing.T) {
	t.Parallel()
	eachQuota(t, func(t *testing.T, mode QuotaMode) {
		mnt := withQuota(t, mode)
		volume, subvol := create(t, mnt, "volume")
		id := NewQgroupID(0, subvol)
		for _, limit := range []uint64{NoLimit, 10 << 20, 5 << 20, NoLimit, 0, 20 << 20} {
			must(t, LimitQgroup(mnt, id, limit))
			if got := value(QgroupOf(mnt, id))(t); got.MaxReferenced != limit || got.ID != id {
				t.Errorf("limit %d: %+v", limit, got)
			}
		}
		must(t, writeFile(volume+"/fits", 8<<20))
		wantError(t, writeFile(volume+"/does not", 16<<20), unix.EDQUOT)
		must(t, LimitQgroup(mnt, id, 64<<20))
		must(t, writeFile(volume+"/fits now", 16<<20))
		must(t, syncFilesystem(mnt))
		if got := value(QgroupOf(mnt, id))(t); got.Referenced < 24<<20 || got.Referenced > 48<<20 || got.Exclusive != got.Referenced {
			t.Errorf("counted: %+v", got)
		}
		_, err := QgroupOf(mnt, id+1000)
		wantError(t, err, fs.ErrNotExist)
		wantError(t, LimitQgroup(mnt, id+1000, 1), fs.ErrNotExist)
	})
}

func TestQgroupGroups(t *testing.T) {
	t.Parallel()
	eachQuota(t, func(t *testing.T, mode QuotaMode) {
		mnt := withQuota(t, mode)
		_, subvol := create(t, mnt, "volume")
		member, group, upper := NewQgroupID(0, subvol), NewQgroupID(1, subvol), NewQgroupID(2, 7)
		for range 2 {
			must(t, CreateQgroup(mnt, group))
			must(t, CreateQgroup(mnt, upper))
		}
		members := func(id QgroupID, want bool) {
			t.Helper()
			if got := value(QgroupMembers(mnt, id))(t); got != want {
				t.Errorf("%s has members: %v", id, got)
			}
		}
		_, err := AssignQgroup(mnt, group, upper)
		must(t, err)
		members(group, false) // a parent is no member
		members(upper, true)
		for range 2 {
			if rescan := value(AssignQgroup(mnt, member, group))(t); rescan {
				t.Error("an empty volume wants a rescan")
			}
		}
		members(group, true)
		members(member, false)
		members(NewQgroupID(1, 99999), false)
		wantError(t, RemoveQgroup(mnt, group), unix.EBUSY)
		wantError(t, RemoveQgroup(mnt, member), unix.EBUSY)
		must(t, RemoveQgroup(mnt, NewQgroupID(1, 99999)))
		if _, err := AssignQgroup(mnt, member, NewQgroupID(1, 99999)); err == nil {
			t.Error("assigned to a qgroup that is not there")
		}
	})
}

// TestAssignReportsRescan adds a volume with shared data to a group. Full quota cannot know
// how much of the data is exclusive to the group.
func TestAssignReportsRescan(t *testing.T) {
	t.Parallel()
	mnt := withQuota(t, QuotaFull)
	volume, subvol := create(t, mnt, "volume")
	must(t, writeFile(volume+"/file", 1<<20))
	must(t, Snapshot(mnt+"/snapshot", volume, true))
	must(t, syncFilesystem(mnt))
	group := NewQgroupID(1, subvol)
	must(t, CreateQgroup(mnt, group))
	if !value(AssignQgroup(mnt, NewQgroupID(0, subvol), group))(t) {
		t.Error("no rescan wanted")
	}
	if !value(Quota(mnt))(t).Inconsistent {
		t.Error("consistent")
	}
	must(t, RescanQuota(mnt))
	must(t, WaitRescan(mnt))
	if value(Quota(mnt))(t).Inconsistent {
		t.Error("inconsistent after the rescan")
	}
}

func TestWalkQgroups(t *testing.T) {
	t.Parallel()
	eachQuota(t, func(t *testing.T, mode QuotaMode) {
		mnt := withQuota(t, mode)
		want := map[QgroupID]uint64{NewQgroupID(0, topLevelSubvol): NoLimit}
		for i := range 1500 { // more than one buffer
			id := NewQgroupID(1, uint64(i))
			must(t, CreateQgroup(mnt, id))
			want[id] = NoLimit
			if i%3 == 0 {
				want[id] = uint64(i+1) << 20
				must(t, LimitQgroup(mnt, id, want[id]))
			}
		}
		for i := range 20 {
			_, subvol := create(t, mnt, fmt.Sprint(i))
			want[NewQgroupID(0, subvol)] = NoLimit
		}
		var ids []QgroupID
		must(t, WalkQgroups(mnt, func(q Qgroup) error {
			ids = append(ids, q.ID)
			if limit, ok := want[q.ID]; !ok || limit != q.MaxReferenced {
				t.Errorf("%s: limit %d, wanted %d, %v", q.ID, q.MaxReferenced, limit, ok)
			}
			return nil
		}))
		if len(ids) != len(want) || !slices.IsSorted(ids) {
			t.Errorf("got %d, wanted %d, in order", len(ids), len(want))
		}
		stop := errors.New("stop")
		wantError(t, WalkQgroups(mnt, func(Qgroup) error { return stop }), stop)
	})
}

// TestMarkedQgroup: every change of the limit keeps the mark.
func TestMarkedQgroup(t *testing.T) {
	t.Parallel()
	mnt := withQuota(t, QuotaSimple)
	_, id := create(t, mnt, "volume")
	group := NewQgroupID(1, id)
	must(t, CreateQgroup(mnt, group))
	if got := value(QgroupOf(mnt, group))(t); got.Mark != 0 {
		t.Errorf("unmarked: %+v", got)
	}
	must(t, LimitOwnQgroup(mnt, group, 8<<20, 77))
	for _, limit := range []uint64{4 << 20, NoLimit} {
		must(t, LimitQgroup(mnt, group, limit))
		if got := value(QgroupOf(mnt, group))(t); got.Mark != 77 || got.MaxReferenced != limit {
			t.Errorf("limit %d: %+v", limit, got)
		}
	}
	must(t, LimitQgroup(mnt, group, 4<<20))
	btrfstest.Remount(t, mnt)
	marks := map[QgroupID]uint64{}
	must(t, WalkQgroups(mnt, func(q Qgroup) error { marks[q.ID] = q.Mark; return nil }))
	if marks[group] != 77 || marks[NewQgroupID(0, id)] != 0 {
		t.Errorf("got %v", marks)
	}
}

// TestQgroupParents checks the parents, and that usage moves with a member from one to
// another.
func TestQgroupParents(t *testing.T) {
	t.Parallel()
	mnt := withQuota(t, QuotaSimple)
	volume, id := create(t, mnt, "volume")
	_, other := create(t, mnt, "other")
	member, one, two := NewQgroupID(0, id), NewQgroupID(1, id), NewQgroupID(1, other)
	must(t, CreateQgroup(mnt, one))
	must(t, CreateQgroup(mnt, two))
	value(AssignQgroup(mnt, member, one))(t)
	must(t, writeFile(volume+"/file", 1<<20))
	must(t, syncFilesystem(mnt))
	value(AssignQgroup(mnt, member, two))(t)
	parents := value(QgroupParents(mnt, []QgroupID{member, NewQgroupID(0, other)}))(t)
	if len(parents) != 1 || !slices.Equal(parents[member], []QgroupID{one, two}) {
		t.Errorf("got %v", parents)
	}
	for range 2 { // the second call changes nothing
		value(UnassignQgroup(mnt, member, one))(t)
	}
	few := []QgroupID{one, two, NewQgroupID(1, 9999)}
	many := few
	for id := range uint64(2 * fewQgroups) {
		many = append(many, NewQgroupID(2, id))
	}
	for _, ids := range [][]QgroupID{few, many} {
		groups := value(QgroupsOf(mnt, ids))(t)
		if len(groups) != 2 || groups[one].Referenced != 0 || groups[two].Referenced < 1<<20 {
			t.Errorf("got %v", groups)
		}
	}
}

// TestReserved: data that is only in memory counts as reserved.
func TestReserved(t *testing.T) {
	t.Parallel()
	mnt := withQuota(t, QuotaFull)
	volume, id := create(t, mnt, "volume")
	must(t, syncFilesystem(mnt))
	must(t, os.WriteFile(volume+"/file", make([]byte, 4<<20), 0o600))
	group := NewQgroupID(0, id)
	reserved := value(ReservedOf(mnt, []QgroupID{group, NewQgroupID(0, 9999)}))(t)
	if counted := value(QgroupOf(mnt, group))(t).Referenced; reserved[group]+counted < 4<<20 || len(reserved) != 1 {
		t.Errorf("reserved %v, counted %d", reserved, counted)
	}
}
