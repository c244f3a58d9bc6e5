package snapshot_test

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs"
	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
	"github.com/btrfs-csi/btrfs-csi/pkg/pool"
	"github.com/btrfs-csi/btrfs-csi/pkg/snapshot"
)

// These tests move subvolumes by hand.

// listed returns the subvolume ID that a listing has for a volume, 0 for none.
func listed(e *snapshot.Engine, volume string) (subvolume uint64) {
	_ = e.Walk(context.Background(), meta.Volumes, "", func(entry meta.Entry) bool {
		if entry.ID == volume {
			subvolume = entry.SubvolumeID
		}
		return true
	})
	return subvolume
}

// TestExchangedSubvolume: a subvolume that somebody puts into the slot of a volume is listed and
// gets the volume's limit, even if the index has never seen it.
func TestExchangedSubvolume(t *testing.T) {
	eachLimit(t, func(t *testing.T, mode btrfs.QuotaMode) {
		for how, see := range map[string]func(t *testing.T, e *snapshot.Engine){
			"swept": func(t *testing.T, e *snapshot.Engine) { go e.Run(t.Context()) },
			"mounted": func(t *testing.T, e *snapshot.Engine) {
				must(t, second(e.Mounts(t.Context(), "pvc")))
			},
		} {
			t.Run(how, func(t *testing.T) {
				t.Parallel()
				n := newNode(t, mode)
				e := n.start(t, often)
				ctx := t.Context()
				must(t, second(e.Prepare(ctx, sized("pvc", 16*mib), meta.Ref{})))
				must(t, second(e.Prepare(ctx, sized("other", 16*mib), meta.Ref{})))
				place := filepath.Join(n.path("default"), "active/pvc/fs")
				must(t, os.Rename(place, filepath.Join(n.state, "away")))
				must(t, btrfs.Create(place))
				info, err := btrfs.Info(place)
				must(t, err)
				see(t, e)
				eventually(t, func() bool {
					usage, err := e.Usage(ctx, meta.Volume("pvc"))
					return err == nil && usage.Limit == 16*mib && listed(e, "pvc") == info.ID
				})
				wants(t, n.fill("pvc", 32*mib), unix.EDQUOT)
				nothingIsWrong(t, e)
			})
		}
	})
}

// nothingIsWrong fails for a finding. Accounting that the sweep has not come to is none.
func nothingIsWrong(t *testing.T, e *snapshot.Engine) {
	t.Helper()
	findings, err := e.Plan(t.Context())
	if err != nil || len(findings) > 0 {
		t.Errorf("found %v, %v", findings, err)
	}
}

// TestPutBack: a volume whose subvolume was away at the start is listed and limited again after
// the subvolume was put back.
func TestPutBack(t *testing.T) {
	eachLimit(t, func(t *testing.T, mode btrfs.QuotaMode) {
		n := newNode(t, mode)
		e := n.start(t, often)
		ctx := t.Context()
		entry, err := e.Prepare(ctx, sized("pvc", 16*mib), meta.Ref{})
		must(t, err)
		snap, err := e.Commit(ctx, snapshot.Spec{Name: "snap"}, "pvc")
		must(t, err)
		away := filepath.Join(n.state, "away")
		places := []string{filepath.Join(n.path("default"), "active/pvc/fs"), filepath.Join(n.path("default"), "committed/snap/fs")}
		for i, place := range places {
			must(t, btrfs.SetReadOnly(place, false))
			must(t, os.Rename(place, away+string(rune('0'+i))))
		}
		must(t, e.Close())
		e = n.start(t, often)
		if listed(e, "pvc") != 0 {
			t.Fatal("what is lost is listed")
		}
		for i, place := range places {
			must(t, os.Rename(away+string(rune('0'+i)), place))
		}
		must(t, btrfs.SetReadOnly(places[1], true))
		group := btrfs.NewQgroupID(map[btrfs.QuotaMode]uint16{btrfs.QuotaSimple: 1}[mode], entry.SubvolumeID)
		must(t, btrfs.LimitQgroup(n.state, group, btrfs.NoLimit))
		go e.Run(ctx)
		eventually(t, func() bool {
			usage, err := e.Usage(ctx, meta.Volume("pvc"))
			return err == nil && usage.Limit == 16*mib && listed(e, "pvc") == entry.SubvolumeID
		})
		found := false
		must(t, e.WalkSnapshots(ctx, "pvc", "", func(s meta.Entry) bool {
			found = found || s.SubvolumeID == snap.SubvolumeID
			return true
		}))
		if !found {
			t.Error("the snapshot is not listed")
		}
		nothingIsWrong(t, e)
	})
}

