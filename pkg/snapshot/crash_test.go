package snapshot_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs"
	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
	"github.com/btrfs-csi/btrfs-csi/pkg/meta/index"
	"github.com/btrfs-csi/btrfs-csi/pkg/pool"
	"github.com/btrfs-csi/btrfs-csi/pkg/pool/pooltest"
	"github.com/btrfs-csi/btrfs-csi/pkg/snapshot"
)

const mib = 1 << 20

// operation is a request that the tests interrupt.
type operation struct {
	name string
	run  func(context.Context, *snapshot.Engine) error
}

// operations are the operations of the table in doc.go.
var operations = []operation{
	{"create, of a class", func(ctx context.Context, e *snapshot.Engine) error {
		_, err := e.Prepare(ctx, snapshot.Spec{
			Name: "new", Size: snapshot.Range{Required: 3 * mib}, Labels: map[string]string{"pvc": "data"},
			Parameters: meta.Parameters{Compression: "zstd"},
		}, meta.Ref{})
		return err
	}},
	{"create with a disk file", func(ctx context.Context, e *snapshot.Engine) error {
		_, err := e.Prepare(ctx, snapshot.Spec{Name: "new", Size: snapshot.Range{Required: 20 * mib}, Content: meta.Ext4}, meta.Ref{})
		return err
	}},
	{"clone of a disk file", func(ctx context.Context, e *snapshot.Engine) error {
		_, err := e.Prepare(ctx, snapshot.Spec{Name: "new", Content: meta.Ext4}, meta.Volume("disk"))
		return err
	}},
	{"commit of a disk file", func(ctx context.Context, e *snapshot.Engine) error {
		_, err := e.Commit(ctx, snapshot.Spec{Name: "new"}, "disk")
		return err
	}},
	{"create from snapshot", func(ctx context.Context, e *snapshot.Engine) error {
		_, err := e.Prepare(ctx, snapshot.Spec{Name: "new", Size: snapshot.Range{Required: 9 * mib}}, meta.Snapshot("snap"))
		return err
	}},
	{"clone", func(ctx context.Context, e *snapshot.Engine) error {
		_, err := e.Prepare(ctx, snapshot.Spec{Name: "new"}, meta.Volume("base"))
		return err
	}},
	{"create from snapshot, of another class", func(ctx context.Context, e *snapshot.Engine) error {
		_, err := e.Prepare(ctx, snapshot.Spec{Name: "new", Parameters: meta.Parameters{Compression: "zstd"}}, meta.Snapshot("snap"))
		return err
	}},
	{"clone, of another class", func(ctx context.Context, e *snapshot.Engine) error {
		_, err := e.Prepare(ctx, snapshot.Spec{Name: "new", Parameters: meta.Parameters{NoDataCow: true}}, meta.Volume("base"))
		return err
	}},
	{"view", func(ctx context.Context, e *snapshot.Engine) error {
		_, err := e.View(ctx, snapshot.Spec{Name: "new"}, meta.Snapshot("snap"))
		return err
	}},
	{"commit", func(ctx context.Context, e *snapshot.Engine) error {
		_, err := e.Commit(ctx, snapshot.Spec{Name: "new"}, "base")
		return err
	}},
	{"commit of a group", func(ctx context.Context, e *snapshot.Engine) error {
		_, err := e.CommitGroup(ctx, snapshot.Spec{Name: "new"}, []string{"other", "base"})
		for errors.Is(err, snapshot.ErrApart) { // on a real disk
			_, err = e.CommitGroup(ctx, snapshot.Spec{Name: "new"}, []string{"other", "base"})
		}
		return err
	}},
	{"resize", func(ctx context.Context, e *snapshot.Engine) error {
		_, err := e.Resize(ctx, "base", snapshot.Range{Required: 8 * mib})
		return err
	}},
	{"remove volume", func(ctx context.Context, e *snapshot.Engine) error { return e.Remove(ctx, meta.Volume("base")) }},
	{"remove snapshot", func(ctx context.Context, e *snapshot.Engine) error { return e.Remove(ctx, meta.Snapshot("snap")) }},
	{"remove view", func(ctx context.Context, e *snapshot.Engine) error { return e.Remove(ctx, meta.Volume("view")) }},
	{"remove lost", func(ctx context.Context, e *snapshot.Engine) error { return e.Remove(ctx, meta.Volume("lost")) }},
	{"remove rolled back", func(ctx context.Context, e *snapshot.Engine) error { return e.Remove(ctx, meta.Volume("outside")) }},
}

