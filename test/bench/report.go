package main

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs"
	"github.com/btrfs-csi/btrfs-csi/test/testkit/plot"
)

// document is the text of benchmarks.md.
type document struct {
	strings.Builder
	dir   string
	plots map[string][]plot.Panel // plots by file name
}

// writeDocs writes benchmarks.md and its plots into a directory. It replaces existing ones.
func writeDocs(dir string, rows []row) error {
	if len(rows) == 0 {
		return errors.New("no rows: there is nothing to report")
	}
	d := document{dir: dir, plots: map[string][]plot.Panel{}}
	d.introduction(rows)
	d.required(rows)
	d.bounds(rows)
	d.operations(rows)
	d.costs(rows)
	d.contents(rows)
	d.dataPath(rows)
	d.growth(rows)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	err := os.WriteFile(filepath.Join(dir, "benchmarks.md"), []byte(d.String()), 0o644)
	for name, panels := range d.plots {
		err = errors.Join(err, os.WriteFile(filepath.Join(dir, name), []byte(plot.SVG(panels, 3)), 0o644))
	}
	return err
}

func (d *document) line(format string, args ...any) { fmt.Fprintf(d, format+"\n", args...) }

// show adds a plot to the document.
func (d *document) show(name, about string, panels []plot.Panel) {
	if len(panels) == 0 {
		return
	}
	file := "benchmarks-" + name + ".svg"
	d.plots[file] = panels
	d.line("\n![%s](%s)", about, file)
}

func (d *document) introduction(rows []row) {
	m := slices.MaxFunc(rows, func(a, b row) int { return a.Machine.Time.Compare(b.Machine.Time) }).Machine
	d.line(`# Benchmarks

Written by `+"`make bench`"+`, not by hand. Measured on %s on a machine with %d cores (%s) and %d GiB of
memory, Linux %s, each filesystem a btrfs on a %s. The driver is %s.

The driver is the real binary, a process of its own, asked over gRPC; it shares the cores with who asks.
Beside it, on the same kind of filesystem and in the same run:

- **engine**: that of the driver, without gRPC.
- **containerd**: the btrfs snapshotter of containerd %s, in the process that asks. Its Prepare without a parent is compared with create, Commit against
  snapshot, Prepare with a parent against clone and restore, Remove against delete, Usage against stats, Mounts against mounts, Walk
  against list. Its Prepare without a parent is not durable when it returns; ours is. Volumes are empty, which is
  its best case: its Commit, Remove and Usage walk all files.
- **engine as a snapshotter**: the engine behind containerd's interface.
- **raw**: the bare ioctls and, where they do not commit, an fsync: as durable, without record, limit and lock; each subvolume
  in a directory of its own, or all in one.

Who is compared does the same in turn, round after round, in the other order every second round, on a fresh
filesystem each time, or on one that all that was added is taken away from. Before each timed part everything is synced, and the kernel's
cleaner has dropped what was destroyed. A number is the median of the rounds, a ratio that of the medians; above 1
ours is better. "Rounds" are the least and the greatest ratio of a round.

What is measured is a choice: all sides are compared with each other with nothing else on the filesystem, driver and containerd alone
where thousands of volumes are beside. A part that is not shown was not run. A series, one after the other, ends after a minute:
numbers that are missing from a curve were not reached. All rows are in [benchmarks.json](benchmarks.json).`,
		m.Time.Format("2006-01-02"), m.Cores, m.Arch, (m.MemoryMB+512)/1024, m.Kernel, m.Mounted, m.Driver, m.Peer)
}

func (d *document) required(rows []row) {
	d.line("\n## What has to be shown\n")
	d.line("| operation | at once | quota | with | ours | peer | unit | ratio | rounds | wanted | reached |\n|---|---|---|---|---|---|---|---|---|---|---|")
	for _, r := range rows {
		if r.judged() {
			d.line("| %s | %s | %s | %s | %s %s | %s %s | %s | %s | %s to %s | %s | %s |", r.Operation, several(r.Inflight), r.Quota, r.with(), r.OursName, number(r.Ours),
				r.PeerName, number(r.Peer), r.Unit, number(r.Ratio), number(r.RatioMin), number(r.RatioMax), r.wanted(), r.verdict())
		}
	}
}

