package snapshot_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs"
	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs/btrfstest"
	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
	"github.com/btrfs-csi/btrfs-csi/pkg/pool"
	"github.com/btrfs-csi/btrfs-csi/pkg/slot"
	"github.com/btrfs-csi/btrfs-csi/pkg/snapshot"
)

// rootFilesystem is a btrfs whose subvolume @ contains a state directory, like a node whose root
// filesystem is btrfs.
type rootFilesystem struct {
	*testing.T
	top   string // where the filesystem is mounted
	state string // the state directory, below @
	mode  btrfs.QuotaMode
	e     *snapshot.Engine
}

// newRootFilesystem returns a rootFilesystem with an empty pools directory.
func newRootFilesystem(t *testing.T, mode btrfs.QuotaMode, state string) *rootFilesystem {
	r := &rootFilesystem{T: t, top: btrfstest.Mount(t), mode: mode, state: state}
	must(t, btrfs.Create(r.path("@")))
	must(t, os.MkdirAll(filepath.Join(r.path("@"), state, "pools"), 0o700))
	return r
}

// in returns the path of a file in the state directory below the subvolume root.
func (r *rootFilesystem) in(root, name string) string {
	return filepath.Join(r.top, root, r.state, name)
}

func (r *rootFilesystem) path(name string) string { return filepath.Join(r.top, name) }

func (r *rootFilesystem) start() {
	r.Helper()
	host, err := pool.NewHost(r.in("@", ""), r.mode)
	must(r, err)
	r.e = open(r, host, r.in("@", "index.db"))
}

// rollBack does what snapper and similar tools do while no driver runs: it moves @ aside, and
// puts a snapshot in its place.
func (r *rootFilesystem) rollBack(to string) {
	r.Helper()
	must(r, os.Rename(r.path("@"), r.path("@broken")))
	must(r, btrfs.Snapshot(r.path("@"), r.path(to), false))
}

// moveBack moves a pool or subvolume from below @broken to the place of its stub below @.
func (r *rootFilesystem) moveBack(name string) {
	r.Helper()
	if out, err := exec.Command("mv", "-T", r.in("@broken", name), r.in("@", name)).CombinedOutput(); err != nil {
		r.Fatalf("%v: %s", err, out)
	}
}

func (r *rootFilesystem) write(area, id, data string) {
	r.Helper()
	must(r, os.WriteFile(filepath.Join(r.in("@", "pools/default"), area, id, "fs/data"), []byte(data), 0o600))
}

func (r *rootFilesystem) contains(area, id, want string) {
	r.Helper()
	data, err := os.ReadFile(filepath.Join(r.in("@", "pools/default"), area, id, "fs/data"))
	if err != nil || string(data) != want {
		r.Errorf("%s %s contains %q, %v; wanted %q", area, id, data, err, want)
	}
}

// findings returns the details of the findings of check, by path and problem.
func (r *rootFilesystem) findings() map[string]string {
	r.Helper()
	found, err := r.e.Plan(r.Context())
	must(r, err)
	all := map[string]string{}
	for _, f := range found {
		if f.Problem != slot.StaleQuota && f.Problem != pool.QuotaInconsistent {
			all[fmt.Sprintf("%s: %s", f.Path, f.Problem)] = f.Detail
		}
	}
	return all
}

func (r *rootFilesystem) finds(want ...string) {
	r.Helper()
	var got []string
	for what := range r.findings() {
		got = append(got, what)
	}
	slices.Sort(got)
	if !slices.Equal(got, want) {
		r.Errorf("found %q, wanted %q", got, want)
	}
}

// run runs the command that an error or a finding recommends.
func (r *rootFilesystem) run(text string) {
	r.Helper()
	_, command, ok := strings.Cut(text, "run there: ")
	if !ok {
		r.Fatalf("no command in %q", text)
	}
	sh := exec.Command("sh", "-ec", command)
	sh.Dir = r.top
	if out, err := sh.CombinedOutput(); err != nil {
		r.Fatalf("%s: %v: %s", command, err, out)
	}
}

