package snapshot_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs"
	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs/btrfstest"
	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
	"github.com/btrfs-csi/btrfs-csi/pkg/pool"
	"github.com/btrfs-csi/btrfs-csi/pkg/pool/pooltest"
	"github.com/btrfs-csi/btrfs-csi/pkg/slot"
	"github.com/btrfs-csi/btrfs-csi/pkg/snapshot"
)

// hang is the timeout of a test that waits.
const hang = time.Minute

// impatient is the limit for calls that are to be given up. No other call is limited by it.
const impatient = time.Second

// duo is a node with a pool that answers and a pool whose disk will be silent.
type duo struct {
	*world
	slow    *pooltest.Filesystem
	unwatch func()
}

func newDuo(t *testing.T, options ...snapshot.Option) *duo {
	t.Helper()
	d := &duo{world: newWorld(t, btrfs.QuotaFull), slow: pooltest.NewFilesystem(btrfs.QuotaFull)}
	d.host.Add("slow", d.slow)
	d.close()
	d.open(options...)
	ctx := t.Context()
	comes(t, "what there is to begin with", func() bool {
		return errors.Join(
			second(d.e.Prepare(ctx, inSlow("there"), meta.Ref{})),
			second(d.e.Commit(ctx, snapshot.Spec{Name: "kept"}, "there")),
			second(d.e.Prepare(ctx, inSlow("copy"), meta.Snapshot("kept"))),
			second(d.e.Prepare(ctx, inSlow("removed"), meta.Ref{})),
			second(d.e.Prepare(ctx, inSlow("grouped"), meta.Ref{})),
			second(d.e.Prepare(ctx, inSlow("gone"), meta.Ref{})),
			second(d.e.Prepare(ctx, diskInSlow("slow-disk"), meta.Ref{})),
			second(d.e.Prepare(ctx, diskInSlow("source-disk"), meta.Ref{})),
			second(d.e.Prepare(ctx, inSlow("vanished"), meta.Ref{})),
		) == nil
	})
	must(t, d.slow.Vanish(active("vanished")))
	comes(t, "one that is gone", func() bool { return d.e.Remove(ctx, meta.Volume("gone")) == nil })
	d.slow.Clean()
	d.watch(t)
	return d
}

// watch makes the engine lose its patience with a pool when calls wait in it and no more come,
// and regain it when none waits any more. The time that this takes does not matter.
func (d *duo) watch(t *testing.T) {
	e, stop := d.e, make(chan struct{})
	var watching sync.WaitGroup
	for name, fs := range map[string]*pooltest.Filesystem{"slow": d.slow, pool.Default: d.fs} {
		watching.Go(func() {
			last, regain := 0, func() {}
			defer func() { regain() }()
			for still := 0; ; still++ {
				select {
				case <-stop:
					return
				case <-time.After(time.Millisecond):
				}
				waiting := fs.Waiting(pooltest.AllMethods) - fs.Waiting("Thawed") // a frozen filesystem is not silent
				if waiting != last {
					last, still = waiting, 0
				}
				if waiting == 0 {
					regain()
					regain = func() {}
				} else if still == 50 {
					regain()
					regain = e.LosePatience(name)
				}
			}
		})
	}
	d.unwatch = sync.OnceFunc(func() { close(stop); watching.Wait() })
	t.Cleanup(d.unwatch)
}

func inSlow(name string) snapshot.Spec {
	return snapshot.Spec{Name: name, Pool: "slow", Size: snapshot.Range{Required: mib}, Parameters: meta.Parameters{Compression: "zstd"}}
}

func diskInSlow(name string) snapshot.Spec {
	return snapshot.Spec{Name: name, Pool: "slow", Size: snapshot.Range{Required: 16 * mib}, Content: meta.Ext4}
}

func comes(t *testing.T, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(hang); !is(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
	}
}

