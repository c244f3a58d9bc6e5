//go:debug randseednop=0
package simulate

import (
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	"k8s.io/klog/v2"
	"pgregory.net/rapid"

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs/btrfstest"
)

func TestMain(m *testing.M) {
	flags := flag.NewFlagSet("klog", flag.ExitOnError)
	klog.InitFlags(flags)
	if os.Getenv("SIMULATE_LOG") == "" {
		_ = flags.Set("logtostderr", "false")
		_ = flags.Set("stderrthreshold", "FATAL")
		klog.SetOutput(io.Discard)
	} else {
		_ = flags.Set("v", os.Getenv("SIMULATE_LOG"))
	}
	// The handlers of client-go would wait, by the time of the bubble before.
	utilruntime.ErrorHandlers = nil
	runtime.GOMAXPROCS(1)
	must(flag.Set("rapid.checks", "1"))
	must(flag.Set("rapid.nofailfile", "true"))
	os.Exit(btrfstest.Main(func() int {
		code := m.Run()
		if docs := os.Getenv("SIMULATE_DOCS"); docs != "" && code == 0 {
			must(report.Write(docs))
		}
		return code
	}))
}

// report is what the tests have done.
var report = Report{Began: time.Now()}

// places returns a place for each run.
func places(t *testing.T) func() place {
	t.Helper()
	base, err := filepath.EvalSymlinks(btrfstest.Mount(t))
	must(err)
	state := t.TempDir()
	must(unix.Mount("tmpfs", state, "tmpfs", 0, ""))
	t.Cleanup(func() { must(unix.Unmount(state, 0)) })
	n := 0
	return func() place {
		n++
		return place{filepath.Join(base, fmt.Sprint(n)), filepath.Join(state, fmt.Sprint(n))}
	}
}

// in runs a plan in a bubble of its own. Whoever waits for ever there has time go on for ever.
func (p place) in(t *testing.T, of plan) (stats Stats, journal []string, err error) {
	t.Helper()
	hangs := time.AfterFunc(10*time.Minute, func() { panic(fmt.Sprintf("it does not end: %v", of)) })
	defer hangs.Stop()
	defer p.remove()
	synctest.Test(t, func(*testing.T) { stats, journal, err = run(of, p) })
	return stats, journal, err
}

func (p place) remove() {
	_, _ = os.RemoveAll(p.dir), os.RemoveAll(p.stateDir)
}

// seedsInTest are the seeds of make test.
const seedsInTest = 12

// seeds calls run with one seed after the other: SIMULATE_SEED alone, as many as
// SIMULATE_SEEDS says, as many as there is time for in SIMULATE, or those of make test.
func seeds(t *testing.T, run func(seed uint64)) {
	t.Helper()
	first, count := uint64(1), seedsInTest
	if n := os.Getenv("SIMULATE_SEEDS"); n != "" {
		count = number(t, n)
	}
	if n := os.Getenv("SIMULATE_SEED"); n != "" {
		first, count = uint64(number(t, n)), 1
	}
	began, limit := time.Now(), time.Duration(0)
	if d := os.Getenv("SIMULATE"); d != "" && count > 1 {
		var err error
		limit, err = time.ParseDuration(d)
		must(err)
		first = uint64(began.Unix()) % 1e6 * 1000
	}
	report.First = first
	for i := 0; !t.Failed() && (limit > 0 && time.Since(began) < limit || limit == 0 && i < count); i++ {
		run(first + uint64(i))
	}
	report.Elapsed = time.Since(began)
}

func number(t *testing.T, text string) int {
	t.Helper()
	n, err := strconv.Atoi(text)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// TestCluster: whatever happens to a cluster, no promise of the driver is broken, and what
// was put right settles.
func TestCluster(t *testing.T) {
	next := places(t)
	seeds(t, func(seed uint64) {
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			must(flag.Set("rapid.seed", fmt.Sprint(seed)))
			rapid.Check(t, func(r *rapid.T) {
				stats, _, err := next().in(t, plans.Draw(r, "plan"))
				if err != nil {
					r.Fatal(err)
				}
				report.Stats.add(stats)
			})
		})
	})
	t.Logf("%+v", report.Stats)
}

// TestSame measures how far one seed goes: what client-go draws, and in what order goroutines
// and maps come, is not in the hands of the simulation.
func TestSame(t *testing.T) {
	if os.Getenv("SIMULATE_DOCS") == "" {
		t.Skip("it measures, and cannot fail: make simulate runs it")
	}
	next := places(t)
	for seed := range 20 {
		must(flag.Set("rapid.seed", fmt.Sprint(seed+1)))
		rapid.Check(t, func(r *rapid.T) {
			p := plans.Draw(r, "plan")
			var journals [2][]string
			for i := range journals {
				_, journals[i], _ = next().in(t, p)
			}
			until := 0
			for until < min(len(journals[0]), len(journals[1])) && journals[0][until] == journals[1][until] {
				until++
			}
			report.Same = append(report.Same, Same{Notes: max(len(journals[0]), len(journals[1])), Until: until})
		})
	}
	t.Log(report.sameness())
}

// TestMends: the simulation finds the faults that the driver had, when their mends are taken
// out.
func TestMends(t *testing.T) {
	only := os.Getenv("SIMULATE_MENDS")
	if only == "" {
		t.Skip("each needs a build of its own: make simulate runs it")
	}
	for _, m := range mends {
		if !regexp.MustCompile(only).MatchString(m.fault) {
			continue
		}
		t.Run(m.fault, func(t *testing.T) {
			source, err := filepath.Abs("../..")
			must(err)
			list, err := m.overlay(source, t.TempDir())
			must(err)
			cmd := exec.Command("go", "test", "-overlay", list, "-run", "^TestCluster$", "-count", "1", "-rapid.shrinktime", "20s", ".")
			cmd.Env = append(os.Environ(), "SIMULATE=", "SIMULATE_DOCS=", "SIMULATE_SEED=", "SIMULATE_MENDS=", "SIMULATE_SEEDS=60", "SIMULATE_FOCUS="+m.focus)
			out, err := cmd.CombinedOutput()
			found := regexp.MustCompile(m.breaks).FindString(string(out))
			seed := regexp.MustCompile("TestCluster/seed=[0-9]+").FindString(string(out))
			if err == nil || seed == "" || found == "" {
				t.Fatalf("it is not found: %v\n%s", err, out)
			}
			report.Found = append(report.Found, Found{m.fault, number(t, strings.TrimPrefix(seed, "TestCluster/seed="))})
			t.Logf("%s: %s", seed, regexp.MustCompile(".*("+m.breaks+").*").FindString(string(out)))
		})
	}
}