// bounds lists the rows that miss their aim, each with explanations from the same run.
func (d *document) bounds(rows []row) {
	var lines []string
	for _, r := range rows {
		if r.judged() && !r.reached() {
			lines = append(lines, fmt.Sprintf("- **%s**: %s.", r.title(), strings.Join(bound(r, rows), "; ")))
		}
	}
	if len(lines) == 0 {
		return
	}
	d.line("\n### What bounds those that fall short\n\n%s", strings.Join(lines, "\n"))
}

// title returns the name of a row for a sentence.
func (r row) title() string {
	title := r.Operation
	for _, more := range []struct {
		format string
		value  any
		there  bool
	}{
		{"%d at once", r.Inflight, r.Inflight > 1}, {"quota %s", r.Quota, r.Quota != ""}, {"%s", r.with(), r.with() != ""},
		{"against %s", r.PeerName, r.PeerName != ""},
	} {
		if more.there {
			title += ", " + fmt.Sprintf(more.format, more.value)
		}
	}
	return title
}

// bound explains a ratio by the other rows of the same operation.
func bound(r row, rows []row) (reasons []string) {
	if r.RatioMax >= r.Want && r.Want > 0 {
		reasons = append(reasons, fmt.Sprintf("some rounds reach it, from %s to %s", number(r.RatioMin), number(r.RatioMax)))
	}
	values, commits := map[string]float64{}, map[string]float64{}
	for _, other := range rows {
		if other.Topic == r.Topic && other.Operation == r.Operation && other.Inflight == r.Inflight && other.Quota == r.Quota && other.Existing == r.Existing {
			values[other.OursName], commits[other.OursName] = other.Ours, other.OursCommits
			values[other.PeerName], commits[other.PeerName] = other.Peer, other.PeerCommits
		}
	}
	raw, engine := values[sideRawSeparate], values[sideEngine]
	if r.Topic == topicOperations && raw > 0 && engine > 0 {
		if r.PeerName != sideRawSeparate {
			reasons = append(reasons, fmt.Sprintf("the ioctls alone, with nothing declared, are at %s times the peer", number(raw/r.Peer)))
		}
		reasons = append(reasons, fmt.Sprintf("the engine does %.0f %% of what they do, with %s commits for each where they take %s", 100*engine/raw, number(commits[sideEngine]), number(commits[sideRawSeparate])))
		if r.OursName == sideDriver {
			reasons = append(reasons, fmt.Sprintf("asked over gRPC, by a client on the same processors, %.0f %% of the engine is left", 100*r.Ours/engine))
		}
	}
	if len(reasons) == 0 {
		reasons = []string{"nothing in this run says why"}
	}
	return reasons
}

// costs writes the commits and the time of one operation at a time.
func (d *document) costs(rows []row) {
	commits, calls := ofTopic(rows, topicCommits), ofTopic(rows, topicCalls)
	if len(commits)+len(calls) == 0 {
		return
	}
	d.line("\n## What one operation takes\n\nCommits as the kernel counts them, and system calls of the driver as strace does, with full quota; those by which threads wait for each other are left out. The fsync of an expansion is of a record alone, which the log of the filesystem takes: no commit. With quota the kernel's cleaner commits by itself now and then.\n")
	modes := groups(commits, func(r row) string { return r.Quota })
	head := "| operation | system calls |"
	for _, mode := range modes {
		head += fmt.Sprintf(" commits, quota %s |", mode[0].Quota)
	}
	d.line("%s\n|---|---|%s", head, strings.Repeat("---|", len(modes)))
	for _, name := range operationsOfALife {
		cells := fmt.Sprintf("| %s | %s |", name, valueOf(calls, name))
		for _, mode := range modes {
			cells += fmt.Sprintf(" %s |", valueOf(mode, "commits of "+name))
		}
		if strings.Trim(cells, "| ") != name {
			d.line("%s", cells)
		}
	}
}

