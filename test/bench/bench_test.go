package main

import (
	"context"
	"errors"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs"
	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs/btrfstest"
	"github.com/btrfs-csi/btrfs-csi/test/testkit"
	"github.com/btrfs-csi/btrfs-csi/test/testkit/plot"
)

func TestMain(m *testing.M) { os.Exit(btrfstest.Main(m.Run)) }

// smallest runs a benchmark of some seconds.
func smallest(t *testing.T) *bench {
	t.Helper()
	btrfstest.RequireRoot(t)
	b, err := newBench(t.Context(), os.TempDir(), "", t.Output()) // the paths of sockets must be short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		left, err := testkit.MountsIn(b.dir)
		if err != nil || len(left) > 0 {
			t.Errorf("still mounted: %q (%v)", left, err)
		}
		rigs, err := filepath.Glob(filepath.Join(b.dir, "rig-*"))
		if err != nil || len(rigs) > 0 {
			t.Errorf("left behind: %q (%v)", rigs, err)
		}
		if err := b.close(); err != nil {
			t.Error(err)
		}
	})
	return b
}

func TestSmallestBenchmark(t *testing.T) {
	b := smallest(t)
	c := contest{
		topic: topicOperations, inflight: 4, quota: btrfs.QuotaFull, rounds: 2, limit: limit{8, time.Minute}, operations: operationsOfALife,
	}
	for _, side := range []string{sideDriver, sideContainerd, sideEngine, sideRawSeparate, sideRawFlat, sideAdapter} {
		c.contestants = append(c.contestants, contestant{side: side}, contestant{side, 16})
	}
	for i := range c.contestants {
		c.pairs = append(c.pairs, pair{ours: i, peer: i})
	}
	commits := commits(btrfs.QuotaFull, 1)
	removal := removal(2000, 1, 1)
	removal.name = "removal"
	parts := []part{{name: "contest", run: c.run}, commits, removal, copying(10, 1<<10, 1), processGrows(btrfs.QuotaNone, 1, 10, 20),
		snapshotsGrow(btrfs.QuotaSimple, 10, 20), lineageGrows(btrfs.QuotaNone, 10, 20)}
	if _, err := exec.LookPath("fio"); err == nil { // make bench installs it, make test does not
		d := reading(btrfs.QuotaNone, 1)
		d.rounds, d.loads = 1, []load{randomWrite}
		parts = append(parts, d.part())
	}
	var all []row
	if err := b.run(t.Context(), parts, func(rows []row) error { all = append(all, rows...); return nil }); err != nil {
		t.Fatal(err)
	}
	operations := map[string]int{}
	for _, r := range all {
		operations[r.OursName+" "+r.Operation]++
		if r.Topic != topicCommits && (r.Ours <= 0 || r.Peer <= 0 || r.Ratio <= 0 || r.RatioMin > r.RatioMax) {
			t.Errorf("%s: %+v", r.name(), r)
		}
		if r.Exactly > 0 && !r.reached() {
			t.Errorf("%s: %g commits, wanted %g", r.name(), r.Ours, r.Exactly)
		}
	}
	for _, want := range operationsOfALife {
		if operations[sideDriver+" "+want]+operations[sideEngine+" "+want] == 0 { // mounts is not a request to the driver
			t.Errorf("no row of %s: %v", want, operations)
		}
	}
}

// TestFailureLeavesNothing: a side fails in the middle. smallest would find what is left.
func TestFailureLeavesNothing(t *testing.T) {
	b := smallest(t)
	failure := errors.New("on purpose")
	b.sides["failing"] = func(context.Context, *rig) (side, error) { return nil, failure }
	c := contest{
		quota: btrfs.QuotaNone, rounds: 1, limit: limit{1, time.Minute}, operations: []string{opCreate},
		contestants: []contestant{{sideDriver, 4}, {side: "failing"}},
	}
	if _, err := c.run(t.Context(), b); !errors.Is(err, failure) {
		t.Errorf("wanted %v, found %v", failure, err)
	}
}

