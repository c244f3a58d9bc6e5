package snapshot_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs"
	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
	"github.com/btrfs-csi/btrfs-csi/pkg/pool"
	"github.com/btrfs-csi/btrfs-csi/pkg/pool/pooltest"
	"github.com/btrfs-csi/btrfs-csi/pkg/slot"
	"github.com/btrfs-csi/btrfs-csi/pkg/snapshot"
)

func wants(t testing.TB, err, target error) {
	t.Helper()
	if !errors.Is(err, target) {
		t.Errorf("got error %v, wanted %v", err, target)
	}
}

func sized(name string, bytes int64) snapshot.Spec {
	return snapshot.Spec{Name: name, Size: snapshot.Range{Required: bytes}}
}

// TestQuotaFailureFailsTheVolume: a volume whose limit cannot be set is not made.
func TestQuotaFailureFailsTheVolume(t *testing.T) {
	t.Parallel()
	w := newWorld(t, btrfs.QuotaFull)
	defer w.close()
	before := w.fs.Dump()
	w.fs.Fail("SetLimit", unix.ENOTCONN)
	wants(t, second(w.e.Prepare(t.Context(), sized("new", mib), meta.Ref{})), unix.ENOTCONN)
	wants(t, second(w.e.Prepare(t.Context(), snapshot.Spec{Name: "new"}, meta.Snapshot("snap"))), unix.ENOTCONN)
	if got := w.fs.Dump(); got != before {
		t.Errorf("left behind:\n%s", got)
	}
}

// TestUndoCutShort interrupts the undo of a volume after its limit was lifted.
func TestUndoCutShort(t *testing.T) {
	t.Parallel()
	w := newWorld(t, btrfs.QuotaFull)
	defer w.close()
	w.fs.Fail("Sync", unix.EIO)
	w.fs.Fail("Destroy", unix.EBUSY)
	wants(t, second(w.e.Prepare(t.Context(), sized("new", mib), meta.Ref{})), snapshot.ErrUnfinished)
	w.fs.Fail("Sync", nil)
	w.fs.Fail("Destroy", nil)
	must(t, second(w.e.Prepare(t.Context(), sized("new", mib), meta.Ref{})))
	usage, err := w.e.Usage(t.Context(), meta.Volume("new"))
	must(t, err)
	if usage.Limit != mib {
		t.Errorf("answered with the qgroup limit %d", usage.Limit)
	}
}

// TestSickPool: a disk that cannot be read affects only requests for what may be on it.
func TestSickPool(t *testing.T) {
	t.Parallel()
	w := newWorld(t, btrfs.QuotaFull)
	sick := pooltest.NewFilesystem(btrfs.QuotaFull)
	w.host.Add("a-sick", sick)
	w.close()
	w.open()
	defer w.close()
	ctx := t.Context()
	there := snapshot.Spec{Name: "there", Pool: "a-sick", Size: snapshot.Range{Required: mib}}
	must(t, second(w.e.Prepare(ctx, there, meta.Ref{})))
	sick.Fail("Find", unix.EIO)
	must(t, second(w.e.Stat(ctx, meta.Volume("base"))))
	must(t, second(w.e.Commit(ctx, snapshot.Spec{Name: "snap"}, "base"))) // again
	must(t, second(w.e.Resize(ctx, "base", snapshot.Range{Required: 9 * mib})))
	wants(t, second(w.e.Stat(ctx, meta.Volume("missing"))), pool.ErrAway)
	wants(t, w.e.Remove(ctx, meta.Volume("missing")), pool.ErrAway)
	must(t, w.e.Remove(ctx, meta.Volume("base")))

	must(t, second(w.e.Prepare(ctx, sized("new", mib), meta.Ref{})))
	must(t, second(w.e.Prepare(ctx, snapshot.Spec{Name: "restored"}, meta.Snapshot("snap"))))
	for _, name := range []string{"", "a-sick"} { // "": the index has it in a-sick; a-sick: it may be there
		spec := there
		spec.Pool = name
		wants(t, second(w.e.Prepare(ctx, spec, meta.Ref{})), pool.ErrAway)
		spec.Name, spec.Pool = "elsewhere", "a-sick"
		wants(t, second(w.e.Prepare(ctx, spec, meta.Ref{})), pool.ErrAway)
	}
	wants(t, second(w.e.Prepare(ctx, sized("copy", mib), meta.Volume("missing"))), pool.ErrAway)
	w.reportsWhatItCan("a-sick")

	sick.Fail("Find", nil)
	w.verify()
	wants(t, second(w.e.Stat(ctx, meta.Volume("base"))), snapshot.ErrNotFound)
}

