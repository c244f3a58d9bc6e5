package crashstates

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs"
	"github.com/btrfs-csi/btrfs-csi/test/reliability/node"
	"github.com/btrfs-csi/btrfs-csi/test/reliability/writelog"
)

// all is every one, where a number says how many are drawn.
const all = -1

// Options say which histories to record. Those of one call are recorded with every
// interference.
type Options struct {
	Dir    string            // an empty directory
	Binary string            // btrfs-csi, which some states are started with; empty: all in this process
	Quota  []btrfs.QuotaMode // all without it; they take turns on several CPUs
	Seed   uint64            // a random one without it
	Log    func(format string, args ...any)

	// Triples is how many histories of three calls are drawn in each mode; -1 for all.
	Triples int
	// Interferences is how many are drawn for each history of more than one call, beside the
	// undisturbed one; -1 for all.
	Interferences int
	// Only is for the names of the histories to record, as failures have them; empty for all.
	Only string
}

const (
	// mostRuns is how many states between two flushes are run at most.
	mostRuns = 256
	// oneInProcess is of how many states one is started with the binary.
	oneInProcess = 64
	// oneSampled is of how many histories one has states run that are the same as others.
	oneSampled = 16
)

// Report has the figures of CrashStates.
type Report struct {
	Version   string          `json:"version"` // of the driver
	Kernel    string          `json:"kernel"`
	Began     time.Time       `json:"began"`
	Seed      uint64          `json:"seed"`
	Elapsed   time.Duration   `json:"elapsed"`
	Sequences [3]int          `json:"sequences"` // of one, two and three calls
	Of        [3]int          `json:"of"`        // how many there are
	Drawn     int             `json:"drawn"`     // interferences for each sequence of more than one call; -1: all
	Histories int             `json:"histories"` // sequences, by quota and interference
	Committed int             `json:"committed"` // of these, with a commit of others between two steps
	Killed    int             `json:"killed"`    // of these, with a driver that was killed between two steps
	Processes int             `json:"processes"` // states that the binary was started on
	Counts    writelog.Counts `json:"counts"`
	Mutants   []Found         `json:"mutants,omitempty"`
}

// Run records histories, and starts a driver on every state that a power cut during
// their last call leaves, and after it. It stops at the first that is not as it should be.
func Run(ctx context.Context, o Options) (Report, error) {
	if o.Seed == 0 {
		o.Seed = rand.Uint64() >> 32
	}
	if o.Log == nil {
		o.Log = func(string, ...any) {}
	}
	if len(o.Quota) == 0 {
		o.Quota = node.Modes()
	}
	only, err := regexp.Compile(o.Only)
	if err != nil {
		return Report{}, err
	}
	report := Report{Seed: o.Seed, Began: time.Now().UTC(), Drawn: o.Interferences}
	for i := range report.Of {
		report.Of[i] = len(sequences(i + 1))
	}
	if report.Kernel, err = node.Kernel(); err != nil {
		return report, err
	}
	if o.Binary != "" {
		if report.Version, err = node.Version(ctx, o.Binary); err != nil {
			return report, err
		}
	}
	var mu sync.Mutex // protects report
	group, ctx := errgroup.WithContext(ctx)
	for _, quota := range o.Quota {
		p := &part{Options: o, only: only, quota: quota, random: rand.New(rand.NewPCG(o.Seed, uint64(len(quota))))}
		group.Go(func() error {
			err := p.run(ctx)
			mu.Lock()
			defer mu.Unlock()
			report.add(p)
			return err
		})
	}
	err = group.Wait()
	report.Elapsed = time.Since(report.Began)
	if err != nil {
		err = fmt.Errorf("seed %d: %w", o.Seed, err)
	}
	return report, err
}

func (r *Report) add(p *part) {
	r.Sequences = p.sequences
	r.Histories += p.histories
	r.Committed += p.committed
	r.Killed += p.killed
	r.Processes += p.processes
	r.Counts.Add(p.counts)
}

