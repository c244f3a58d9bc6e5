package reliability

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// section is a part of reliability.md that is written by a program, between two marks.
type section struct{ begin, end string }

var (
	soakSection  = section{"<!-- The figures of the last soak: written by make soak, not by hand. -->\n", "<!-- End of the figures. -->\n"}
	crashSection = section{"<!-- The figures of the last crash states: written by make crash-states, not by hand. -->\n", "<!-- End of the figures of crash states. -->\n"}
)

// Document is reliability.md, which has places for figures.
type Document struct{ dir string }

// OpenDocument returns the one in a directory.
func OpenDocument(dir string) (Document, error) {
	d := Document{dir}
	for _, s := range []section{soakSection, crashSection} {
		if _, err := d.with(s, ""); err != nil {
			return d, err
		}
	}
	return d, nil
}

func (d Document) path() string { return filepath.Join(d.dir, "reliability.md") }

// with returns the document with other figures.
func (d Document) with(s section, figures string) (string, error) {
	text, err := os.ReadFile(d.path())
	if err != nil {
		return "", err
	}
	next, err := s.replace(string(text), figures)
	if err != nil {
		return "", fmt.Errorf("%s: %w", d.path(), err)
	}
	return next, nil
}

func (d Document) write(s section, figures string) error {
	text, err := d.with(s, figures)
	if err != nil {
		return err
	}
	return os.WriteFile(d.path(), []byte(text), 0o644)
}

// plotName is the file beside the document that shows the driver that was left alone.
const plotName = "reliability.svg"

// Write writes the figures of a soak that has passed.
func (d Document) Write(r SoakReport) error {
	if err := os.WriteFile(filepath.Join(d.dir, plotName), []byte(r.Alone.plot()), 0o644); err != nil {
		return err
	}
	return d.write(soakSection, r.figures())
}

// WriteCrashStates writes the figures of crash states that have passed.
func (d Document) WriteCrashStates(r CrashReport) error { return d.write(crashSection, r.figures()) }

// replace replaces what stands between the marks.
func (s section) replace(text, figures string) (string, error) {
	before, rest, begins := strings.Cut(text, s.begin)
	_, after, ends := strings.Cut(rest, s.end)
	if !begins || !ends {
		return "", fmt.Errorf("put the marks %q and %q back, between which the figures belong", s.begin, s.end)
	}
	return before + s.begin + figures + s.end + after, nil
}

// figures are those of crash states, as Markdown.
func (r CrashReport) figures() string {
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
		r.Sequences[0], r.Of[0], r.Sequences[1], r.Of[1], r.Sequences[2], r.Of[2], len(modes()))
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

// figures are those of a soak, as Markdown.
func (r SoakReport) figures() string {
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
	r.Alone.writeFlat(&b)
	return b.String()
}

// writeFlat writes how one driver that was left alone has been, and links its picture.
func (r Report) writeFlat(b *strings.Builder) {
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
			ms := func(l Latency) float64 { return l.P50.Seconds() * 1e3 }
			row(what+", median", " ms", median(parts[len(parts)/4:len(parts)/2], ms), median(parts[len(parts)*3/4:], ms))
		}
	}
	fmt.Fprintf(b, "\n![memory, goroutines, descriptors and latencies over the time](%s)\n\n", plotName)
}