// reportsWhatItCan checks that requests for all pools return the pools that can be read, and the
// error of the sick one.
func (w *world) reportsWhatItCan(sick string) {
	w.t.Helper()
	ctx := w.t.Context()
	items, err := w.e.Inventory(ctx)
	must(w.t, err)
	reported := map[string]string{}
	for _, item := range items {
		reported[item.Pool+"/"+item.ID] = item.Status
	}
	if reported[sick+"/"] != "Unreadable" || reported["default/other"] != "Ready" {
		w.t.Errorf("inventory: %v", reported)
	}
	findings, err := w.e.Plan(ctx)
	must(w.t, err)
	repaired, err := w.e.Reconcile(ctx)
	must(w.t, err)
	for _, findings := range [][]snapshot.Finding{findings, repaired} {
		problems := map[string]int{}
		for _, f := range findings {
			problems[f.Pool+" "+string(f.Problem)]++
		}
		if problems[sick+" Unusable"] != 1 || problems["default Lost"] != 2 {
			w.t.Errorf("found %v", findings)
		}
	}
	listed := map[string]bool{}
	must(w.t, w.e.Walk(ctx, meta.Volumes, "", func(e meta.Entry) bool { listed[e.ID] = true; return true }))
	if !listed["other"] || !listed["there"] {
		w.t.Errorf("listed %v", listed)
	}
}

// TestIndexThatCannotBeWritten: if the index cannot be written, no request fails and listings are
// right.
func TestIndexThatCannotBeWritten(t *testing.T) {
	t.Parallel()
	w := newWorld(t, btrfs.QuotaFull)
	ctx := t.Context()
	must(t, w.e.Close()) // every access fails from now on
	w.fs.PeriodicCommit()
	list := func() (ids []string) {
		must(t, w.e.Walk(ctx, meta.Volumes, "", func(e meta.Entry) bool { ids = append(ids, e.ID); return true }))
		return ids
	}
	must(t, second(w.e.Resize(ctx, "base", snapshot.Range{Required: 8 * mib})))
	must(t, w.e.Remove(ctx, meta.Volume("other")))
	if got := list(); !slices.Equal(got, []string{"base", "disk", "view"}) {
		t.Errorf("got %q", got)
	}
	w.open()
	defer w.close()
	w.verify()
}

// TestSameDiskTwice: a disk and its copy contain the same volumes, and nobody knows which are
// meant.
func TestSameDiskTwice(t *testing.T) {
	t.Parallel()
	w := newWorld(t, btrfs.QuotaFull)
	w.host.Add("fast", w.fs)
	w.host.Refuse("plain", errors.New("nothing is mounted there"))
	w.close()
	w.open()
	defer w.close()
	if ids := w.e.PoolIDs(); len(ids) != 1 {
		t.Errorf("in use: %v", ids)
	}
	findings, err := w.e.Plan(t.Context())
	must(t, err)
	unusable := 0
	for _, f := range findings {
		if f.Problem == pool.Unusable {
			unusable++
		}
	}
	if unusable != 2 {
		t.Errorf("got %v", findings)
	}
	must(t, second(w.e.Prepare(t.Context(), sized("new", mib), meta.Ref{})))
}

// TestSameDiskTwiceAtStart: the pool with its last known name is used, whatever the order of the
// names. If no name is known, neither is used.
func TestSameDiskTwiceAtStart(t *testing.T) {
	t.Parallel()
	for _, copied := range []string{"a-copy", "z-copy"} {
		w := newWorld(t, btrfs.QuotaFull)
		w.host.Add(copied, w.fs)
		for range 2 {
			w.close()
			w.open()
			if ids := w.e.PoolIDs(); len(ids) != 1 || ids[pool.Default] == "" {
				t.Errorf("beside %s: in use: %v", copied, ids)
			}
		}
		w.host.Forget(w.fs.ID)
		w.close()
		w.open()
		if all := w.e.Pools(t.Context()); len(w.e.PoolIDs()) > 0 || len(all) != 2 || all[0].Error == "" || all[1].Error == "" {
			t.Errorf("beside %s, unknown: %+v", copied, all)
		}
		w.close()
	}
}

