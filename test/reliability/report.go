package reliability

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"
)

// Report has the figures of a run.
type Report struct {
	Seed         uint64             `json:"seed"`
	Elapsed      time.Duration      `json:"elapsed"`
	Kills        int                `json:"kills"`
	KillsAtStart int                `json:"killsAtStart"` // of these, before the driver served
	Cuts         int                `json:"cuts"`
	Restarts     int                `json:"restarts"`
	AtKills      InFlight           `json:"atKills"` // what had been in flight
	AtCuts       InFlight           `json:"atCuts"`
	Foreign      int                `json:"foreign"`    // commits of others between two steps of an operation
	Delays       int                `json:"delays"`     // steps that were made to wait
	Repairs      map[string]int     `json:"repairs"`    // what drivers that started found half done, and did about it
	LongestCut   time.Duration      `json:"longestCut"` // how long a copy of the image took
	Objects      int                `json:"objects"`    // volumes and snapshots that were asked for
	Requests     map[string]Answers `json:"requests"`
	Writes       int                `json:"writes"` // files written and fsynced

	// Of a driver that was left alone.
	Samples   []Sample             `json:"samples,omitempty"`
	Latencies map[string][]Latency `json:"latencies,omitempty"` // by kind of request

	counts *counts
}

// Answers counts the requests of one kind.
type Answers struct {
	Sent         int `json:"sent"`
	Acknowledged int `json:"acknowledged"`
	Refused      int `json:"refused"`    // for good
	Unanswered   int `json:"unanswered"` // broken off, or to be asked again
}

func (t *InFlight) add(other InFlight) {
	t.Whole += other.Whole
	t.Absent += other.Absent
}

// counts are what the workers add to.
type counts struct {
	mu       sync.Mutex // protects what follows
	requests map[string]*Answers
	repairs  map[string]int
	foreign  int
	delays   int
	writes   int
	began    time.Time // zero: requests are not timed
	timings  map[string][]timing
}

// time has requests be timed from now on.
func (c *counts) time(began time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.began, c.timings = began, map[string][]timing{}
}

func (c *counts) repair(what string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.repairs[what]++
}

func (c *counts) disturb(commit, wait bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if commit {
		c.foreign++
	}
	if wait {
		c.delays++
	}
}

func (c *counts) write() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.writes++
}

// add counts a request that was sent at some time and has just been answered. What
// provokes is for a request that is known by its name, which is no method, and is not timed.
func (c *counts) add(what string, err error, sent time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	a := c.requests[what]
	if a == nil {
		a = &Answers{}
		c.requests[what] = a
	}
	a.Sent++
	switch {
	case err == nil:
		a.Acknowledged++
		if !c.began.IsZero() && !strings.Contains(what, " ") {
			c.timings[what] = append(c.timings[what], timing{sent.Sub(c.began), time.Since(sent)})
		}
	case final(err):
		a.Refused++
	default:
		a.Unanswered++
	}
}

// sent returns how many requests were sent so far.
func (c *counts) sent() (n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, a := range c.requests {
		n += a.Sent
	}
	return n
}

// fill writes what the workers counted into a report.
func (c *counts) fill(r *Report) {
	c.mu.Lock()
	defer c.mu.Unlock()
	r.Writes, r.Foreign, r.Delays = c.writes, c.foreign, c.delays
	r.Repairs = maps.Clone(c.repairs)
	r.Requests = map[string]Answers{}
	for what, a := range c.requests {
		r.Requests[what] = *a
	}
}

// Total adds up all kinds of requests.
func (r Report) Total() Answers {
	var total Answers
	for _, a := range r.Requests {
		total.add(a)
	}
	return total
}

func (a *Answers) add(other Answers) {
	a.Sent += other.Sent
	a.Acknowledged += other.Acknowledged
	a.Refused += other.Refused
	a.Unanswered += other.Unanswered
}

// String returns a few lines for people.
func (r Report) String() string {
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

// methods are the requests by method, and apart from them those that repeat or provoke.
func (r Report) methods() map[string]Answers {
	methods := map[string]Answers{}
	for what, a := range r.Requests {
		if method, _, otherwise := strings.Cut(what, " "); otherwise {
			what = strings.TrimSuffix(method, ",") + ", repeated or wrong"
		}
		a.add(methods[what])
		methods[what] = a
	}
	return methods
}