// valueOf returns our value in the row of an operation, "" if there is none.
func valueOf(rows []row, operation string) string {
	for _, r := range rows {
		if r.Operation == operation {
			return number(r.Ours)
		}
	}
	return ""
}

func several(n int) string {
	if n == 0 {
		return ""
	}
	return strconv.Itoa(n)
}

// operations writes a table for each state of the filesystem, with a column for each side, and a plot
// over the number in flight.
func (d *document) operations(rows []row) {
	rows = ofTopic(rows, topicOperations)
	if len(rows) == 0 {
		return
	}
	d.line("\n## Operations\n\nOperations a second. In brackets: commits of the filesystem for each.")
	for _, state := range groups(rows, func(r row) string { return r.Quota + strconv.Itoa(r.Existing) }) {
		among := "no others"
		if state[0].Existing > 0 {
			among = fmt.Sprintf("%d others", state[0].Existing)
		}
		d.line("\n### Quota %s, %s", state[0].Quota, among)
		sides := sidesOf(state)
		d.line("\n| operation | at once | %s |\n|---|---|%s", strings.Join(sides, " | "), strings.Repeat("---|", len(sides)))
		for _, same := range groups(state, func(r row) string { return r.Operation + "/" + strconv.Itoa(r.Inflight) }) {
			d.line("| %s | %d | %s |", same[0].Operation, same[0].Inflight, strings.Join(cells(same, sides), " | "))
		}
		d.show(fmt.Sprintf("operations-%s-%d", state[0].Quota, state[0].Existing), "operations a second over those in flight, quota "+state[0].Quota, overInflight(state))
	}
}

// cells returns the values of the sides in the rows of one operation.
func cells(rows []row, sides []string) []string {
	found := make([]string, len(sides))
	for _, r := range rows {
		found[slices.Index(sides, r.OursName)] = fmt.Sprintf("%s (%s)", number(r.Ours), number(r.OursCommits))
		found[slices.Index(sides, r.PeerName)] = fmt.Sprintf("%s (%s)", number(r.Peer), number(r.PeerCommits))
	}
	return found
}

func sidesOf(rows []row) (names []string) {
	for _, r := range rows {
		for _, name := range []string{r.OursName, r.PeerName} {
			if !slices.Contains(names, name) {
				names = append(names, name)
			}
		}
	}
	return names
}

// overInflight returns a panel for each operation that was measured with several numbers in flight.
func overInflight(rows []row) (panels []plot.Panel) {
	for _, same := range groups(rows, func(r row) string { return r.Operation }) {
		p := plot.Panel{Log: true, Title: same[0].Operation, X: "in flight", Y: same[0].Unit}
		for _, side := range sidesOf(same) {
			l := plot.Line{Name: side}
			for _, r := range same {
				value, ok := r.Ours, r.OursName == side
				if r.PeerName == side {
					value, ok = r.Peer, true
				}
				if at := (plot.Point{X: float64(r.Inflight), Y: value}); ok && !slices.Contains(l.Points, at) {
					l.Points = append(l.Points, at)
				}
			}
			p.Lines = append(p.Lines, l)
		}
		if len(p.Measured()) > 1 {
			panels = append(panels, p)
		}
	}
	return panels
}

