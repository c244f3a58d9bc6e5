package simulate

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// The figures of the last simulation stand between these in reliability.md.
const (
	figuresBegin = "<!-- The figures of the last simulation: written by make simulate, not by hand. -->\n"
	figuresEnd   = "<!-- End of the figures of the simulation. -->\n"
)

// Report is what a whole simulation did.
type Report struct {
	Began   time.Time
	Elapsed time.Duration // of the seeds
	First   uint64        // seed
	Stats   Stats
	Same    []Same
	Found   []Found
}

// Same is how far two runs of one plan were the same.
type Same struct{ Notes, Until int }

// Found is a fault that was put in, and found.
type Found struct {
	Fault string
	Seeds int // that it took
}

// Write writes the figures into reliability.md, in a directory.
func (r Report) Write(dir string) error {
	path := filepath.Join(dir, "reliability.md")
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	before, rest, begins := strings.Cut(string(text), figuresBegin)
	_, after, ends := strings.Cut(rest, figuresEnd)
	if !begins || !ends {
		return fmt.Errorf("%s: put the marks %q and %q back, between which the figures belong", path, figuresBegin, figuresEnd)
	}
	return os.WriteFile(path, []byte(before+figuresBegin+r.figures()+figuresEnd+after), 0o644)
}

func (r Report) figures() string {
	var b strings.Builder
	row := func(what, format string, args ...any) {
		fmt.Fprintf(&b, "| %s | %s |\n", what, fmt.Sprintf(format, args...))
	}
	b.WriteString("\n| | |\n|---|---|\n")
	row("machine", "Linux %s, %d CPUs, %s", kernel(), runtime.NumCPU(), runtime.Version())
	row("date", "%s", r.Began.Format(time.DateOnly))
	row("seeds", "%d, from %d on, in %v", r.Stats.Runs, r.First, r.Elapsed.Round(time.Second))
	row("virtual time", "%.0f days", r.Stats.Virtual.Hours()/24)
	row("steps of the scheduler", "%d, and %d actions of users, administrators and accidents", r.Stats.Steps, r.Stats.Actions)
	row("starts of a driver", "%d", r.Stats.Starts)
	row("volumes and snapshots", "%d and %d", r.Stats.Volumes, r.Stats.Snapshots)
	row("let pass", "%d requests, events, calls, steps on disks and mounts", r.Stats.Verdicts[pass])
	row("gone wrong", "%d without effect, %d whose answer was lost, %d conflicts, %d watches that were too old",
		r.Stats.Verdicts[fail], r.Stats.Verdicts[lose], r.Stats.Verdicts[conflict], r.Stats.Verdicts[expire])
	row("**promises broken**", "**0**")
	if len(r.Same) > 0 {
		fmt.Fprintf(&b, "\n%s\n", r.sameness())
	}
	if len(r.Found) > 0 {
		b.WriteString("\n| an old fault, put in again | found after |\n|---|---|\n")
		for _, f := range r.Found {
			row(f.Fault, "%d seeds", f.Seeds)
		}
	}
	b.WriteString("\n")
	return b.String()
}

// sameness says how far one seed goes.
func (r Report) sameness() string {
	whole := 0
	var parts []float64
	for _, s := range r.Same {
		if s.Until == s.Notes {
			whole++
		}
		parts = append(parts, 100*float64(s.Until)/float64(s.Notes))
	}
	slices.Sort(parts)
	return fmt.Sprintf("Of %d plans that were run twice, %d did the same from the first step to the last. In the median, the first %.0f %% of all steps were the same.",
		len(r.Same), whole, parts[len(parts)/2])
}

func kernel() string {
	var name unix.Utsname
	if unix.Uname(&name) != nil {
		return "unknown"
	}
	return unix.ByteSliceToString(name.Release[:])
}
