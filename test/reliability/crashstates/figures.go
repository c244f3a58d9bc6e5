package crashstates

import (
	"fmt"
	"strings"
	"time"

	"github.com/btrfs-csi/btrfs-csi/test/reliability/node"
)

// Figures returns the figures as Markdown.
func (r Report) Figures() string {
	var b strings.Builder
	row := func(what, format string, args ...any) {
		fmt.Fprintf(&b, "| %s | %s |\n", what, fmt.Sprintf(format, args...))
	}
	c := r.Counts
	b.WriteString("\n| | |\n|---|---|\n")
	row("driver", "%s", r.Version)
	row("machine", "Linux %s", r.Kernel)
	row("date", "%s", r.Began.Format(time.DateOnly))
	row("seed, time", "%d, %v", r.Seed, r.Elapsed.Round(time.Second))
	row("sequences of one, two and three calls", "%d of %d, %d of %d, %d of %d, in each of %d kinds of quota",
		r.Sequences[0], r.Of[0], r.Sequences[1], r.Of[1], r.Sequences[2], r.Of[2], len(node.Modes()))
	if r.Drawn == all {
		row("interferences", "every one")
	} else {
		row("interferences", "every one with one call, and %d drawn for each longer sequence", r.Drawn)
	}
	row("histories", "%d: %d undisturbed, %d with a commit of others before a step, %d with a driver that was killed before a step and the next one asked again",
		r.Histories, r.Histories-r.Committed-r.Killed, r.Committed, r.Killed)
	row("written", "%d writes of %d pages of 4 KiB, and %d flushes", c.Writes, c.Pages, c.Flushes)
	row("instants", "%d: after each page of each write, and at each flush", c.Instants)
	row("states at these instants", "every subset of the pages since the last flush, in any order: of up to %d pages", c.Widest)
	row("states that were run", "%d, of them %d with the binary", c.Runs, r.Processes)
	row("states that were run although they are the same as others", "%d, drawn by the seed", c.Samples)
	row("branches left out", "%d", c.LeftOut)
	row("**lost, left over, half done**", "**0**")
	if len(r.Mutants) > 0 {
		b.WriteString("\n| a fault that was put in on purpose | found after | as |\n|---|---|---|\n")
		for _, m := range r.Mutants {
			fmt.Fprintf(&b, "| %s | %d histories, %d states | %s |\n", m.Name, m.Histories, m.Runs, m.Message)
		}
	}
	b.WriteString("\n")
	return b.String()
}