// world is a node with a pool in memory, and everything that an operation may meet.
type world struct {
	t     *testing.T
	fs    *pooltest.Filesystem
	host  *pooltest.Host
	index string // path
	e     *snapshot.Engine

	mu     sync.Mutex // protects what follows: pools are opened concurrently
	steps  int
	before map[int]func() // by step
}

func newWorld(t *testing.T, mode btrfs.QuotaMode) *world {
	t.Helper()
	w := &world{t: t, host: pooltest.NewHost(mode), index: filepath.Join(memoryDir(t), "index.db")}
	w.fs = w.host.Pool(pool.Default)
	w.open()
	ctx := t.Context()
	for _, name := range []string{"base", "lost", "outside", "other"} {
		must(t, second(w.e.Prepare(ctx, snapshot.Spec{Name: name, Size: snapshot.Range{Required: 5 * mib}}, meta.Ref{})))
		must(t, w.fs.Write(active(name), "data of "+name))
	}
	must(t, second(w.e.Prepare(ctx, snapshot.Spec{Name: "disk", Size: snapshot.Range{Required: 16 * mib}, Content: meta.Ext4}, meta.Ref{})))
	must(t, second(w.e.Commit(ctx, snapshot.Spec{Name: "snap"}, "base")))
	must(t, w.fs.Write(active("base"), "newer data of base"))
	must(t, second(w.e.View(ctx, snapshot.Spec{Name: "view"}, meta.Snapshot("snap"))))
	must(t, w.fs.Vanish(active("lost")))
	must(t, w.fs.RollBack(active("outside")))
	for _, area := range []pool.Area{"active", "committed", "removing"} {
		foreign := pool.Slot{Area: area, Name: "active-foreign"}
		must(t, w.fs.PlantSlot(foreign, nil))
		must(t, w.fs.PlantSubvolume(foreign, "somebody's"))
	}
	must(t, w.fs.PlantSlot(active("damaged"), []byte("noise")))
	must(t, w.fs.PlantSubvolume(active("damaged"), "still there"))
	w.fs.PeriodicCommit()
	w.fs.Part(1)
	return w
}

// memoryDir returns a directory in memory, if there is one. The crash tests open an index
// thousands of times, and would wait for a disk each time.
func memoryDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "btrfs-csi-test-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { must(t, os.RemoveAll(dir)) })
	return dir
}

func active(id string) pool.Slot { return pool.Slot{Area: "active", Name: id} }

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func second[T any](_ T, err error) error { return err }

// indexFiles returns the files of the index, by path.
func (w *world) indexFiles() map[string][]byte {
	w.t.Helper()
	paths, err := filepath.Glob(w.index + "*")
	must(w.t, err)
	files := map[string][]byte{}
	for _, path := range paths {
		files[path], err = os.ReadFile(path)
		must(w.t, err)
	}
	return files
}

func (w *world) open(options ...snapshot.Option) {
	w.t.Helper()
	index, _, err := index.Open(w.index)
	must(w.t, err)
	w.e, err = snapshot.Open(w.t.Context(), pooltest.Around(w.host, w.step), index, append([]snapshot.Option{snapshot.Patience(hang)}, options...)...)
	must(w.t, err)
}

func (w *world) step(_ pooltest.Step, do func() error) error {
	w.mu.Lock()
	w.steps++
	before := w.before[w.steps]
	w.mu.Unlock()
	if before != nil {
		before()
	}
	return do()
}

// event is something that happens to a filesystem.
type event struct {
	name string
	do   func(*pooltest.Filesystem)
}

// foreigns are what others do at any time. The kernel (every 30 s) or another operation commits.
// The kernel leaves a log unwritten.
var foreigns = []event{
	{"a commit", (*pooltest.Filesystem).PeriodicCommit},
	{"a commit, and no log from then on", (*pooltest.Filesystem).Unlogged},
}

// interfere makes a foreign event happen before the n-th step from now on.
func (w *world) interfere(n int, f event) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.before = map[int]func(){w.steps + n: func() { f.do(w.fs) }}
}