func (d *document) contents(rows []row) {
	rows = ofTopic(rows, topicContents)
	if len(rows) == 0 {
		return
	}
	d.line("\n## What a volume contains\n\nA removal answers when the volume is gone for good; its space comes back when the kernel has dropped its files.\n")
	d.line("| operation | ours | peer | unit | ratio | rounds |\n|---|---|---|---|---|---|")
	removals := plot.Panel{Log: true, Title: "delete of a volume", X: "files", Y: milliseconds.name, Lines: []plot.Line{{Name: sideDriver}, {Name: sideLibrary}}}
	for _, r := range rows {
		d.line("| %s | %s | %s %s | %s | %s | %s to %s |", r.Operation, number(r.Ours), r.PeerName, number(r.Peer), r.Unit, number(r.Ratio), number(r.RatioMin), number(r.RatioMax))
		if r.PeerName == sideLibrary {
			removals.Lines[0].Points = append(removals.Lines[0].Points, plot.Point{X: r.X, Y: r.Ours})
			removals.Lines[1].Points = append(removals.Lines[1].Points, plot.Point{X: r.X, Y: r.Peer})
		}
	}
	if len(removals.Lines[0].Points) > 1 {
		d.show("contents", "the removal of a volume over its files", []plot.Panel{removals})
	}
}

func (d *document) dataPath(rows []row) {
	rows = ofTopic(rows, topicData)
	if len(rows) == 0 {
		return
	}
	d.line("\n## Data path\n\nfio with one job, psync and the page cache, in a published volume and beside it on the same filesystem. Volume and subvolume have as many snapshots, each with other data.\n")
	d.line("| load | quota | snapshots | volume | peer | unit | ratio | rounds |\n|---|---|---|---|---|---|---|---|")
	var panels []plot.Panel
	for _, r := range rows {
		d.line("| %s | %s | %s | %s | %s %s | %s | %s | %s to %s |", r.Operation, r.Quota, number(r.X), number(r.Ours), r.PeerName, number(r.Peer), r.Unit, number(r.Ratio), number(r.RatioMin), number(r.RatioMax))
	}
	for _, same := range groups(rows, func(r row) string { return r.Operation }) {
		p := plot.Panel{Log: true, Title: same[0].Operation, X: "snapshots of the volume (0 at 1)", Y: same[0].Unit}
		for _, mode := range groups(same, func(r row) string { return r.Quota + r.PeerName }) {
			if mode[0].PeerName != placeSubvolume {
				continue
			}
			ours, peer := plot.Line{Name: "published volume, quota " + mode[0].Quota}, plot.Line{Name: "plain subvolume, quota " + mode[0].Quota}
			for _, r := range mode {
				ours.Points = append(ours.Points, plot.Point{X: max(1, r.X), Y: r.Ours})
				peer.Points = append(peer.Points, plot.Point{X: max(1, r.X), Y: r.Peer})
			}
			p.Lines = append(p.Lines, ours, peer)
		}
		if len(p.Measured()) > 1 {
			panels = append(panels, p)
		}
	}
	d.show("data-path", "input and output over the number of snapshots", panels)
}

// growth writes a curve for each operation, and its slope.
func (d *document) growth(rows []row) {
	rows = ofTopic(rows, topicGrowth)
	if len(rows) == 0 {
		return
	}
	d.line("\n## Growth\n\nWhat it takes when there is more and more, for the driver and, beside it, for the ioctls alone. The slope is the exponent of the cost: 0 is flat, 1 grows as what there is. A curve is called flat whose last point costs no more than a fifth more than its first.")
	for _, over := range groups(rows, func(r row) string { return r.XName }) {
		what := over[0].XName
		d.line("\n### Over the number of %s\n", what)
		d.line("| operation | at once | of | quota | unit | values | last to first | slope | |\n|---|---|---|---|---|---|---|---|---|")
		var panels []plot.Panel
		for _, same := range groups(over, func(r row) string { return fmt.Sprint(r.Operation, "/", r.Inflight) }) {
			title := same[0].Operation
			if same[0].Inflight > 0 {
				title = fmt.Sprintf("%s, %d at once", title, same[0].Inflight)
			}
			p := plot.Panel{Log: true, Title: title, X: what, Y: same[0].Unit}
			for _, curve := range groups(same, func(r row) string { return r.OursName + r.Quota }) {
				l := plot.Line{Name: curve[0].OursName + ", quota " + curve[0].Quota, Points: pointsOf(curve)}
				p.Lines = append(p.Lines, l)
				slope := costSlope(l.Points, curve[0].Better)
				more := costRatio(l.Points, curve[0].Better)
				d.line("| %s | %s | %s | %s | %s | %s | %.2f | %.2f | %s |", curve[0].Operation, several(curve[0].Inflight), curve[0].OursName, curve[0].Quota, curve[0].Unit, values(curve), more, slope, why(curve[0], more, same))
			}
			if len(p.Measured()) > 1 {
				panels = append(panels, p)
			}
		}
		d.show("growth-"+what, "cost over the number of "+what, panels)
	}
}