// TestStaleQgroups: qgroups of destroyed subvolumes are no finding while the kernel needs them or
// the engine remembers them.
func TestStaleQgroups(t *testing.T) {
	t.Parallel()
	w := newWorld(t, btrfs.QuotaFull)
	stale := func() (found bool) {
		findings, err := w.e.Plan(t.Context())
		must(t, err)
		for _, f := range findings {
			found = found || f.Problem == slot.StaleQuota
		}
		return found
	}
	must(t, w.e.Remove(t.Context(), meta.Volume("base")))
	if stale() {
		t.Error("reported while the kernel drops the tree")
	}
	w.fs.Clean()
	if stale() {
		t.Error("reported although the engine remembers it")
	}
	w.close()
	w.open() // reconciles
	defer w.close()
	if left, err := w.fs.Groups(); err != nil || len(left.Stale) > 0 || stale() {
		t.Errorf("left after a start: %v, %v", left.Stale, err)
	}
}

// TestStaleQuotaIsRoutine: stale qgroups are no finding of a running engine, whose sweep removes
// them. An engine of Inspect reports them as routine.
func TestStaleQuotaIsRoutine(t *testing.T) {
	t.Parallel()
	w := newWorld(t, btrfs.QuotaFull)
	defer w.close()
	w.fs.PlantGroup(4711)
	stale := func(e *snapshot.Engine) (found []snapshot.Finding) {
		findings, err := e.Plan(t.Context())
		must(t, err)
		return slices.DeleteFunc(findings, func(f snapshot.Finding) bool { return f.Problem != slot.StaleQuota })
	}
	if found := stale(w.e); len(found) > 0 {
		t.Errorf("found %v", found)
	}
	looking, err := snapshot.Open(t.Context(), w.host, nil)
	must(t, err)
	if found := stale(looking); len(found) != 1 || !found[0].Routine {
		t.Errorf("found %+v", found)
	}
}

// TestInconsistentQuota: an inconsistent quota is rescanned.
func TestInconsistentQuota(t *testing.T) {
	t.Parallel()
	w := newWorld(t, btrfs.QuotaFull)
	w.fs.SetInconsistent()
	w.verify()
	w.close()
	status, err := w.fs.QuotaStatus()
	if err != nil || status.Inconsistent {
		t.Errorf("got %+v, %v", status, err)
	}
}

// TestPoolStatus: Pools returns pools in use and pools that cannot be used.
func TestPoolStatus(t *testing.T) {
	t.Parallel()
	w := newWorld(t, btrfs.QuotaSimple)
	w.host.Refuse("plain", errors.New("nothing is mounted there"))
	w.close()
	w.open()
	defer w.close()
	w.fs.Fail("Devices", unix.EIO)
	all := w.e.Pools(t.Context())
	if len(all) != 2 || all[0].ID != w.fs.ID || all[0].Quota.Mode != btrfs.QuotaSimple || all[0].Error == "" ||
		all[1].Name != "plain" || all[1].ID != "" || all[1].Error == "" {
		t.Errorf("got %+v", all)
	}
}

// TestDamagedIndex: the engine replaces an index that is damaged when it is opened.
func TestDamagedIndex(t *testing.T) {
	t.Parallel()
	w := newWorld(t, btrfs.QuotaFull)
	w.close()
	data, err := os.ReadFile(w.index)
	must(t, err)
	for _, damage := range [][]byte{data[:len(data)/2], make([]byte, len(data)), append(make([]byte, 8192), data[8192:]...)} {
		must(t, os.WriteFile(w.index, damage, 0o600))
		w.open()
		w.compareIndex()
		w.close()
	}
}

