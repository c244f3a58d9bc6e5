package soak

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs"
	"github.com/btrfs-csi/btrfs-csi/test/reliability/fuzz"
	"github.com/btrfs-csi/btrfs-csi/test/reliability/load"
	"github.com/btrfs-csi/btrfs-csi/test/reliability/node"
	"github.com/btrfs-csi/btrfs-csi/test/testkit"
)

// Options are the options of a soak.
type Options struct {
	Binary string // btrfs-csi
	Dir    string // for a temporary directory with the pools; not on btrfs
	Time   time.Duration
	Kills  int // at most; the time may suffice for fewer
	Cuts   int
	Seed   uint64 // 0 for a random one
	Log    func(format string, args ...any)

	Fuzz   time.Duration // for each target, after Time; 0 for no fuzzing
	Source string        // directory of the driver's module, for the fuzz targets and the disturbed driver
}

// These are shares of the time. The driver that is left alone gets the rest.
const (
	shareOfKills = 0.40
	shareOfCuts  = 0.35
)

const (
	// leastAlone is the least time for the driver that is left alone.
	leastAlone = 30 * time.Second
	// samples is the number of samples of that driver.
	samples = 300
)

// Report has the figures of a soak.
type Report struct {
	Version string    `json:"version"` // of the driver
	Kernel  string    `json:"kernel"`
	CPUs    int       `json:"cpus"`
	Began   time.Time `json:"began"`
	Seed    uint64    `json:"seed"`
	Wanted  struct {
		Kills int `json:"kills"`
		Cuts  int `json:"cuts"`
	} `json:"wanted"`
	Kills PartReport  `json:"kills"` // drivers that were killed
	Cuts  PartReport  `json:"cuts"`  // drivers whose power was cut
	Alone PartReport  `json:"alone"` // one driver that was left alone
	Fuzz  fuzz.Report `json:"fuzz"`
}

// Run kills drivers, cuts their power, leaves one alone, and fuzzes. It stops at the first error.
// The report covers what was done until then.
func Run(ctx context.Context, o Options) (Report, error) {
	if o.Seed == 0 {
		o.Seed = rand.Uint64() >> 32
	}
	r := Report{CPUs: runtime.NumCPU(), Began: time.Now().UTC(), Seed: o.Seed}
	r.Wanted.Kills, r.Wanted.Cuts = o.Kills, o.Cuts
	var err error
	if r.Version, err = node.Version(ctx, o.Binary); err != nil {
		return r, err
	}
	if r.Kernel, err = node.Kernel(); err != nil {
		return r, err
	}
	built, err := os.MkdirTemp("", "btrfs-csi-disturbed-")
	if err != nil {
		return r, err
	}
	defer os.RemoveAll(built)
	disturbed := filepath.Join(built, "btrfs-csi")
	if err := node.BuildDisturbed(ctx, o.Source, disturbed); err != nil {
		return r, err
	}
	o.Log("seed %d; %v for %d kills, %d power cuts and one driver that is left alone", o.Seed, o.Time, o.Kills, o.Cuts)
	if err := r.run(ctx, o, disturbed); err != nil {
		return r, err
	}
	if o.Fuzz > 0 {
		r.Fuzz, err = fuzz.Run(ctx, o.Source, o.Fuzz, o.Log)
	}
	return r, err
}

// run runs all parts but the fuzzing, one after the other.
func (r *Report) run(ctx context.Context, o Options, disturbed string) error {
	for _, part := range []struct {
		name    string
		options func() partOptions
		report  *PartReport
	}{
		{"killed", func() partOptions {
			return partOptions{Kills: o.Kills, Disturbed: disturbed, Limit: time.Duration(shareOfKills * float64(o.Time))}
		}, &r.Kills},
		{"power-cut", func() partOptions {
			return partOptions{Cuts: o.Cuts, Disturbed: disturbed, Limit: time.Duration(shareOfCuts * float64(o.Time))}
		}, &r.Cuts},
		{"left-alone", func() partOptions { // with the default quota mode
			left := max(o.Time-r.Kills.Elapsed-r.Cuts.Elapsed, leastAlone)
			return partOptions{Duration: left, Sample: left / samples, Quota: []btrfs.QuotaMode{btrfs.QuotaFull}}
		}, &r.Alone},
	} {
		options := part.options()
		options.Binary, options.Seed, options.Log = o.Binary, o.Seed, o.Log
		err := testkit.InDirectory(o.Dir, part.name, func(dir string) (err error) {
			options.Dir = dir
			*part.report, err = runPart(ctx, options)
			return err
		})
		if err != nil {
			return fmt.Errorf("%s: %w", part.name, err)
		}
	}
	return nil
}

// Total adds up the requests of all parts.
func (r Report) Total() load.Answers {
	var total load.Answers
	for _, part := range []PartReport{r.Kills, r.Cuts, r.Alone} {
		total.Add(part.Total())
	}
	return total
}

// String returns the figures for people.
func (r Report) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s on Linux %s, %d CPUs, %s, seed %d\n\n", r.Version, r.Kernel, r.CPUs, r.Began.Format(time.RFC3339), r.Seed)
	for _, part := range []struct {
		name string
		PartReport
	}{{"Killed", r.Kills}, {"Power cut", r.Cuts}, {"Left alone", r.Alone}} {
		fmt.Fprintf(&b, "%s: %s\n", part.name, part.PartReport)
	}
	b.WriteString(r.Fuzz.String())
	total := r.Total()
	fmt.Fprintf(&b, "All: %d kills, %d power cuts, %d requests, %d of them acknowledged, %v fuzzed\n",
		r.TotalKills(), r.Cuts.Cuts, total.Sent, total.Acknowledged, r.Fuzz.Elapsed().Round(time.Second))
	return b.String()
}

// TotalKills also counts the kills between power cuts.
func (r Report) TotalKills() int { return r.Kills.Kills + r.Cuts.Kills }