// TestRollBack: the root filesystem is rolled back, and the records with it. The data is whole,
// and the errors say where. Deleting and creating anew work.
func TestRollBack(t *testing.T) {
	t.Parallel()
	for _, mode := range []btrfs.QuotaMode{btrfs.QuotaNone, btrfs.QuotaFull, btrfs.QuotaSimple} {
		t.Run(string(mode), func(t *testing.T) {
			t.Parallel()
			r := newRootFilesystem(t, mode, "var lib")
			must(t, os.Mkdir(r.in("@", "pools/default"), 0o700)) // not made as today's driver does
			r.start()
			ctx := t.Context()
			for _, name := range []string{"db", "old", "removed"} {
				must(t, second(r.e.Prepare(ctx, sized(name, 5*mib), meta.Ref{})))
				r.write("active", name, "data of "+name)
			}
			must(t, second(r.e.Commit(ctx, snapshot.Spec{Name: "snap"}, "db")))
			must(t, second(r.e.View(ctx, snapshot.Spec{Name: "view"}, meta.Snapshot("snap"))))
			must(t, btrfs.Snapshot(r.path("before"), r.path("@"), true))
			must(t, second(r.e.Prepare(ctx, sized("late", 5*mib), meta.Ref{})))
			must(t, second(r.e.Resize(ctx, "db", snapshot.Range{Required: 7 * mib})))
			must(t, r.e.Close())
			r.rollBack("before")
			r.start()

			lost := []string{"active/db: Lost", "active/late: OutsidePool", "active/old: Lost", "active/removed: Lost", "committed/snap: Lost", "view/view: Lost"}
			r.finds(lost...)
			must(t, second(r.e.Reconcile(ctx)))
			r.finds(lost...)
			_, err := r.e.Stat(ctx, meta.Volume("db"))
			wants(t, err, snapshot.ErrOutside)
			wants(t, err, snapshot.ErrLost)
			wants(t, second(r.e.Prepare(ctx, sized("db", 5*mib), meta.Ref{})), snapshot.ErrOutside)
			wants(t, second(r.e.Prepare(ctx, snapshot.Spec{Name: "clone"}, meta.Volume("db"))), snapshot.ErrOutside)
			wants(t, second(r.e.Prepare(ctx, snapshot.Spec{Name: "clone"}, meta.Snapshot("snap"))), snapshot.ErrOutside)
			wants(t, second(r.e.Commit(ctx, snapshot.Spec{Name: "snap2"}, "db")), snapshot.ErrOutside)
			wants(t, second(r.e.Mounts(ctx, "view")), snapshot.ErrOutside)

			r.run(err.Error())
			for _, path := range []string{"committed/snap", "view/view"} {
				r.run(r.findings()[path+": Lost"])
			}
			for _, ref := range []meta.Ref{meta.Volume("db"), meta.Volume("view"), meta.Snapshot("snap")} {
				must(t, second(r.e.Stat(ctx, ref)))
			}
			r.contains("active", "db", "data of db")
			r.contains("committed", "snap", "data of db")
			must(t, second(r.e.Reconcile(ctx)))
			r.finds("active/late: OutsidePool", "active/old: Lost", "active/removed: Lost")
			must(t, r.e.Remove(ctx, meta.Volume("view"))) // the original of the copy stays
			r.finds("active/late: OutsidePool", "active/old: Lost", "active/removed: Lost", "view/view: OutsidePool")

			must(t, r.e.Remove(ctx, meta.Volume("old")))
			wants(t, second(r.e.Stat(ctx, meta.Volume("old"))), snapshot.ErrNotFound)
			kept, err := os.ReadFile(r.in("@broken", "pools/default/active/old/fs/data"))
			if err != nil || string(kept) != "data of old" {
				t.Errorf("a delete of what was lost has touched the data: %q, %v", kept, err)
			}
			must(t, second(r.e.Prepare(ctx, sized("old", mib), meta.Ref{})))
			must(t, r.e.Remove(ctx, meta.Volume("old")))
			must(t, second(r.e.Prepare(ctx, sized("late", mib), meta.Ref{})))
			must(t, r.e.Remove(ctx, meta.Volume("late")))

			// An earlier driver could not end this removal.
			pool := r.in("@", "pools/default")
			must(t, os.Rename(filepath.Join(pool, "active/removed"), filepath.Join(pool, "removing/active-removed")))
			must(t, second(r.e.Prepare(ctx, sized("removed", mib), meta.Ref{})))
			must(t, r.e.Remove(ctx, meta.Volume("removed")))
			if left, err := os.ReadDir(filepath.Join(pool, "removing")); err != nil || len(left) > 0 {
				t.Errorf("removing contains %v, %v", left, err)
			}
			must(t, r.e.Remove(ctx, meta.Volume("db")))
		})
	}
}

// TestRollBackOfASubvolume: the pool that the driver makes is a subvolume. The snapshot does not
// contain it. It is moved back with all its content.
func TestRollBackOfASubvolume(t *testing.T) {
	t.Parallel()
	r := newRootFilesystem(t, btrfs.QuotaFull, "var/lib")
	ctx := t.Context()
	r.start()
	must(t, btrfs.Snapshot(r.path("before"), r.path("@"), true))
	entry, err := r.e.Prepare(ctx, sized("db", 5*mib), meta.Ref{})
	must(t, err)
	r.write("active", "db", "data")
	must(t, r.e.Close())
	r.rollBack("before")
	r.start()
	_, err = r.e.Prepare(ctx, sized("new", mib), meta.Ref{})
	wants(t, err, snapshot.ErrNoPool)
	if !strings.Contains(fmt.Sprint(err), "mv -T") {
		t.Errorf("not said what to do: %v", err)
	}
	wants(t, r.e.Remove(ctx, meta.Volume("db")), pool.ErrAway)
	must(t, r.e.Close())
	r.moveBack("pools/default")
	r.start()
	if again, err := r.e.Stat(ctx, meta.Volume("db")); err != nil || again.UUID != entry.UUID {
		t.Errorf("got %+v, %v", again, err)
	}
	r.contains("active", "db", "data")
	r.finds()
}

