package soak

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/btrfs-csi/btrfs-csi/test/reliability/load"
	"github.com/btrfs-csi/btrfs-csi/test/reliability/node"
)

// PartReport has the figures of a part.
type PartReport struct {
	Seed         uint64                  `json:"seed"`
	Elapsed      time.Duration           `json:"elapsed"`
	Kills        int                     `json:"kills"`
	KillsAtStart int                     `json:"killsAtStart"` // of these, before the driver served
	Cuts         int                     `json:"cuts"`
	Restarts     int                     `json:"restarts"`
	AtKills      node.InFlight           `json:"atKills"` // requests that had been in flight
	AtCuts       node.InFlight           `json:"atCuts"`
	Foreign      int                     `json:"foreign"`    // commits of others between two steps of an operation
	Delays       int                     `json:"delays"`     // steps that were made to wait
	Repairs      map[string]int          `json:"repairs"`    // by the problem that a starting driver found and the repair that it made
	LongestCut   time.Duration           `json:"longestCut"` // time to copy the image
	Objects      int                     `json:"objects"`    // volumes and snapshots that were requested
	Requests     map[string]load.Answers `json:"requests"`
	Writes       int                     `json:"writes"` // files written and fsynced

	// These are of a driver that was left alone.
	Samples   []Sample                  `json:"samples,omitempty"`
	Latencies map[string][]load.Latency `json:"latencies,omitempty"` // by kind of request

	counts *load.Counts
	logged *node.Logged
}

// fill copies the counts into the report.
func (r *PartReport) fill() {
	r.Writes, r.Requests = r.counts.Report()
	r.Repairs, r.Foreign, r.Delays = maps.Clone(r.logged.Repairs), r.logged.Foreign, r.logged.Delays
}

// Total adds up all kinds of requests.
func (r PartReport) Total() load.Answers {
	var total load.Answers
	for _, a := range r.Requests {
		total.Add(a)
	}
	return total
}

// String returns a few lines for people.
func (r PartReport) String() string {
	var b strings.Builder
	total := r.Total()
	fmt.Fprintf(&b, "seed %d, %v\n", r.Seed, r.Elapsed.Round(time.Second))
	fmt.Fprintf(&b, "%d kills (%d of a driver that was starting), %d power cuts (a copy took %v at most), %d restarts\n",
		r.Kills, r.KillsAtStart, r.Cuts, r.LongestCut.Round(time.Millisecond), r.Restarts)
	fmt.Fprintf(&b, "%d requests sent, %d acknowledged, %d refused, %d unanswered; %d volumes and snapshots; %d files written\n",
		total.Sent, total.Acknowledged, total.Refused, total.Unanswered, r.Objects, r.Writes)
	fmt.Fprintf(&b, "in flight at kills: %d whole, %d absent; at cuts: %d whole, %d absent\n",
		r.AtKills.Whole, r.AtKills.Absent, r.AtCuts.Whole, r.AtCuts.Absent)
	if r.Foreign+r.Delays > 0 {
		fmt.Fprintf(&b, "%d times somebody else committed between two steps of an operation, %d times a step was made to wait\n", r.Foreign, r.Delays)
	}
	for _, what := range slices.Sorted(maps.Keys(r.Repairs)) {
		fmt.Fprintf(&b, "  %d times mended at a start: %s\n", r.Repairs[what], what)
	}
	methods := r.methods()
	for _, what := range slices.Sorted(maps.Keys(methods)) {
		a := methods[what]
		fmt.Fprintf(&b, "  %-40s %6d sent %6d acknowledged %5d refused %5d unanswered\n", what, a.Sent, a.Acknowledged, a.Refused, a.Unanswered)
	}
	return b.String()
}

// methods returns the requests by method. Repeated and wrong requests are apart.
func (r PartReport) methods() map[string]load.Answers {
	methods := map[string]load.Answers{}
	for what, a := range r.Requests {
		if method, _, otherwise := strings.Cut(what, " "); otherwise {
			what = strings.TrimSuffix(method, ",") + ", repeated or wrong"
		}
		a.Add(methods[what])
		methods[what] = a
	}
	return methods
}