// part is the part of CrashStates in one kind of quota.
type part struct {
	Options
	*recorder
	only   *regexp.Regexp
	quota  btrfs.QuotaMode
	random *rand.Rand

	sequences                    [3]int
	histories, committed, killed int
	processes                    int
	counts                       writelog.Counts
}

func (p *part) run(ctx context.Context) (err error) {
	dir := filepath.Join(p.Dir, string(p.quota))
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	if p.recorder, err = newRecorder(ctx, dir, p.quota); err != nil {
		return err
	}
	p.binary = p.Binary
	defer func() { p.processes = p.recorder.processes; err = errors.Join(err, p.recorder.close()) }()
	for length := 1; length <= len(p.sequences); length++ {
		drawn := sequences(length)
		if length == 3 {
			drawn = draw(p.random, drawn, p.Triples)
		}
		p.sequences[length-1] = len(drawn)
		for i, sequence := range drawn {
			if err := p.sequence(ctx, sequence); err != nil {
				return err
			}
			p.Log("quota %s: %d of %d histories of %d calls, %d states run", p.quota, i+1, len(drawn), length, p.counts.Runs)
		}
	}
	return nil
}

// draw draws so many of a list, in its order.
func draw[T any](random *rand.Rand, from []T, most int) []T {
	if most == all || most >= len(from) {
		return from
	}
	at := random.Perm(len(from))[:most]
	slices.Sort(at)
	drawn := make([]T, 0, most)
	for _, i := range at {
		drawn = append(drawn, from[i])
	}
	return drawn
}

// sequence records the histories of one sequence: undisturbed, which shows what can
// interfere, and with interferences.
func (p *part) sequence(ctx context.Context, sequence []call) error {
	interferences, err := p.one(ctx, sequence, interference{})
	if err != nil {
		return err
	}
	if len(sequence) > 1 {
		interferences = draw(p.random, interferences, p.Interferences)
	}
	for _, i := range interferences {
		if _, err := p.one(ctx, sequence, i); err != nil {
			return err
		}
	}
	return nil
}

// one records one history, and explores it unless it is not wanted.
func (p *part) one(ctx context.Context, sequence []call, i interference) ([]interference, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	wanted := p.only.MatchString(historyName(p.quota, sequence, i))
	if !wanted && i.kind != undisturbed {
		return nil, nil
	}
	rec, err := p.record(ctx, sequence, i)
	if err != nil {
		return nil, err
	}
	if !wanted {
		return rec.interferences(), rec.disk.Drop()
	}
	samples := 0
	if p.random.IntN(oneSampled) == 0 {
		samples = 1
	}
	counts, err := p.explore(ctx, rec, p.random, mostRuns, samples)
	p.counts.Add(counts)
	p.histories++
	switch i.kind {
	case committed:
		p.committed++
	case killed:
		p.killed++
	}
	return rec.interferences(), err
}

// String returns the figures for people.
func (r Report) String() string {
	var b strings.Builder
	c := r.Counts
	fmt.Fprintf(&b, "seed %d, %v: %d histories of %v of %v sequences of one, two and three calls, %d with a commit of others, %d with a driver that was killed\n",
		r.Seed, r.Elapsed.Round(time.Second), r.Histories, r.Sequences, r.Of, r.Committed, r.Killed)
	fmt.Fprintf(&b, "%d writes of %d pages and %d flushes, up to %d pages between two; %d instants; %d states run, %d of them drawn from those that are the same as others, %d with the binary; %d branches left out\n",
		c.Writes, c.Pages, c.Flushes, c.Widest, c.Instants, c.Runs, c.Samples, r.Processes, c.LeftOut)
	for _, m := range r.Mutants {
		fmt.Fprintf(&b, "found after %d histories and %d states: %s\n", m.Histories, m.Runs, m.Name)
	}
	return b.String()
}