// TestRollBackOfTheIndex: a rolled-back index that was closed in order does not know volumes made
// after the snapshot. While their pool is away, none of them is reported as gone.
func TestRollBackOfTheIndex(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	disk := btrfstest.Mount(t)
	r := newRootFilesystem(t, btrfs.QuotaNone, "var/lib")
	must(t, os.Mkdir(r.in("@", "pools/fast"), 0o700))
	must(t, unix.Mount(disk, r.in("@", "pools/fast"), "", unix.MS_BIND, ""))
	t.Cleanup(func() {
		_ = unix.Unmount(r.in("@", "pools/fast"), unix.MNT_DETACH)
		_ = unix.Unmount(r.in("@broken", "pools/fast"), unix.MNT_DETACH)
	})
	r.start()
	must(t, r.e.Close())
	must(t, btrfs.Snapshot(r.path("before"), r.path("@"), true))
	r.start()
	late := snapshot.Spec{Name: "late", Pool: "fast", Size: snapshot.Range{Required: mib}}
	must(t, second(r.e.Prepare(ctx, late, meta.Ref{})))
	must(t, r.e.Close())
	must(t, btrfstest.Unmount(r.in("@", "pools/fast"))) // a mount point cannot be renamed
	r.rollBack("before")
	r.moveBack("pools/default")
	for range 2 {
		r.start()
		wants(t, r.e.Remove(ctx, meta.Volume("late")), pool.ErrAway)
		must(t, r.e.Close())
	}
}

// TestRollBackToBeforeThePool: the state directory does not know the rolled-back pool. A volume
// that may be in it is not reported as gone.
func TestRollBackToBeforeThePool(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	r := newRootFilesystem(t, btrfs.QuotaNone, "var/lib")
	r.start()
	must(t, second(r.e.Prepare(ctx, sized("late", mib), meta.Ref{})))
	must(t, r.e.Close())
	must(t, os.Remove(filepath.Join(r.in("@", "known"), r.e.PoolIDs()[pool.Default])))
	must(t, os.Remove(r.in("@", "index.db")))
	must(t, btrfs.Snapshot(r.path("before"), r.path("@"), true))
	r.rollBack("before")
	disk := btrfstest.Mount(t)
	must(t, os.Mkdir(r.in("@", "pools/fast"), 0o700))
	must(t, unix.Mount(disk, r.in("@", "pools/fast"), "", unix.MS_BIND, ""))
	t.Cleanup(func() { _ = unix.Unmount(r.in("@", "pools/fast"), unix.MNT_DETACH) })
	r.start()
	notGone(t, r.e, "late")
	must(t, second(r.e.Prepare(ctx, snapshot.Spec{Name: "new", Pool: "fast", Size: snapshot.Range{Required: mib}}, meta.Ref{})))
}

// TestOutsideUnread: if the subvolumes outside of the pool cannot be read, no volume is reported
// as lost, and the pool is served.
func TestOutsideUnread(t *testing.T) {
	t.Parallel()
	w := newWorld(t, btrfs.QuotaFull)
	ctx := t.Context()
	w.fs.Fail("Outside", unix.EIO)
	w.close()
	w.open()
	must(t, second(w.e.Prepare(ctx, sized("new", mib), meta.Ref{})))
	must(t, second(w.e.Stat(ctx, meta.Volume("base"))))
	for _, id := range []string{"lost", "outside"} {
		err := second(w.e.Stat(ctx, meta.Volume(id)))
		if wants(t, err, pool.ErrAway); errors.Is(err, snapshot.ErrLost) {
			t.Errorf("%s: %v", id, err)
		}
	}
	findings, err := w.e.Plan(ctx)
	must(t, err)
	if !slices.ContainsFunc(findings, func(f snapshot.Finding) bool { return f.Path == "" && f.Problem == slot.Damaged }) {
		t.Errorf("found %v", findings)
	}
	w.fs.Fail("Outside", nil)
	wants(t, second(w.e.Stat(ctx, meta.Volume("lost"))), snapshot.ErrLost)
	wants(t, second(w.e.Stat(ctx, meta.Volume("outside"))), snapshot.ErrOutside)
}