// TestIndexDamagedInUse: a listing that meets the damage is right all the same, and so is the
// next.
func TestIndexDamagedInUse(t *testing.T) {
	t.Parallel()
	w := newWorld(t, btrfs.QuotaFull)
	ctx := t.Context()
	for i := range 200 { // more than one page
		must(t, second(w.e.Prepare(ctx, snapshot.Spec{Name: fmt.Sprintf("pvc-%d", i), Labels: map[string]string{"label": strings.Repeat("x", 200)}}, meta.Ref{})))
	}
	list := func() (n int) {
		must(t, w.e.Walk(ctx, meta.Volumes, "", func(meta.Entry) bool { n++; return true }))
		return n
	}
	w.close()
	w.open()
	defer w.close()
	want := list()
	f, err := os.OpenFile(w.index, os.O_WRONLY, 0)
	must(t, err)
	info, err := f.Stat()
	must(t, err)
	_, err = f.WriteAt(make([]byte, info.Size()-8192), 8192)
	must(t, errors.Join(err, f.Close()))
	for range 2 {
		if got := list(); got != want {
			t.Errorf("%d are listed of %d", got, want)
		}
	}
}

// nesting returns a host on which a pod nests a subvolume just before each snapshot.
func nesting(host *pooltest.Host) pool.Host {
	return pooltest.Around(host, func(s pooltest.Step, do func() error) error {
		if s.Method == "Snapshot" {
			if err := host.Pool(s.Pool).Nest(active("pvc"), "late"); err != nil {
				return err
			}
		}
		return do()
	})
}

// TestNestedMeanwhile: a snapshot fails if a subvolume was nested after the first check. The
// snapshot would lack it silently.
func TestNestedMeanwhile(t *testing.T) {
	t.Parallel()
	host := pooltest.NewHost(btrfs.QuotaNone)
	e := open(t, nesting(host), filepath.Join(t.TempDir(), "index.db"))
	must(t, second(e.Prepare(t.Context(), sized("pvc", mib), meta.Ref{})))
	wants(t, second(e.Commit(t.Context(), snapshot.Spec{Name: "snap"}, "pvc")), snapshot.ErrNested)
	wants(t, second(e.Stat(t.Context(), meta.Snapshot("snap"))), snapshot.ErrNotFound)
}

// TestNestedMeanwhileCutShort makes the undo of such a snapshot fail. Neither a retry nor a start
// completes the snapshot.
func TestNestedMeanwhileCutShort(t *testing.T) {
	t.Parallel()
	for name, again := range map[string]func(t *testing.T, e *snapshot.Engine){
		"retry": func(t *testing.T, e *snapshot.Engine) {
			wants(t, second(e.Commit(t.Context(), snapshot.Spec{Name: "snap"}, "pvc")), snapshot.ErrNested)
		},
		"reconcile": func(t *testing.T, e *snapshot.Engine) {
			findings, err := e.Reconcile(t.Context())
			if must(t, err); len(findings) != 1 || !findings[0].Repaired {
				t.Errorf("found %v", findings)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			host := pooltest.NewHost(btrfs.QuotaNone)
			pool := host.Pool(pool.Default)
			e := open(t, nesting(host), filepath.Join(t.TempDir(), "index.db"))
			must(t, second(e.Prepare(t.Context(), sized("pvc", mib), meta.Ref{})))
			pool.Fail("Destroy", unix.EBUSY)
			wants(t, second(e.Commit(t.Context(), snapshot.Spec{Name: "snap"}, "pvc")), snapshot.ErrUnfinished)
			pool.Fail("Destroy", nil)
			again(t, e)
			wants(t, second(e.Stat(t.Context(), meta.Snapshot("snap"))), snapshot.ErrNotFound)
		})
	}
}

// TestNestedLater: a power cut takes the state ready of an acknowledged snapshot. A subvolume
// that a pod nests after it does not make it incomplete.
func TestNestedLater(t *testing.T) {
	t.Parallel()
	w := newWorld(t, btrfs.QuotaFull)
	ctx := t.Context()
	must(t, second(w.e.Commit(ctx, snapshot.Spec{Name: "new"}, "base")))
	w.close()
	w.fs.PowerCut()
	must(t, w.fs.Nest(active("base"), "later"))
	w.open()
	defer w.close()
	must(t, second(w.e.Commit(ctx, snapshot.Spec{Name: "new"}, "base")))
	w.verify()
}