// TestGroupOfAnAdministrator: a group that the driver did not make stays, whatever its number.
func TestGroupOfAnAdministrator(t *testing.T) {
	t.Parallel()
	n := newNode(t, btrfs.QuotaSimple)
	index := filepath.Join(t.TempDir(), "index.db")
	e := open(t, n.host, index, often)
	ctx := t.Context()
	gone, err := e.Prepare(ctx, sized("gone", mib), meta.Ref{})
	must(t, err)
	must(t, second(e.Prepare(ctx, sized("pvc", mib), meta.Ref{})))
	must(t, e.Remove(ctx, meta.Volume("gone")))
	foreign := filepath.Join(n.state, "foreign")
	must(t, btrfs.Create(foreign))
	info, err := btrfs.Info(foreign)
	must(t, err)
	groups := []btrfs.QgroupID{btrfs.NewQgroupID(1, gone.SubvolumeID), btrfs.NewQgroupID(1, info.ID)}
	planned := func(group btrfs.QgroupID) {
		must(t, btrfs.CreateQgroup(n.state, group))
		must(t, btrfs.LimitQgroup(n.state, group, 100*mib))
	}
	planned(groups[1])
	// While a snapshot contains data of the subvolume, the kernel keeps its group of level 0. The
	// driver removes the group afterwards.
	must(t, os.WriteFile(foreign+"/data", make([]byte, mib/4), 0o600))
	must(t, btrfs.Snapshot(foreign+"-snap", foreign, true))
	must(t, btrfs.Destroy(foreign))
	eventually(t, func() bool {
		n.settle(t)
		there, err := btrfs.TreeExists(n.state, info.ID)
		return err == nil && !there
	})
	must(t, btrfs.Destroy(foreign+"-snap"))
	left := func(id uint64) int {
		count := 0
		must(t, btrfs.WalkQgroups(n.state, func(q btrfs.Qgroup) error {
			if q.ID.Subvolume() == id {
				count++
			}
			return nil
		}))
		return count
	}
	running, stop := context.WithCancel(ctx)
	defer stop()
	go e.Run(running)
	eventually(t, func() bool { n.settle(t); return left(gone.SubvolumeID) == 0 && left(info.ID) == 1 })
	planned(groups[0])
	// Another volume of the driver's: when its qgroups are gone, a sweep has ended.
	vanished, err := e.Prepare(ctx, sized("vanished", mib), meta.Ref{})
	must(t, err)
	must(t, n.Pool("default").Vanish(active("vanished")))
	eventually(t, func() bool { n.settle(t); return left(vanished.SubvolumeID) == 0 })
	stop()
	must(t, e.Close())
	open(t, n.host, index, often)
	for _, group := range groups {
		if q, err := btrfs.QgroupOf(n.state, group); err != nil || q.MaxReferenced != 100*mib {
			t.Errorf("%s: %+v, %v", group, q, err)
		}
	}
}

// TestGroupOfAnAdministratorIsNotTaken: a volume is not made if the number of its subvolume is
// that of an administrator's group. The next attempt gets another number.
func TestGroupOfAnAdministratorIsNotTaken(t *testing.T) {
	t.Parallel()
	n := newNode(t, btrfs.QuotaSimple)
	e := n.start(t)
	ctx := t.Context()
	foreign := filepath.Join(n.state, "foreign")
	must(t, btrfs.Create(foreign))
	info, err := btrfs.Info(foreign)
	must(t, err)
	group := btrfs.NewQgroupID(1, info.ID+1)
	must(t, btrfs.CreateQgroup(n.state, group))
	must(t, second(btrfs.AssignQgroup(n.state, btrfs.NewQgroupID(0, info.ID), group)))
	wants(t, second(e.Prepare(ctx, sized("pvc", mib), meta.Ref{})), pool.ErrForeign)
	entry, err := e.Prepare(ctx, sized("pvc", mib), meta.Ref{})
	must(t, err)
	if entry.SubvolumeID <= info.ID+1 {
		t.Errorf("it is subvolume %d", entry.SubvolumeID)
	}
	must(t, e.Remove(ctx, meta.Volume("pvc")))
	if q, err := btrfs.QgroupOf(n.state, group); err != nil || q.MaxReferenced != btrfs.NoLimit || q.Mark != 0 {
		t.Errorf("%+v, %v", q, err)
	}
	must(t, os.WriteFile(filepath.Join(foreign, "data"), make([]byte, mib), 0o600))
}