func (w *world) close() {
	w.t.Helper()
	must(w.t, w.e.Close())
}

// verify proves that the pool and the index are consistent, and returns their content.
func (w *world) verify() string {
	w.t.Helper()
	ctx := w.t.Context()
	w.fs.Clean()
	findings, err := w.e.Reconcile(ctx)
	must(w.t, err)
	for _, f := range findings {
		if f.Error != "" {
			w.t.Errorf("repair failed: %v: %s", f, f.Error)
		}
	}
	findings, err = w.e.Plan(ctx)
	must(w.t, err)
	for _, f := range findings {
		if f.Repair != "" {
			w.t.Errorf("planned after reconcile: %v", f)
		}
	}
	if n := w.fs.Frozen(); n > 0 {
		w.t.Errorf("%d filesystems stay frozen", n)
	}
	w.compareIndex()
	return w.fs.Dump()
}

// compareIndex proves that the index agrees with the ledger.
func (w *world) compareIndex() {
	w.t.Helper()
	ctx := w.t.Context()
	var indexed, ledger []string
	tell := func(e meta.Entry) string { return fmt.Sprintf("%s %+v", e.Ref(), e.Lineage) }
	for _, class := range []meta.Class{meta.Volumes, meta.Snapshots} {
		must(w.t, w.e.Walk(ctx, class, "", func(e meta.Entry) bool { indexed = append(indexed, tell(e)); return true }))
	}
	items, err := w.e.Inventory(ctx)
	must(w.t, err)
	for _, item := range items {
		if item.Status == "Ready" {
			ledger = append(ledger, tell(item.Entry))
		}
	}
	slices.Sort(indexed)
	slices.Sort(ledger)
	if !slices.Equal(indexed, ledger) {
		w.t.Errorf("index:\n%s\nledger:\n%s", strings.Join(indexed, "\n"), strings.Join(ledger, "\n"))
	}
}

// outcome runs an operation without interruption.
func outcome(t *testing.T, mode btrfs.QuotaMode, o operation) (before, after string, steps int) {
	t.Helper()
	w := newWorld(t, mode)
	defer w.close()
	before, steps = w.fs.Dump(), w.fs.Steps()
	must(t, o.run(t.Context(), w.e))
	after, steps = w.fs.Dump(), w.fs.Steps()-steps
	if before == after {
		t.Fatal("the operation changed nothing")
	}
	if got := w.verify(); got != after {
		t.Fatalf("reconcile changed\n%s\nto\n%s", after, got)
	}
	return before, after, steps
}

// endings are the ways in which an operation is interrupted.
var endings = []event{
	{"kill", (*pooltest.Filesystem).Kill},
	{"power cut", (*pooltest.Filesystem).PowerCut},
}

var modes = []btrfs.QuotaMode{btrfs.QuotaNone, btrfs.QuotaFull, btrfs.QuotaSimple}

// TestCrash interrupts every operation at every step.
func TestCrash(t *testing.T) {
	t.Parallel()
	for _, o := range operations {
		t.Run(o.name, func(t *testing.T) {
			t.Parallel()
			before, after, steps := outcome(t, btrfs.QuotaFull, o)
			for step := 1; step <= steps; step++ {
				for _, takesEffect := range []bool{false, true} {
					for _, end := range endings {
						for _, index := range []string{"new", "old", "no"} {
							if !chosen() {
								continue
							}
							name := fmt.Sprintf("step %d taken=%v/%s/%s index", step, takesEffect, end.name, index)
							t.Run(name, func(t *testing.T) {
								w := newWorld(t, btrfs.QuotaFull)
								w.crash(o, step, takesEffect, end, index, before, after, func() {})
							})
						}
					}
				}
			}
		})
	}
}