// methods returns the methods of a pool that access the disk.
func methods() (names []string) {
	for _, all := range []reflect.Type{reflect.TypeFor[pool.Filesystem](), reflect.TypeFor[pool.Directory]()} {
		for i := range all.NumMethod() {
			if name := all.Method(i).Name; !slices.Contains([]string{"PoolID", "SlotPath", "MountOptions", "QuotaMode", "Close", "Named"}, name) {
				names = append(names, name)
			}
		}
	}
	return names
}

// serves makes every request in the pool that answers, and every request to all pools. It repeats
// each until it is served, because a stall of the machine may make that pool silent for a moment.
func (d *duo) serves(t *testing.T, round string) {
	t.Helper()
	ctx, e := t.Context(), d.e
	name := func(kind string) string { return kind + "-" + round }
	for what, do := range map[string]func() error{
		"stat":     func() error { return second(e.Stat(ctx, meta.Volume("base"))) },
		"mounts":   func() error { return second(e.Mounts(ctx, "base")) },
		"usage":    func() error { return second(e.Usage(ctx, meta.Volume("base"))) },
		"room":     func() error { return second(e.Room(ctx, meta.Volume("base"))) },
		"nested":   func() error { return second(e.Nested(ctx, "base")) },
		"capacity": func() error { return second(e.Capacity(ctx, "")) },
		"expand":   func() error { return second(e.Resize(ctx, "other", snapshot.Range{Required: 6 * mib})) },
		"create":   func() error { return second(e.Prepare(ctx, sized(name("new"), mib), meta.Ref{})) },
		"restore": func() error {
			return second(e.Prepare(ctx, snapshot.Spec{Name: name("restored")}, meta.Snapshot("snap")))
		},
		"snapshot":  func() error { return second(e.Commit(ctx, snapshot.Spec{Name: name("taken")}, "base")) },
		"list":      func() error { return e.Walk(ctx, meta.Volumes, "", func(meta.Entry) bool { return true }) },
		"inventory": func() error { return second(e.Inventory(ctx)) },
		"check":     func() error { return second(e.Plan(ctx)) },
		"refresh":   func() error { return e.Refresh(ctx) },
		"pools": func() error {
			if all := e.Pools(ctx); len(all) != 2 || all[0].Error != "" {
				return fmt.Errorf("got %+v", all)
			}
			return nil
		},
	} {
		served(t, what, do)
	}
	served(t, "delete", func() error {
		return errors.Join(e.Remove(ctx, meta.Volume(name("new"))), e.Remove(ctx, meta.Snapshot(name("taken"))), e.Remove(ctx, meta.Volume(name("restored"))))
	})
}

// served fails the test if do hangs or never succeeds.
func served(t *testing.T, what string, do func() error) {
	t.Helper()
	var err error
	btrfstest.Returns(t, what, func() {
		for end := time.Now().Add(hang / 2); ; time.Sleep(10 * time.Millisecond) {
			if err = do(); err == nil || time.Now().After(end) {
				return
			}
		}
	})
	if err != nil {
		t.Errorf("%s: %v", what, err)
	}
}

// disturb makes every request in the silent pool. Each ends with the silence.
func (d *duo) disturb(ctx context.Context) (ended *sync.WaitGroup) {
	ended = &sync.WaitGroup{}
	for _, do := range []func(){
		func() { _, _ = d.e.Prepare(ctx, inSlow("new"), meta.Ref{}) },
		func() { _, _ = d.e.Prepare(ctx, inSlow("restored"), meta.Snapshot("kept")) },
		func() { _, _ = d.e.Prepare(ctx, diskInSlow("new-disk"), meta.Ref{}) },
		func() { _, _ = d.e.Prepare(ctx, diskInSlow("slow-disk"), meta.Ref{}) },
		func() { _, _ = d.e.Commit(ctx, snapshot.Spec{Name: "taken-disk"}, "source-disk") },
		func() { _, _ = d.e.Commit(ctx, snapshot.Spec{Name: "taken"}, "there") },
		func() { _, _ = d.e.CommitGroup(ctx, snapshot.Spec{Name: "group"}, []string{"grouped"}) },
		func() { _, _ = d.e.Resize(ctx, "there", snapshot.Range{Required: 3 * mib}) },
		func() { _ = d.e.Remove(ctx, meta.Volume("removed")) },
		func() { _, _ = d.e.Usage(ctx, meta.Volume("there")) },
		func() { _, _ = d.e.Nested(ctx, "there") },
		func() { _, _ = d.e.VolumeConditions(ctx, "there") },
		func() { _, _ = d.e.Prepare(ctx, inSlow("copy"), meta.Snapshot("kept")) },
		func() { d.e.Pools(ctx) },
		func() { _ = d.e.Refresh(ctx) },
		func() { d.e.Maintain(ctx) },
		func() { _, _ = d.e.Reconcile(ctx) },
	} {
		ended.Go(do)
	}
	return ended
}

