package soak

import (
	"fmt"
	"strings"
	"time"

	"github.com/btrfs-csi/btrfs-csi/test/reliability/load"
)

// Figures returns the figures as Markdown, with a link to the plot.
func (r Report) Figures(plotName string) string {
	var b strings.Builder
	row := func(what, format string, args ...any) {
		fmt.Fprintf(&b, "| %s | %s |\n", what, fmt.Sprintf(format, args...))
	}
	total := r.Total()
	b.WriteString("\n| | |\n|---|---|\n")
	row("driver", "%s", r.Version)
	row("machine", "Linux %s, %d CPUs", r.Kernel, r.CPUs)
	row("date", "%s", r.Began.Format(time.DateOnly))
	row("seed", "%d", r.Seed)
	row("time", "%v, and %v of fuzzing", (r.Kills.Elapsed + r.Cuts.Elapsed + r.Alone.Elapsed).Round(time.Second), r.Fuzz.Elapsed().Round(time.Second))
	row("kills", "%d, of them %d of a driver that was starting", r.TotalKills(), r.Kills.KillsAtStart)
	row("power cuts", "%d", r.Cuts.Cuts)
	row("orderly restarts under load", "%d", r.Kills.Restarts+r.Cuts.Restarts)
	row("commits of others between two steps of an operation", "%d; %d steps were made to wait", r.Kills.Foreign+r.Cuts.Foreign, r.Kills.Delays+r.Cuts.Delays)
	row("requests", "%d: %d acknowledged, %d refused as they should be, %d broken off or to be asked again", total.Sent, total.Acknowledged, total.Refused, total.Unanswered)
	row("volumes and snapshots", "%d", r.Kills.Objects+r.Cuts.Objects+r.Alone.Objects)
	row("files written and synced", "%d", r.Kills.Writes+r.Cuts.Writes+r.Alone.Writes)
	row("in flight when it was killed", "%d whole after, %d absent, none half", r.Kills.AtKills.Whole, r.Kills.AtKills.Absent)
	row("in flight when the power was cut", "%d whole after, %d absent, none half", r.Cuts.AtCuts.Whole, r.Cuts.AtCuts.Absent)
	row("fuzzed", "%d targets, %d inputs", len(r.Fuzz), r.Fuzz.Inputs())
	row("**lost, left over, half done, panics**", "**0**")
	if r.Kills.Kills < r.Wanted.Kills || r.Cuts.Cuts < r.Wanted.Cuts {
		fmt.Fprintf(&b, "\nThe time did not suffice for the %d kills and %d power cuts that were asked for.\n", r.Wanted.Kills, r.Wanted.Cuts)
	}
	r.Alone.writeFlat(&b, plotName)
	return b.String()
}

// writeFlat writes the figures of the driver that was left alone, and links the plot.
func (r PartReport) writeFlat(b *strings.Builder, plotName string) {
	fmt.Fprintf(b, "\nOne driver was left alone for %v, after which each bound held. The median of the second quarter of that time and of the last:\n\n",
		r.Elapsed.Round(time.Second))
	b.WriteString("| | second quarter | last quarter |\n|---|---|---|\n")
	row := func(what, unit string, early, late float64) {
		fmt.Fprintf(b, "| %s | %.3g%s | %.3g%s |\n", what, early, unit, late, unit)
	}
	for _, c := range []struct {
		what, unit string
		of         func(Sample) float64
	}{
		{"resident memory", " MiB", func(s Sample) float64 { return float64(s.Memory) / mib }},
		{"goroutines", "", func(s Sample) float64 { return float64(s.Goroutines) }},
		{"descriptors", "", func(s Sample) float64 { return float64(s.Descriptors) }},
	} {
		if n := len(r.Samples); n >= leastSamples {
			row(c.what, c.unit, median(r.Samples[n/4:n/2], c.of), median(r.Samples[n*3/4:], c.of))
		}
	}
	for _, what := range plotted {
		if parts := r.Latencies[what]; len(parts) >= 4 {
			ms := func(l load.Latency) float64 { return l.P50.Seconds() * 1e3 }
			row(what+", median", " ms", median(parts[len(parts)/4:len(parts)/2], ms), median(parts[len(parts)*3/4:], ms))
		}
	}
	fmt.Fprintf(b, "\n![memory, goroutines, descriptors and latencies over the time](%s)\n\n", plotName)
}