// TestCutShortWithoutSource: without its source, nobody knows whether an interrupted copy is
// complete. The copy is neither acknowledged nor lost, and can be removed.
func TestCutShortWithoutSource(t *testing.T) {
	t.Parallel()
	w := newWorld(t, btrfs.QuotaFull)
	defer w.close()
	ctx := t.Context()
	slot := pool.Slot{Area: "committed", Name: "new"}
	record, err := meta.Record{ID: "new", Name: "new", Kind: meta.Committed, State: meta.Creating, Size: 5 * mib, Source: meta.Volume("base")}.Encode()
	must(t, err)
	must(t, w.fs.PlantSlot(slot, record))
	must(t, second(w.fs.Snapshot(active("base"), slot, true)))
	must(t, w.e.Remove(ctx, meta.Volume("base")))
	must(t, second(w.e.Prepare(ctx, sized("base", 5*mib), meta.Ref{}))) // another volume with the name
	for range 2 {
		wants(t, second(w.e.Commit(ctx, snapshot.Spec{Name: "new"}, "base")), snapshot.ErrUnfinished)
		if data, err := w.fs.Read(slot); err != nil || data != "newer data of base" {
			t.Errorf("contains %q, %v", data, err)
		}
		must(t, second(w.e.Reconcile(ctx)))
	}
	must(t, w.e.Remove(ctx, meta.Snapshot("new")))
	wants(t, second(w.e.Stat(ctx, meta.Snapshot("new"))), snapshot.ErrNotFound)
}

// TestUnreadableIsRemembered: an unreadable volume is not reported as gone while its pool is
// away.
func TestUnreadableIsRemembered(t *testing.T) {
	t.Parallel()
	w := newWorld(t, btrfs.QuotaFull)
	fast := pooltest.NewFilesystem(btrfs.QuotaFull)
	w.host.Add("fast", fast)
	w.close()
	w.open()
	ctx := t.Context()
	must(t, second(w.e.Prepare(ctx, snapshot.Spec{Name: "pvc", Pool: "fast", Size: snapshot.Range{Required: mib}}, meta.Ref{})))
	slot := pool.Slot{Area: pool.Area(meta.Active), Name: "pvc"}
	found, err := fast.Find(slot)
	must(t, err)
	must(t, fast.SetRecord(slot, []byte("noise")))
	w.close()
	w.open()
	wants(t, w.e.Remove(ctx, meta.Volume("pvc")), snapshot.ErrUnreadable)
	w.host.Detach("fast")
	w.close()
	w.open()
	wants(t, w.e.Remove(ctx, meta.Volume("pvc")), pool.ErrAway)
	wants(t, second(w.e.Stat(ctx, meta.Volume("pvc"))), pool.ErrAway)
	must(t, w.e.Remove(ctx, meta.Snapshot("pvc"))) // it was not there
	w.host.Attach("fast")
	must(t, fast.SetRecord(slot, found[0].Record))
	w.close()
	w.open()
	defer w.close()
	must(t, w.e.Remove(ctx, meta.Volume("pvc")))
}