// unasked are the methods that no request calls, only a start or a look for lost or nested
// subvolumes.
var unasked = []string{"Prepare", "Outside", "NestedSince", "Bound"}

// TestSilentPool: a silent disk stops only requests for its own pool, whichever call does not
// return.
func TestSilentPool(t *testing.T) {
	t.Parallel()
	for _, method := range append(methods(), pooltest.AllMethods) {
		t.Run(method, func(t *testing.T) {
			t.Parallel()
			d := newDuo(t)
			defer d.slow.Answer()
			d.slow.SetInconsistent()
			before := len(d.e.PoolIDs())
			d.slow.Silence(method)
			ended := d.disturb(t.Context())
			if !slices.Contains(unasked, method) {
				comes(t, "a call of "+method+" waits", func() bool { return d.slow.Waiting(method) > 0 })
			}
			for _, round := range []string{"first", "second"} {
				d.serves(t, round)
			}
			d.slow.Answer()
			btrfstest.Returns(t, "what waited", ended.Wait)
			comes(t, "the pool answers", func() bool { return d.e.Pools(t.Context())[1].Error == "" })
			if len(d.e.PoolIDs()) != before {
				t.Errorf("in use: %v", d.e.PoolIDs())
			}
			d.complete(t)
		})
	}
}

// complete checks the pool after the silence: nothing is half done, every request can be
// repeated, and its volumes are there.
func (d *duo) complete(t *testing.T) {
	t.Helper()
	ctx := t.Context()
	comes(t, "all that was asked for is done", func() bool {
		return errors.Join(
			second(d.e.Prepare(ctx, inSlow("new"), meta.Ref{})),
			second(d.e.Prepare(ctx, inSlow("restored"), meta.Snapshot("kept"))),
			second(d.e.Prepare(ctx, diskInSlow("new-disk"), meta.Ref{})),
			second(d.e.Commit(ctx, snapshot.Spec{Name: "taken"}, "there")),
			second(d.e.Resize(ctx, "there", snapshot.Range{Required: 3 * mib})),
			d.e.Remove(ctx, meta.Volume("removed")),
		) == nil
	})
	comes(t, "nothing is wrong in the pool", func() bool {
		findings, err := d.e.Plan(ctx)
		return err == nil && !slices.ContainsFunc(findings, func(f snapshot.Finding) bool {
			return f.Pool == "slow" && f.Path != "active/vanished" && f.Problem != slot.StaleQuota && f.Problem != pool.QuotaInconsistent
		})
	})
}