func pointsOf(rows []row) (all []plot.Point) {
	for _, r := range rows {
		all = append(all, plot.Point{X: r.X, Y: r.Ours})
	}
	slices.SortFunc(all, func(a, b plot.Point) int { return cmp.Compare(a.X, b.X) })
	return all
}

func values(rows []row) string {
	var all []string
	for _, r := range rows {
		all = append(all, fmt.Sprintf("%s: %s", number(r.X), number(r.Ours)))
	}
	return strings.Join(all, ", ")
}

// costSlope returns the exponent with which a cost grows, by least squares over the logarithms. A rate
// is the inverse of a cost.
func costSlope(points []plot.Point, better string) float64 {
	var n, sumX, sumY, sumXX, sumXY float64
	for _, p := range points {
		if p.X <= 0 || p.Y <= 0 {
			continue
		}
		x, y := math.Log(p.X), math.Log(p.Y)
		n, sumX, sumY, sumXX, sumXY = n+1, sumX+x, sumY+y, sumXX+x*x, sumXY+x*y
	}
	spread := n*sumXX - sumX*sumX
	if spread == 0 {
		return 0
	}
	slope := (n*sumXY - sumX*sumY) / spread
	if better == higher {
		return -slope
	}
	return slope
}

// costRatio returns the cost of the last point divided by that of the first.
func costRatio(points []plot.Point, better string) float64 {
	if len(points) == 0 || points[0].Y == 0 || points[len(points)-1].Y == 0 {
		return 0
	}
	ratio := points[len(points)-1].Y / points[0].Y
	if better == higher {
		return 1 / ratio
	}
	return ratio
}

// flat is the largest ratio of a curve that is called flat.
const flat = 1.2

// why explains a curve that is not flat, if it can.
func why(r row, more float64, rows []row) string {
	switch {
	case more <= flat:
		return "flat"
	case r.OursName == sideRawSeparate:
		return "the filesystem itself"
	case r.Operation == opGroup, r.Operation == opGroupTries:
		return "each member is a slot, a record and a snapshot, and all have to meet in one transaction"
	case r.Operation == opList:
		return "all are listed"
	case r.Operation == "start-up":
		return "each record is read and compared with its subvolume"
	case r.Operation == "memory":
		return "the index, a file that is mapped, is read as it is used"
	case r.Quota == string(btrfs.QuotaFull) && r.XName != "volumes":
		return "full quota finds all who share an extent, in the kernel"
	}
	var raw []row
	for _, other := range rows {
		if other.OursName == sideRawSeparate && other.Quota == r.Quota {
			raw = append(raw, other)
		}
	}
	switch itself := costRatio(pointsOf(raw), r.Better); {
	case itself > flat:
		return fmt.Sprintf("the ioctls alone take %.2f times as much", itself)
	case itself > 0:
		return fmt.Sprintf("not explained: the ioctls alone take %.2f times as much", itself)
	}
	return "not explained"
}

func ofTopic(rows []row, topic string) []row {
	return slices.DeleteFunc(slices.Clone(rows), func(r row) bool { return r.Topic != topic })
}

// groups groups rows by key, in the order in which the keys appear.
func groups(rows []row, key func(row) string) (all [][]row) {
	at := map[string]int{}
	for _, r := range rows {
		i, ok := at[key(r)]
		if !ok {
			i = len(all)
			at[key(r)] = i
			all = append(all, nil)
		}
		all[i] = append(all[i], r)
	}
	return all
}