// notGone checks that no request for id returns "not found", because id may be in a pool that is
// away.
func notGone(t *testing.T, e *snapshot.Engine, id string) {
	t.Helper()
	ctx := t.Context()
	for what, err := range map[string]error{
		"stat":             second(e.Stat(ctx, meta.Volume(id))),
		"stat of snapshot": second(e.Stat(ctx, meta.Snapshot(id))),
		"mounts":           second(e.Mounts(ctx, id)),
		"usage":            second(e.Usage(ctx, meta.Volume(id))),
		"room":             second(e.Room(ctx, meta.Volume(id))),
		"nested":           second(e.Nested(ctx, id)),
		"conditions":       second(e.VolumeConditions(ctx, id)),
		"expand":           second(e.Resize(ctx, id, snapshot.Range{Required: 9 * mib})),
		"snapshot":         second(e.Commit(ctx, snapshot.Spec{Name: "snap-of-" + id}, id)),
		"clone":            second(e.Prepare(ctx, sized("clone-of-"+id, mib), meta.Volume(id))),
		"restore":          second(e.Prepare(ctx, sized("clone-of-"+id, mib), meta.Snapshot(id))),
		"view":             second(e.View(ctx, snapshot.Spec{Name: "view-of-" + id}, meta.Snapshot(id))),
		"delete":           e.Remove(ctx, meta.Volume(id)),
	} {
		if !errors.Is(err, snapshot.ErrForgotten) || errors.Is(err, snapshot.ErrNotFound) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// TestForgottenPool: while a pool is away and the index is lost, no volume is reported as gone,
// until somebody forgets the pool.
func TestForgottenPool(t *testing.T) {
	t.Parallel()
	w := newWorld(t, btrfs.QuotaFull)
	fast := pooltest.NewFilesystem(btrfs.QuotaFull)
	w.host.Add("fast", fast)
	w.close()
	w.open()
	ctx := t.Context()
	pvc := snapshot.Spec{Name: "pvc", Pool: "fast", Size: snapshot.Range{Required: mib}}
	must(t, second(w.e.Prepare(ctx, pvc, meta.Ref{})))
	w.host.Detach("fast")
	w.close()
	w.open()
	wants(t, w.e.Remove(ctx, meta.Volume("pvc")), pool.ErrAway)
	must(t, w.e.Remove(ctx, meta.Volume("missing"))) // the index knows that it was not there
	must(t, w.e.Close())
	wants(t, w.e.Remove(ctx, meta.Volume("missing")), pool.ErrAway) // the index cannot be read

	must(t, os.Remove(w.index))
	w.open()
	for _, name := range []string{"pvc", "missing"} {
		notGone(t, w.e, name)
	}
	wants(t, w.e.Remove(ctx, meta.Snapshot("missing")), pool.ErrAway)
	record, err := meta.Record{ID: "cut-short", Name: "cut-short", Kind: meta.Active, State: meta.Creating, Size: mib}.Encode()
	must(t, err)
	must(t, w.fs.PlantSlot(active("cut-short"), record)) // may have been requested before the pool went away
	wants(t, second(w.e.Stat(ctx, meta.Volume("cut-short"))), snapshot.ErrForgotten)
	wants(t, second(w.e.Resize(ctx, "cut-short", snapshot.Range{Required: 9 * mib})), snapshot.ErrForgotten)
	must(t, w.e.Remove(ctx, meta.Volume("base")))
	must(t, second(w.e.Prepare(ctx, sized("new", mib), meta.Ref{})))
	if away, err := w.e.Away(); err != nil || !maps.Equal(away, map[string]string{fast.ID: "fast"}) {
		t.Errorf("away are %v, %v", away, err)
	}
	must(t, w.e.Forget(fast.ID))
	must(t, w.e.Remove(ctx, meta.Volume("missing")))
	wants(t, second(w.e.Stat(ctx, meta.Volume("missing"))), snapshot.ErrNotFound)

	w.host.Attach("fast")
	w.close()
	w.open()
	defer w.close()
	must(t, w.e.Remove(ctx, meta.Volume("pvc")))
	must(t, w.e.Remove(ctx, meta.Volume("pvc"))) // again
}

// TestQueriesOfASickDisk: whichever call fails with EIO, and whatever the query, the error says
// that the pool is away.
func TestQueriesOfASickDisk(t *testing.T) {
	t.Parallel()
	w := newWorld(t, btrfs.QuotaFull)
	defer w.close()
	base := meta.Volume("base")
	queries := map[string]func(context.Context) error{
		"Stat":             func(ctx context.Context) error { return second(w.e.Stat(ctx, base)) },
		"Mounts":           func(ctx context.Context) error { return second(w.e.Mounts(ctx, "base")) },
		"Usage":            func(ctx context.Context) error { return second(w.e.Usage(ctx, base)) },
		"Room":             func(ctx context.Context) error { return second(w.e.Room(ctx, base)) },
		"Nested":           func(ctx context.Context) error { return second(w.e.Nested(ctx, "base")) },
		"VolumeConditions": func(ctx context.Context) error { return second(w.e.VolumeConditions(ctx, "base")) },
		"Capacity":         func(ctx context.Context) error { return second(w.e.Capacity(ctx, "")) },
	}
	failed := map[string]bool{}
	for _, method := range []string{"Open", "Find", "Info", "Usage", "Room", "Nested", "SwapFiles"} {
		for _, errno := range []error{unix.EIO, unix.ESTALE} {
			w.fs.Fail(method, errno)
			for name, query := range queries {
				err := query(t.Context())
				if err != nil && !errors.Is(err, pool.ErrAway) {
					t.Errorf("%s, when %s answers %v: %v", name, method, errno, err)
				}
				failed[name] = failed[name] || err != nil
			}
			w.fs.Fail(method, nil)
		}
	}
	for name := range queries {
		if !failed[name] {
			t.Errorf("%s never failed", name)
		}
	}
}

// TestAllowedPools: a volume is made in an allowed pool or nowhere. If it may be in a pool that
// does not answer, no other node may make it. What the index has forgotten does not prevent its
// creation.
func TestAllowedPools(t *testing.T) {
	t.Parallel()
	w := newWorld(t, btrfs.QuotaFull)
	fast, gone := pooltest.NewFilesystem(btrfs.QuotaFull), pooltest.NewFilesystem(btrfs.QuotaFull)
	w.host.Add("fast", fast)
	w.host.Add("gone", gone)
	w.close()
	w.open()
	w.host.Detach("gone")
	w.close()
	must(t, os.Remove(w.index))
	w.open()
	defer w.close()
	prepare := func(name, pool string, source meta.Ref, allowed ...string) error {
		spec := snapshot.Spec{Name: name, Pool: pool, Allowed: append([]string{}, allowed...), Size: snapshot.Range{Required: 9 * mib}}
		return second(w.e.Prepare(t.Context(), spec, source))
	}
	must(t, prepare("default", "", meta.Ref{}, "another", w.fs.ID))
	must(t, prepare("default", "", meta.Ref{}, w.fs.ID)) // again
	must(t, prepare("fast", "fast", meta.Ref{}, fast.ID))
	must(t, prepare("copy", "", meta.Snapshot("snap"), w.fs.ID))
	wants(t, prepare("default", "", meta.Ref{}, fast.ID), snapshot.ErrExists)
	wants(t, prepare("new", "", meta.Ref{}), snapshot.ErrNotAllowed)
	wants(t, prepare("new", "", meta.Ref{}, fast.ID), snapshot.ErrNotAllowed)
	wants(t, prepare("new", "", meta.Snapshot("snap"), fast.ID), snapshot.ErrNotAllowed)
	fast.Fail("Find", unix.EIO)
	wants(t, prepare("new", "", meta.Ref{}, "another"), pool.ErrAway)
	must(t, prepare("new", "", meta.Ref{}, w.fs.ID))
	fast.Fail("Find", nil)
	wants(t, second(w.e.Stat(t.Context(), meta.Volume("missing"))), snapshot.ErrForgotten)
}

// reads counts how often each slot is read, and how often the pool is opened for an operation.
type reads struct {
	slots map[pool.Slot]int
	opens int
}

type readsPool struct {
	pool.Directory
	*reads
}

func (p readsPool) Find(slots ...pool.Slot) ([]pool.Contents, error) {
	for _, s := range slots {
		p.slots[s]++
	}
	return p.Directory.Find(slots...)
}

// TestStartReadsOnce: a start reads each slot once if nothing is wrong. It opens the pool to see
// whether it is frozen, and once more for all else.
func TestStartReadsOnce(t *testing.T) {
	t.Parallel()
	r := &reads{slots: map[pool.Slot]int{}}
	h := pooltest.Wrap(pooltest.NewHost(btrfs.QuotaFull), func(_ string, d pool.Directory) pool.Directory {
		r.opens++
		return readsPool{d, r}
	})
	path := filepath.Join(t.TempDir(), "index.db")
	e := open(t, h, path)
	for _, name := range []string{"a", "b", "c"} {
		must(t, second(e.Prepare(t.Context(), sized(name, mib), meta.Ref{})))
	}
	must(t, e.Close())
	clear(r.slots)
	r.opens = 0
	open(t, h, path)
	if want := map[pool.Slot]int{active("a"): 1, active("b"): 1, active("c"): 1}; !maps.Equal(r.slots, want) || r.opens != 2 {
		t.Errorf("opened %d times, read %v", r.opens, r.slots)
	}
}