// TestSilentIsReported: a request for something that may be in the silent pool gets its error at
// once.
func TestSilentIsReported(t *testing.T) {
	t.Parallel()
	d := newDuo(t)
	defer d.slow.Answer()
	ctx := t.Context()
	d.slow.Silence(pooltest.AllMethods)
	wants(t, second(d.e.Stat(ctx, meta.Volume("there"))), pool.ErrSilent)
	waiting := d.slow.Waiting(pooltest.AllMethods)
	for what, err := range map[string]error{
		"stat":           second(d.e.Stat(ctx, meta.Volume("there"))),
		"stat, missing":  second(d.e.Stat(ctx, meta.Volume("missing"))),
		"create in it":   second(d.e.Prepare(ctx, inSlow("new"), meta.Ref{})),
		"create known":   second(d.e.Prepare(ctx, sized("there", mib), meta.Ref{})),
		"restore":        second(d.e.Prepare(ctx, snapshot.Spec{Name: "restored"}, meta.Snapshot("kept"))),
		"snapshot":       second(d.e.Commit(ctx, snapshot.Spec{Name: "taken"}, "there")),
		"expand":         second(d.e.Resize(ctx, "there", snapshot.Range{Required: 3 * mib})),
		"delete":         d.e.Remove(ctx, meta.Volume("there")),
		"delete missing": d.e.Remove(ctx, meta.Volume("missing")),
		"capacity":       second(d.e.Capacity(ctx, "slow")),
	} {
		if !errors.Is(err, pool.ErrAway) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if now := d.slow.Waiting(pooltest.AllMethods); now > waiting {
		t.Errorf("%d calls wait, %d did before they were refused", now, waiting)
	}
	all := d.e.Pools(ctx)
	if all[0].Silent || !all[1].Silent || all[1].Error == "" || all[1].ID != d.slow.ID {
		t.Errorf("reported: %+v", all)
	}
	if again := d.e.Pools(ctx); again[1].Error != all[1].Error {
		t.Errorf("the text changes: %q, %q", all[1].Error, again[1].Error)
	}
	findings, err := d.e.Plan(ctx)
	must(t, err)
	if !slices.ContainsFunc(findings, func(f snapshot.Finding) bool { return f.Pool == "slow" && f.Problem == pool.Silent }) {
		t.Errorf("found %v", findings)
	}
	must(t, d.e.Answering()) // the other pool answers
	d.fs.Silence(pooltest.AllMethods)
	defer d.fs.Answer()
	wants(t, second(d.e.Stat(ctx, meta.Volume("base"))), pool.ErrSilent)
	wants(t, d.e.Answering(), pool.ErrSilent)
}

// TestSilentAtStart: a start serves the other pools, and the silent one when it answers.
func TestSilentAtStart(t *testing.T) {
	t.Parallel()
	for _, method := range append(methods(), pooltest.AllMethods) {
		t.Run(method, func(t *testing.T) {
			t.Parallel()
			d := newDuo(t)
			defer d.slow.Answer()
			d.slow.SetInconsistent()
			d.slow.PlantGroup(4711)
			must(t, d.slow.PlantSlot(active("half"), nil))
			must(t, d.slow.Vanish(active("removed")))
			d.unwatch()
			d.close()
			d.slow.Silence(method)
			btrfstest.Returns(t, "the start", func() { d.open(snapshot.Impatience(impatient)) })
			served(t, "the pool that answers", func() error {
				return errors.Join(d.e.Refresh(t.Context()), second(d.e.Stat(t.Context(), meta.Volume("base"))))
			})
			d.serves(t, "start")
			ctx, cancel := context.WithCancel(t.Context())
			var run sync.WaitGroup
			run.Go(func() { d.e.Run(ctx) })
			d.slow.Answer()
			comes(t, "both pools are in use, and answer", func() bool {
				return len(d.e.PoolIDs()) == 2 && second(d.e.Stat(t.Context(), meta.Volume("there"))) == nil
			})
			d.slow.Silence(method)
			cancel()
			btrfstest.Returns(t, "the end", func() { run.Wait(); d.close() })
		})
	}
}

// TestSlowCommit: a running operation is not given up, whatever it waits for, and its ID stays
// locked.
func TestSlowCommit(t *testing.T) {
	t.Parallel()
	for _, method := range []string{"Mkdir", "SetRecord", "Create", "Apply", "SetLimit", "Sync"} {
		t.Run(method, func(t *testing.T) {
			t.Parallel()
			d := newDuo(t)
			defer d.slow.Answer()
			ctx := t.Context()
			d.slow.Silence(method)
			made := make(chan error, 1)
			go func() { made <- second(d.e.Prepare(ctx, inSlow("new"), meta.Ref{})) }()
			comes(t, "the operation waits", func() bool { return d.slow.Waiting(method) > 0 })
			comes(t, "the pool is silent", func() bool { return d.e.Pools(ctx)[1].Silent })
			gone, leave := context.WithCancel(ctx) // of a caller that does not wait
			leave()
			wants(t, second(d.e.Prepare(gone, inSlow("new"), meta.Ref{})), snapshot.ErrBusy)
			wants(t, second(d.e.Prepare(ctx, inSlow("other-one"), meta.Ref{})), pool.ErrAway)
			d.slow.Answer()
			btrfstest.Returns(t, "the operation", func() { must(t, <-made) })
			comes(t, "what was made is served", func() bool { return second(d.e.Stat(ctx, meta.Volume("new"))) == nil })
		})
	}
}

// TestHalfDoneAfterSilence: when a pool answers again, unfinished operations are completed
// without a start.
func TestHalfDoneAfterSilence(t *testing.T) {
	t.Parallel()
	d := newDuo(t)
	defer d.slow.Answer()
	ctx := t.Context()
	d.slow.Silence("Find")
	wants(t, second(d.e.Stat(ctx, meta.Volume("there"))), pool.ErrSilent)
	must(t, d.slow.PlantSlot(active("half"), nil))
	d.slow.Answer()
	comes(t, "nothing is half done", func() bool {
		slots, err := d.slow.List()
		return err == nil && !slices.Contains(slots, active("half"))
	})
}

// latePool is a pool in which a reader of the ledger waits in the middle.
type latePool struct {
	pool.Directory
	*late
}

type late struct {
	reading, goOn chan struct{}
	lists         atomic.Int32
}

// List waits in its first call, by the repair. The index is made from the same look.
func (p latePool) List() ([]pool.Slot, error) {
	if p.lists.Add(1) == 1 {
		close(p.reading)
		<-p.goOn
	}
	return p.Directory.List()
}

// TestLateLedger: a pool whose ledger takes long to read delays no request in another pool.
func TestLateLedger(t *testing.T) {
	t.Parallel()
	memory, l := pooltest.NewHost(btrfs.QuotaFull), &late{reading: make(chan struct{}), goOn: make(chan struct{})}
	host := pooltest.Wrap(memory, func(name string, d pool.Directory) pool.Directory {
		if name != "late" {
			return d
		}
		return latePool{d, l}
	})
	e := open(t, host, filepath.Join(t.TempDir(), "index.db"), snapshot.Impatience(2*hang))
	memory.Add("late", pooltest.NewFilesystem(btrfs.QuotaFull))
	var all sync.WaitGroup
	all.Go(func() { _ = e.Refresh(t.Context()) })
	goOn := sync.OnceFunc(func() { close(l.goOn) })
	defer goOn()
	btrfstest.Returns(t, "the pool is read", func() { <-l.reading })
	btrfstest.Returns(t, "a volume of another pool", func() { must(t, second(e.Prepare(t.Context(), sized("pvc", mib), meta.Ref{}))) })
	goOn()
	btrfstest.Returns(t, "the start", all.Wait)
	if len(e.PoolIDs()) != 2 {
		t.Errorf("in use: %v", e.PoolIDs())
	}
}

// TestOpenedTooLate: a pool that is open only after that was given up is closed at once. Otherwise
// nobody could unmount it.
func TestOpenedTooLate(t *testing.T) {
	t.Parallel()
	d := newDuo(t)
	defer d.slow.Answer()
	ctx := t.Context()
	d.slow.Silence("Open")
	wants(t, second(d.e.Stat(ctx, meta.Volume("there"))), pool.ErrSilent)
	must(t, second(d.e.Stat(ctx, meta.Volume("base"))))
	d.slow.Answer()
	comes(t, "the pool answers", func() bool { return second(d.e.Stat(ctx, meta.Volume("there"))) == nil })
	comes(t, "nothing waits for the disk", func() bool { return d.slow.Opened() == 0 })
}

// TestFrozen: in a frozen filesystem no operation begins that would wait for the thaw. The thaw
// may wait for that very operation.
func TestFrozen(t *testing.T) {
	t.Parallel()
	d := newDuo(t, snapshot.ThawsWithin(impatient))
	defer d.slow.Answer()
	ctx := t.Context()
	must(t, d.slow.PlantSlot(active("half"), nil))
	d.slow.Silence("Thawed")
	before := d.slow.Dump()
	for what, do := range map[string]func() error{
		"create":   func() error { return second(d.e.Prepare(ctx, inSlow("new"), meta.Ref{})) },
		"again":    func() error { return second(d.e.Prepare(ctx, inSlow("there"), meta.Ref{})) },
		"restore":  func() error { return second(d.e.Prepare(ctx, inSlow("restored"), meta.Snapshot("kept"))) },
		"snapshot": func() error { return second(d.e.Commit(ctx, snapshot.Spec{Name: "taken"}, "there")) },
		"expand":   func() error { return second(d.e.Resize(ctx, "there", snapshot.Range{Required: 3 * mib})) },
		"delete":   func() error { return d.e.Remove(ctx, meta.Volume("there")) },
	} {
		btrfstest.Returns(t, what, func() {
			// Only a volume that exists already has unfinished work.
			if err := do(); !errors.Is(err, pool.ErrFrozen) || errors.Is(err, snapshot.ErrUnfinished) != (what == "again") {
				t.Errorf("%s: %v", what, err)
			}
		})
	}
	must(t, second(d.e.Stat(ctx, meta.Volume("there"))))
	d.serves(t, "frozen")
	btrfstest.Returns(t, "a repair", func() {
		findings, err := d.e.Reconcile(ctx)
		must(t, err)
		if !slices.ContainsFunc(findings, func(f snapshot.Finding) bool { return f.Pool == "slow" && f.Problem == pool.Unusable }) {
			t.Errorf("found %v", findings)
		}
	})
	if after := d.slow.Dump(); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
	if n := d.slow.Waiting("Thawed"); n != 1 {
		t.Errorf("%d calls wait, wanted one", n)
	}
	d.slow.Answer()
	comes(t, "it is served when it is thawed", func() bool {
		return second(d.e.Commit(ctx, snapshot.Spec{Name: "taken"}, "there")) == nil
	})
}

// TestOnChangeMeanwhile: pools may come, go and fall silent while OnChange is called. The race
// detector fails this test.
func TestOnChangeMeanwhile(t *testing.T) {
	t.Parallel()
	host := pooltest.NewHost(btrfs.QuotaFull)
	e := open(t, host, filepath.Join(t.TempDir(), "index.db"))
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for range 10 {
			host.Detach(pool.Default)
			_ = e.Refresh(t.Context())
			host.Attach(pool.Default)
			_ = e.Refresh(t.Context())
		}
	}()
	for {
		e.OnChange(func(meta.Ref) {})
		select {
		case <-ended:
			return
		default:
		}
	}
}