func TestPerform(t *testing.T) {
	failure := errors.New("on purpose")
	for name, test := range map[string]struct {
		op    operation
		limit limit
		items int
		err   error
	}{
		"all items":   {func(context.Context, int) error { return nil }, limit{100, time.Minute}, 100, nil},
		"no items":    {func(context.Context, int) error { return nil }, limit{0, time.Minute}, 0, nil},
		"out of time": {func(context.Context, int) error { time.Sleep(20 * time.Millisecond); return nil }, limit{1000, time.Millisecond}, 4, nil},
		"failure":     {func(_ context.Context, i int) error { return map[int]error{3: failure}[i] }, limit{1000, time.Minute}, -1, failure},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m, err := perform(t.Context(), test.op, 4, test.limit)
				if !errors.Is(err, test.err) || test.items >= 0 && m.items != test.items {
					t.Errorf("%d items, %v; wanted %d, %v", m.items, err, test.items, test.err)
				}
			})
		})
	}
}

func TestMedian(t *testing.T) {
	for _, test := range []struct {
		values []float64
		want   float64
	}{{nil, 0}, {[]float64{3}, 3}, {[]float64{9, 1, 2}, 2}, {[]float64{4, 1, 3, 2}, 2.5}} {
		if got := median(test.values); got != test.want {
			t.Errorf("median of %v is %g, wanted %g", test.values, got, test.want)
		}
	}
}

func TestCompare(t *testing.T) {
	ours, peer := []float64{10, 20, 30}, []float64{5, 5, 20}
	r := row{}.compare(perSecond, ours, peer)
	if r.Ours != 20 || r.Peer != 5 || r.Ratio != 4 || r.RatioMin != 1.5 || r.RatioMax != 4 || r.Rounds != 3 {
		t.Errorf("higher is better: %+v", r)
	}
	r = row{}.compare(milliseconds, ours, peer)
	if r.Ratio != 0.25 || r.RatioMin != 0.25 || math.Abs(r.RatioMax-2.0/3) > 1e-9 {
		t.Errorf("lower is better: %+v", r)
	}
	if r := (row{}).compare(perSecond, []float64{1}, []float64{0}); r.Ratio != 0 {
		t.Errorf("of nothing: %+v", r)
	}
}

func TestReached(t *testing.T) {
	for _, test := range []struct {
		row  row
		want string
	}{
		{row{Ratio: 0.1}, ""},
		{row{Ratio: 10, Want: 10}, "yes"},
		{row{Ratio: 9.99, Want: 10}, "no"},
		{row{Ours: 1, Exactly: 1}, "yes"},
		{row{Ours: 1.01, Exactly: 1}, "no"},
	} {
		if got := test.row.verdict(); got != test.want {
			t.Errorf("%+v: %q, wanted %q", test.row, got, test.want)
		}
	}
}

func TestCostSlope(t *testing.T) {
	curve := func(f func(x float64) float64) (all []plot.Point) {
		for _, x := range []float64{10, 100, 1000} {
			all = append(all, plot.Point{X: x, Y: f(x)})
		}
		return all
	}
	for name, test := range map[string]struct {
		points []plot.Point
		better string
		want   float64
	}{
		"flat":        {curve(func(float64) float64 { return 7 }), lower, 0},
		"linear cost": {curve(func(x float64) float64 { return 3 * x }), lower, 1},
		"rate falls":  {curve(func(x float64) float64 { return 1 / math.Sqrt(x) }), higher, 0.5},
		"one point":   {[]plot.Point{{X: 1, Y: 1}}, lower, 0},
	} {
		if got := costSlope(test.points, test.better); math.Abs(got-test.want) > 1e-9 {
			t.Errorf("%s: %g, wanted %g", name, got, test.want)
		}
	}
}

func TestWindows(t *testing.T) {
	series := make([]float64, 30)
	for i := range series {
		series[i] = float64(i + 1)
	}
	got := windows(series, []int{10, 30, 100})
	if len(got) != 2 || median(got[10]) != 5.5 || median(got[30]) != 25.5 {
		t.Errorf("%v", got)
	}
	// Only the removals 30 to 16 of 30 were timed.
	got = windows(backwards(series[:15], 30), []int{10, 30})
	if len(got) != 1 || median(got[30]) != 5.5 {
		t.Errorf("backwards: %v", got)
	}
}

