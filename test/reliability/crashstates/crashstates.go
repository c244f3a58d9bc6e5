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

// all means every one, in options that otherwise say how many to draw.
const all = -1

// Options say which histories to record. Run records those of one call with every interference.
type Options struct {
	Dir    string            // an empty directory
	Binary string            // btrfs-csi, to start on some states; "" to start all drivers in this process
	Quota  []btrfs.QuotaMode // all at the same time; nil for every mode
	Seed   uint64            // 0 for a random one
	Log    func(format string, args ...any)

	// Triples is the number of histories of three calls to draw in each mode; -1 for all.
	Triples int
	// Interferences is the number to draw for each history of more than one call; -1 for all. The
	// undisturbed history comes besides.
	Interferences int
	// Only is a regular expression for the names of the histories to record. Failures have these names.
	Only string
}

const (
	// mostRuns is the largest number of states to run between two flushes.
	mostRuns = 256
	// oneInProcess means that one in so many states gets the binary.
	oneInProcess = 64
	// oneSampled means that in one of so many histories a state runs that equals another to any reader.
	oneSampled = 16
)

// Report has the figures of Run.
type Report struct {
	Version   string          `json:"version"` // of the driver
	Kernel    string          `json:"kernel"`
	Began     time.Time       `json:"began"`
	Seed      uint64          `json:"seed"`
	Elapsed   time.Duration   `json:"elapsed"`
	Sequences [3]int          `json:"sequences"` // of one, two and three calls
	Of        [3]int          `json:"of"`        // the number of all such sequences
	Drawn     int             `json:"drawn"`     // interferences for each sequence of more than one call; -1: all
	Histories int             `json:"histories"` // sequences, by quota and interference
	Committed int             `json:"committed"` // of these, with a commit of others between two steps
	Killed    int             `json:"killed"`    // of these, with a driver that was killed between two steps
	Processes int             `json:"processes"` // states that the binary was started on
	Counts    writelog.Counts `json:"counts"`
	Mutants   []Found         `json:"mutants,omitempty"`
}

// Run records histories, and starts a driver on every state that a power cut leaves during their
// last call and after it. It stops at the first state that is wrong.
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

// part is the part of Run with one quota mode.
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

// draw draws so many elements of a list, and keeps their order.
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

// sequence records the histories of one sequence. The undisturbed one shows the steps at which others
// can interfere.
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

// one records one history, and explores it if Only matches its name.
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
