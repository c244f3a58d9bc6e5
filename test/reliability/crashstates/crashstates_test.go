package crashstates

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs"
	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs/btrfstest"
	"github.com/btrfs-csi/btrfs-csi/test/reliability/model"
	"github.com/btrfs-csi/btrfs-csi/test/reliability/node/nodetest"
	"github.com/btrfs-csi/btrfs-csi/test/reliability/writelog"
)

func TestMain(m *testing.M) {
	writelog.Main()
	os.Exit(btrfstest.Main(m.Run))
}

// TestCrashStates takes all histories of one and of two calls, and some of three. make crash-states
// takes all.
func TestCrashStates(t *testing.T) {
	btrfstest.RequireRoot(t)
	report, err := Run(t.Context(), Options{
		Dir: t.TempDir(), Binary: nodetest.Driver(t), Seed: uint64(nodetest.Number(t, "RELIABILITY_SEED", 0)), Only: os.Getenv("RELIABILITY_HISTORY"),
		Triples: nodetest.Number(t, "RELIABILITY_TRIPLES", 50), Interferences: nodetest.Number(t, "RELIABILITY_INTERFERENCES", 1),
	})
	t.Log(report)
	nodetest.No(t, err)
}

// TestCrashStatesFindFaults makes the driver forget a step. A state has to show it. The faults of make
// mutants are others.
func TestCrashStatesFindFaults(t *testing.T) {
	btrfstest.RequireRoot(t)
	for _, test := range []struct {
		forgotten, call, want string
		interference          interference
	}{
		{"Sync", "create", "is lost", interference{}},
		{"Commit", "expand", "bytes, wanted is one of", interference{}},
		{"Sync", "delete", "should not be there", interference{}},
		{"SyncRoot", "create of a class", "has the properties", interference{committed, 4}}, // Apply is the fourth
		{"SetLimit", "create", afterCalls, interference{}},
		{"SetRecord", "snapshot", "Foreign", interference{}},
	} {
		t.Run(test.call+" without "+test.forgotten, func(t *testing.T) {
			r := testRecorder(t, btrfs.QuotaFull)
			explore := func() error {
				rec, err := r.record(t.Context(), []call{callOf(t, test.call)}, test.interference)
				if err == nil {
					_, err = r.explore(t.Context(), rec, rand.New(rand.NewPCG(1, 1)), mostRuns, 0)
				}
				return err
			}
			nodetest.No(t, explore())
			r.forgotten = test.forgotten
			if err := explore(); err == nil || !strings.Contains(err.Error(), test.want) || !foundBy.MatchString(err.Error()) {
				t.Errorf("got %v, want %q", err, test.want)
			}
		})
	}
}

func testRecorder(t *testing.T, quota btrfs.QuotaMode) *recorder {
	r, err := newRecorder(t.Context(), t.TempDir(), quota)
	nodetest.No(t, err)
	t.Cleanup(func() { nodetest.No(t, r.close()) })
	return r
}

func callOf(t *testing.T, name string) call {
	for _, c := range calls {
		if c.name == name {
			return c
		}
	}
	t.Fatalf("there is no call %q", name)
	return call{}
}

// TestSequences checks that each call is possible at its place, and that no sequence is missing.
func TestSequences(t *testing.T) {
	seen := map[string]bool{}
	for length := 1; length <= 3; length++ {
		for _, sequence := range sequences(length) {
			name := nameOf(sequence)
			if seen[name] || len(sequence) != length {
				t.Errorf("%q is there twice, or has not %d calls", name, length)
			}
			seen[name] = true
		}
	}
	for name, want := range map[string]bool{
		"create":                               true,
		"snapshot, restore, expand the other":  true,
		"snapshot, delete, view":               true,
		"delete, repeat":                       true,
		"write, repeat, repeat":                true,
		"clone, delete the other, clone":       true,
		"repeat":                               false, // what?
		"restore":                              false, // of what?
		"create, clone":                        false, // there is only one other
		"view of a volume, write to the other": false,
		"delete, snapshot":                     false,
		"snapshot, delete the snapshot, view":  false,
	} {
		if seen[name] != want {
			t.Errorf("%q: got %v, want %v", name, seen[name], want)
		}
	}
}

// TestPositions maps lengths of the log to positions in the journal.
func TestPositions(t *testing.T) {
	rec := &recording{marks: []int{0, 0, 5, 5, 9, 20}}
	for _, test := range []struct {
		from, to    int
		first, last model.Position
	}{
		{0, 0, 1, 1},
		{5, 5, 1, 3}, // asked and answered while the log had 5
		{6, 8, 3, 3},
		{6, 9, 3, 4},
		{10, 30, 4, 5},
		{21, 30, 5, 5},
	} {
		if first, last := rec.positions(test.from, test.to); first != test.first || last != test.last {
			t.Errorf("%d to %d: got %d to %d, want %d to %d", test.from, test.to, first, last, test.first, test.last)
		}
	}
}

// TestMutants checks that each fault can be put in, and that no two are equal.
func TestMutants(t *testing.T) {
	seen := map[string]bool{}
	for _, m := range mutants {
		dir := t.TempDir()
		overlay, err := m.write("../../..", dir)
		nodetest.No(t, err)
		replaced, err := os.ReadFile(overlay)
		nodetest.No(t, err)
		all := ""
		for i, e := range m.edits {
			original, err := os.ReadFile(filepath.Join("../../..", e.file))
			nodetest.No(t, err)
			mutated, err := os.ReadFile(filepath.Join(dir, fmt.Sprintf("mutated%d.go", i)))
			nodetest.No(t, err)
			if string(original) == string(mutated) || !strings.Contains(string(replaced), e.file) {
				t.Errorf("%s changes nothing in %s: %s", m.name, e.file, replaced)
			}
			all += string(mutated)
		}
		if seen[all] {
			t.Errorf("%s changes what another changes", m.name)
		}
		seen[all] = true
	}
	if _, err := (mutant{"old", []edit{{"README.md", "what never was there", ""}}}).write("../../..", t.TempDir()); err == nil {
		t.Error("got no error for what cannot be put in")
	}
}