func TestFioValue(t *testing.T) {
	const output = `{"fio version": "fio-3.33", "jobs": [{"read": {"bw_bytes": 0, "iops": 0}, "write": {"bw_bytes": 2097152, "iops": 512.5}}]}`
	for _, test := range []struct {
		unit unit
		want float64
	}{{iops, 512.5}, {mebibyteRate, 2}} {
		if got, err := fioValue([]byte(output), test.unit); err != nil || got != test.want {
			t.Errorf("%g %s (%v), wanted %g", got, test.unit.name, err, test.want)
		}
	}
	if _, err := fioValue([]byte(`{"jobs": []}`), iops); err == nil {
		t.Error("no job, and no error")
	}
}

func TestRowsOfSeveralFiles(t *testing.T) {
	dir := t.TempDir()
	first, second := filepath.Join(dir, "1.json"), filepath.Join(dir, "2.json")
	old := []row{{Operation: "a", Ours: 1}, {Operation: "b", Ours: 2}}
	anew := []row{{Operation: "b", Ours: 3}, {Operation: "c", Ours: 4}}
	if err := errors.Join(writeRows(first, old), writeRows(second, anew)); err != nil {
		t.Fatal(err)
	}
	rows, err := readRows([]string{first, second})
	if err != nil || len(rows) != 3 || rows[1].Ours != 3 || rows[2].Operation != "c" {
		t.Errorf("%+v, %v", rows, err)
	}
}

func TestReport(t *testing.T) {
	rows := []row{
		{Topic: topicOperations, Operation: opSnapshot, Inflight: 1, Quota: "none", Ours: 10, OursName: sideDriver, Peer: 5, PeerName: sideContainerd, Ratio: 2, Want: 1.5},
		{Topic: topicOperations, Operation: opSnapshot, Inflight: 64, Quota: "none", Ours: 90, OursName: sideDriver, Peer: 10, PeerName: sideContainerd, Ratio: 9, Want: 10},
		{Topic: topicOperations, Operation: opSnapshot, Inflight: 64, Quota: "none", Ours: 90, OursName: sideEngine, Peer: 200, PeerName: sideRawSeparate, Ratio: 0.45},
		{Topic: topicCommits, Operation: "commits of snapshot", Inflight: 1, Quota: "none", Ours: 1, OursName: sideDriver, Exactly: 1},
		{Topic: topicCalls, Operation: opSnapshot, Inflight: 1, Quota: "full", Ours: 70, OursName: sideDriver},
		{Topic: topicGrowth, Operation: opList, Quota: "none", Ours: 1000, OursName: sideDriver, Peer: 1000, PeerName: "10 volumes", Better: higher, X: 10, XName: "volumes"},
		{Topic: topicGrowth, Operation: opList, Quota: "none", Ours: 100, OursName: sideDriver, Peer: 1000, PeerName: "10 volumes", Better: higher, X: 100, XName: "volumes"},
	}
	dir := t.TempDir()
	if err := writeDocs(dir, rows); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(dir, "benchmarks.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"| 1.50 | yes |", "| 10 | no |", "| snapshot | 70 | 1 |", "| 10.00 | 1.00 | all are listed |", "the engine does 45 % of what they do", "(benchmarks-operations-none-0.svg)", "(benchmarks-growth-volumes.svg)"} {
		if !strings.Contains(string(text), want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	for _, name := range []string{"benchmarks-operations-none-0.svg", "benchmarks-growth-volumes.svg"} {
		svg, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil || !strings.HasPrefix(string(svg), "<svg") || strings.Contains(string(svg), "NaN") || strings.Contains(string(svg), "Inf") {
			t.Errorf("%s: %v\n%s", name, err, svg)
		}
	}
	if err := writeDocs(dir, nil); err == nil {
		t.Error("nothing was reported without an error")
	}
}

func TestPartsHaveNamesOfTheirOwn(t *testing.T) {
	for _, parts := range [][]part{quickParts(), fullParts()} {
		seen := map[string]bool{}
		for _, p := range parts {
			if seen[p.name] || p.seconds <= 0 {
				t.Errorf("%q: twice, or without a time (%g s)", p.name, p.seconds)
			}
			seen[p.name] = true
		}
	}
}