// TestErrorIsReportedOnce: OnChange reports a lasting error of a pool once.
func TestErrorIsReportedOnce(t *testing.T) {
	t.Parallel()
	host := pooltest.NewHost(btrfs.QuotaFull)
	host.Pool(pool.Default).Fail("Alive", unix.EIO)
	e := open(t, host, filepath.Join(t.TempDir(), "index.db"))
	changes := 0
	e.OnChange(func(meta.Ref) { changes++ })
	for range 5 {
		must(t, e.Refresh(t.Context()))
	}
	if changes != 0 {
		t.Errorf("reported %d times", changes)
	}
	host.Pool(pool.Default).Fail("Alive", unix.ESTALE)
	for range 5 {
		must(t, e.Refresh(t.Context()))
	}
	if changes != 1 {
		t.Errorf("reported %d times, wanted once", changes)
	}
}

// TestFrozenDisk is TestFrozen on a real filesystem, where the kernel has no flag for frozen.
func TestFrozenDisk(t *testing.T) {
	t.Parallel()
	n := newNode(t, btrfs.QuotaFull)
	index := filepath.Join(t.TempDir(), "index.db")
	e := open(t, n.host, index, snapshot.ThawsWithin(impatient))
	ctx := t.Context()
	comes(t, "a volume", func() bool { return second(e.Prepare(ctx, sized("pvc", mib), meta.Ref{})) == nil })
	mounts, err := e.Mounts(ctx, "pvc")
	must(t, err)
	volume, err := os.Open(mounts.Source)
	must(t, err)
	defer volume.Close()
	const fifreeze, fithaw = 0xc0045877, 0xc0045878
	control := func(request uint) { must(t, unix.IoctlSetInt(int(volume.Fd()), request, 0)) }
	thaw := sync.OnceFunc(func() { control(fithaw) })
	defer thaw()
	control(fifreeze)
	for range 3 {
		btrfstest.Returns(t, "a snapshot", func() { wants(t, second(e.Commit(ctx, snapshot.Spec{Name: "snap"}, "pvc")), pool.ErrFrozen) })
	}
	btrfstest.Returns(t, "a deletion", func() { wants(t, e.Remove(ctx, meta.Volume("pvc")), pool.ErrFrozen) })
	must(t, second(e.Stat(ctx, meta.Volume("pvc"))))

	must(t, e.Close())
	btrfstest.Returns(t, "a start", func() { e = open(t, n.host, index, snapshot.Patience(impatient)) })
	for range 3 {
		btrfstest.Returns(t, "a look at the pools", func() { must(t, e.Refresh(ctx)) })
		comes(t, "who asks knows that it is frozen", func() bool {
			must(t, e.Refresh(ctx)) // the pool may have become silent
			return errors.Is(second(e.Stat(ctx, meta.Volume("pvc"))), pool.ErrFrozen) &&
				errors.Is(second(e.Prepare(ctx, sized("new", mib), meta.Ref{})), pool.ErrFrozen)
		})
	}
	thaw()
	comes(t, "the pool", func() bool { return e.Refresh(ctx) == nil && len(e.PoolIDs()) == 1 })
	comes(t, "a snapshot", func() bool { return second(e.Commit(ctx, snapshot.Spec{Name: "snap"}, "pvc")) == nil })
}