// crash interrupts an operation at a step. It calls plan just before the operation.
func (w *world) crash(o operation, step int, takesEffect bool, end event, index, before, after string, plan func()) {
	t := w.t
	w.close() // so that its index is closed in order
	old := w.indexFiles()
	w.open()
	w.fs.CrashAt(step, takesEffect)
	plan()
	answer := o.run(t.Context(), w.e)
	if answer == nil {
		t.Fatal("answered in spite of the crash")
	}
	trace := strings.Join(w.fs.Trace(), ", ")
	w.close()
	end.do(w.fs)
	switch index {
	case "old":
		for path, data := range old {
			must(t, os.WriteFile(path, data, 0o600))
		}
	case "no":
		must(t, os.Remove(w.index))
	}
	w.open()
	if got := w.verify(); got != before && got != after {
		t.Errorf("after %s: half done:\n%s\nbefore:\n%s\nafter:\n%s", trace, got, before, after)
	}
	w.again(o, trace, after)
}

// TestForeign makes others commit, or write a log, before each step of every operation. An
// answered operation is durable all the same.
func TestForeign(t *testing.T) {
	t.Parallel()
	for _, o := range operations {
		for _, mode := range modes {
			t.Run(o.name+"/"+string(mode), func(t *testing.T) {
				t.Parallel()
				_, after, steps := outcome(t, mode, o)
				for step := 1; step <= steps; step++ {
					for _, f := range foreigns {
						if !chosen() {
							continue
						}
						w := newWorld(t, mode)
						w.interfere(step, f)
						must(t, o.run(t.Context(), w.e))
						w.close()
						w.fs.PowerCut()
						if strings.Contains(w.fs.Dump(), " ext4 ") && strings.Contains(w.fs.Dump(), string(meta.Creating)) {
							t.Errorf("%s before step %d, then power cut: the next start makes a disk file anew that was handed out:\n%s", f.name, step, w.fs.Dump())
						}
						w.open()
						if got := w.verify(); got != after {
							t.Errorf("%s before step %d, then power cut:\n%s\nwanted:\n%s", f.name, step, got, after)
						}
						w.close()
					}
				}
			})
		}
	}
}

// TestForeignAndCrash is TestCrash by power cuts, with a foreign event before each step up to the
// last.
func TestForeignAndCrash(t *testing.T) {
	t.Parallel()
	for _, o := range operations {
		t.Run(o.name, func(t *testing.T) {
			t.Parallel()
			before, after, steps := outcome(t, btrfs.QuotaFull, o)
			for step := 1; step <= steps; step++ {
				for early := 1; early <= step; early++ {
					for _, f := range foreigns {
						if !chosen() {
							continue
						}
						w := newWorld(t, btrfs.QuotaFull)
						cut := event{"power cut after " + f.name, (*pooltest.Filesystem).PowerCut}
						w.crash(o, step, true, cut, "new", before, after, func() { w.interfere(early, f) })
					}
				}
			}
		})
	}
}

// again repeats the request. It succeeds, and its result is durable.
func (w *world) again(o operation, trace, after string) {
	w.t.Helper()
	if err := o.run(w.t.Context(), w.e); err != nil {
		w.t.Errorf("after %s: made again: %v", trace, err)
	}
	w.close()
	w.fs.PowerCut()
	w.open()
	defer w.close()
	if got := w.verify(); got != after {
		w.t.Errorf("after %s: made again, then power cut:\n%s\nwanted:\n%s", trace, got, after)
	}
}

// TestCrashAgainAtOnce is TestCrash for a request that is repeated before any other commit.
func TestCrashAgainAtOnce(t *testing.T) {
	t.Parallel()
	for _, o := range operations {
		t.Run(o.name, func(t *testing.T) {
			t.Parallel()
			_, after, steps := outcome(t, btrfs.QuotaFull, o)
			for step := 1; step <= steps; step++ {
				for _, takesEffect := range []bool{false, true} {
					if !chosen() {
						continue
					}
					w := newWorld(t, btrfs.QuotaFull)
					w.fs.CrashAt(step, takesEffect)
					_ = o.run(t.Context(), w.e)
					trace := strings.Join(w.fs.Trace(), ", ")
					w.close()
					w.fs.Kill()
					w.open()
					w.again(o, trace, after)
				}
			}
		})
	}
}

// TestCrashInReconcile crashes a second time, at every step of the repair.
func TestCrashInReconcile(t *testing.T) {
	t.Parallel()
	for _, o := range operations {
		t.Run(o.name, func(t *testing.T) {
			t.Parallel()
			before, after, steps := outcome(t, btrfs.QuotaFull, o)
			for step := 1; step <= steps; step++ {
				for _, end := range endings {
					if !chosen() {
						continue
					}
					for repair := 1; crashTwice(t, o, step, repair, end, before, after); repair++ {
					}
				}
			}
		})
	}
}