// TestTroubleIsNamed: the error of a pool contains the path that users know, and is the same each
// time, whatever other files are open.
func TestTroubleIsNamed(t *testing.T) {
	t.Parallel()
	n := newNode(t, btrfs.QuotaNone)
	path := filepath.Join(n.state, "pools", "default")
	must(t, os.Mkdir(filepath.Join(path, "pool.json"), 0o700))
	e := open(t, n.host, filepath.Join(t.TempDir(), "index.db"))
	changes := 0
	e.OnChange(func(meta.Ref) { changes++ })
	for range 5 {
		other, err := os.Open(n.state) // takes a descriptor number
		must(t, err)
		t.Cleanup(func() { other.Close() })
		must(t, e.Refresh(t.Context()))
		reported := e.Pools(t.Context())[0].Error
		if !strings.Contains(reported, path+"/pool.json") || strings.Contains(reported, "/proc/") {
			t.Errorf("reported: %s", reported)
		}
	}
	if changes > 0 {
		t.Errorf("the same was reported anew, %d times", changes)
	}
}

// TestQuotaThatCannotBeHad: the error of a quota mode that cannot be turned on names the path.
func TestQuotaThatCannotBeHad(t *testing.T) {
	t.Parallel()
	n := newNode(t, btrfs.QuotaMode("odd"))
	e := open(t, n.host, filepath.Join(t.TempDir(), "index.db"))
	reported := e.Pools(t.Context())[0].Error
	if !strings.Contains(reported, filepath.Join(n.state, "pools", "default")+`"`) || strings.Contains(reported, "/proc/") {
		t.Errorf("reported: %s", reported)
	}
}