// crashTwice returns false if the repair has fewer steps.
func crashTwice(t *testing.T, o operation, step, repair int, end event, before, after string) bool {
	w := newWorld(t, btrfs.QuotaFull)
	w.fs.CrashAt(step, true)
	_ = o.run(t.Context(), w.e)
	w.close()
	w.fs.Kill()
	begun := w.fs.Steps()
	w.fs.CrashAt(repair, true)
	w.open()
	more := w.fs.Steps()-begun >= repair
	trace := strings.Join(w.fs.Trace(), ", ")
	w.close()
	end.do(w.fs)
	w.open()
	if got := w.verify(); got != before && got != after {
		t.Errorf("after step %d and %s: half done:\n%s", step, trace, got)
	}
	w.again(o, trace, after)
	return more
}

// meanings maps errors of the kernel to their meaning for a request.
var meanings = map[error]error{
	unix.ENOSPC: pool.ErrNoSpace, unix.EDQUOT: pool.ErrNoSpace, unix.EROFS: pool.ErrReadOnly,
	unix.EIO: pool.ErrAway, unix.EBUSY: unix.EBUSY,
}

// TestFault makes every step fail: alone, together with a later one, and with all later ones. An
// error without ErrUnfinished is final: nothing was left behind, or everything is done.
func TestFault(t *testing.T) {
	t.Parallel()
	for _, o := range operations {
		t.Run(o.name, func(t *testing.T) {
			t.Parallel()
			for _, mode := range modes {
				before, after, steps := outcome(t, mode, o)
				for step := 1; step <= steps; step++ {
					for next := step; next <= step+3; next++ {
						if chosen() {
							failing(t, o, mode, unix.ENOSPC, [][2]int{{step, step}, {next, next}}, before, after)
						}
					}
					for fault := range meanings {
						if chosen() {
							failing(t, o, mode, fault, [][2]int{{step, math.MaxInt32}}, before, after)
						}
					}
				}
			}
		})
	}
}

// TestInUse: a subvolume that the kernel refuses to remove stays as it was, and is removed as soon
// as the kernel allows it.
func TestInUse(t *testing.T) {
	t.Parallel()
	for _, o := range operations {
		if !slices.Contains([]string{"remove volume", "remove snapshot", "remove view"}, o.name) {
			continue
		}
		for _, mode := range modes {
			before, after, steps := outcome(t, mode, o)
			w := newWorld(t, mode)
			w.fs.FailAt(steps+1, steps+1, pool.ErrInUse) // starts the trace
			must(t, o.run(t.Context(), w.e))
			destroy := slices.IndexFunc(w.fs.Trace(), func(step string) bool { return strings.Contains(step, " Destroy ") }) + 1
			w.close()
			if destroy == 0 {
				t.Fatalf("%s, %s quota: nothing is destroyed", o.name, mode)
			}
			failing(t, o, mode, pool.ErrInUse, [][2]int{{destroy, destroy}}, before, after)
		}
	}
}

func failing(t *testing.T, o operation, mode btrfs.QuotaMode, fault error, at [][2]int, before, after string) {
	t.Helper()
	w := newWorld(t, mode)
	for _, steps := range at {
		w.fs.FailAt(steps[0], steps[1], fault)
	}
	answer := o.run(t.Context(), w.e)
	trace := fmt.Sprintf("%s quota, %v at %v: %s", mode, fault, at, strings.Join(w.fs.Trace(), ", "))
	w.fs.Kill() // ends the fault; the engine lives on
	now := w.fs.Dump()
	switch {
	case answer == nil && now != after:
		t.Errorf("%s: answered, but:\n%s", trace, now)
	case answer != nil && !errors.Is(answer, cmp.Or(meanings[fault], fault)):
		t.Errorf("%s: got %v, wanted %v in it", trace, answer, cmp.Or(meanings[fault], fault))
	case answer != nil && !errors.Is(answer, snapshot.ErrUnfinished) && now != before:
		t.Errorf("%s: final answer %v, but left behind:\n%s", trace, answer, now)
	}
	w.again(o, trace, after)
}
