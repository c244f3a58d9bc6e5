package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"path/filepath"
	"slices"
	"time"

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs"
	"github.com/btrfs-csi/btrfs-csi/test/testkit"
)

// volumesGrow compares sides with many volumes with themselves with few. The first side has to reach
// its aim. The others show the part of the filesystem.
func volumesGrow(quota btrfs.QuotaMode, inflight, rounds int, sides []string, want map[string]float64, operations []string, counts ...int) part {
	c := contest{
		topic: topicGrowth, inflight: inflight, quota: quota, rounds: rounds, limit: limit{512, 500 * time.Millisecond},
		operations: operations, xName: "volumes",
	}
	for k, side := range sides {
		for i, n := range counts {
			c.contestants = append(c.contestants, contestant{side, n})
			c.pairs = append(c.pairs, pair{ours: k*len(counts) + i, peer: k * len(counts)})
		}
	}
	c.pairs[len(counts)-1].want = want
	return c.part(fmt.Sprintf("growth/volumes/%d/%s", inflight, quota))
}

// processGrows measures the memory and the start time of the driver with more and more volumes.
func processGrows(quota btrfs.QuotaMode, rounds int, counts ...int) part {
	p := part{name: fmt.Sprintf("growth/process/%s", quota), seconds: float64(rounds*len(counts)) * 2}
	p.run = func(ctx context.Context, b *bench) (rows []row, err error) {
		start, memory, files := points{}, points{}, points{}
		for _, n := range counts {
			if err := b.process(ctx, contestant{sideDriver, n}, quota, rounds, start, memory, files); err != nil {
				return nil, err
			}
		}
		r := row{Topic: topicGrowth, Quota: string(quota), OursName: sideDriver, XName: "volumes"}
		for _, curve := range []struct {
			name string
			unit unit
			points
		}{{"start-up", milliseconds, start}, {"memory", mebibytes, memory}, {"open files", descriptors, files}} {
			r.Operation = curve.name
			rows = append(rows, r.curve(curve.unit, curve.points)...)
		}
		return rows, nil
	}
	return p
}

// process starts the driver repeatedly, and lets it work before it measures the memory.
func (b *bench) process(ctx context.Context, c contestant, quota btrfs.QuotaMode, rounds int, start, memory, files points) (err error) {
	b.progress("%s", c)
	s, err := b.open(ctx, c, quota, nil)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	for range rounds {
		if err := s.restart(ctx, b); err != nil {
			return err
		}
		d := s.side.(*driver)
		start.add(c.existing, float64(d.Ready.Microseconds())/1000)
		for _, name := range []string{opCreate, opSnapshot, opClear} {
			if _, err := perform(ctx, d.operations()[name], 64, limit{512, math.MaxInt64}); err != nil {
				return err
			}
		}
		used, errMemory := residentMiB(d.Cmd.Process.Pid)
		open, errFiles := openFiles(d.Cmd.Process.Pid)
		if err := errors.Join(errMemory, errFiles); err != nil {
			return err
		}
		memory.add(c.existing, used)
		files.add(c.existing, open)
	}
	return nil
}

// restart ends the driver and starts it again.
func (s *stand) restart(ctx context.Context, b *bench) error {
	err := s.side.close()
	s.side = nothing{}
	if err != nil {
		return err
	}
	next, err := b.sides[sideDriver](ctx, s.rig)
	if err == nil {
		s.side = next
	}
	return err
}

// nothing is the side of a stand whose driver has ended.
type nothing struct{}

func (nothing) operations() map[string]operation { return nil }
func (nothing) close() error                     { return nil }

// snapshotsGrow measures the cost of creating and of removing a snapshot of a volume with more and more
// snapshots, each with other data. It does the same with the ioctls alone.
func snapshotsGrow(quota btrfs.QuotaMode, counts ...int) part {
	p := part{name: fmt.Sprintf("growth/snapshots/%s", quota), seconds: 10 + float64(slices.Max(counts))/10}
	p.run = func(ctx context.Context, b *bench) (rows []row, err error) {
		for _, side := range []string{sideDriver, sideRawSeparate} {
			found, err := b.snapshots(ctx, side, quota, counts)
			if err != nil {
				return nil, err
			}
			rows = append(rows, found...)
		}
		return rows, nil
	}
	return p
}

func (b *bench) snapshots(ctx context.Context, side string, quota btrfs.QuotaMode, counts []int) (rows []row, err error) {
	s, err := b.open(ctx, contestant{side: side}, quota, nil)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	operations := s.operations()
	if err := operations[opCreate](ctx, 0); err != nil {
		return nil, err
	}
	dir := s.volumePath(volumeName(0))
	if side != sideDriver {
		_, dir = s.side.(raw).place(volumeName(0))
	}
	if err := writeNoise(dataSize, dataIn(dir)); err != nil {
		return nil, err
	}
	made, err := b.series(ctx, side+": snapshot", slices.Max(counts), func(int) error { return scribble(dataIn(dir)) }, func(i int) error {
		return operations[opSnapshotAgain](ctx, i)
	})
	if err != nil {
		return nil, err
	}
	removed, err := b.series(ctx, side+": removal", len(made), nil, func(i int) error { return operations[opDeleteSnapshot](ctx, i) })
	removed = backwards(removed, len(made)) // the first removal was with all snapshots present
	r := row{Topic: topicGrowth, Operation: "snapshot of one volume", Inflight: 1, Quota: string(quota), OursName: side, XName: "snapshots"}
	rows = r.curve(milliseconds, windows(made, counts))
	r.Operation = "delete a snapshot of one volume"
	return append(rows, r.curve(milliseconds, windows(removed, counts))...), err
}

// lineageGrows measures the cost of a clone of a clone of a clone, and of its removal.
func lineageGrows(quota btrfs.QuotaMode, counts ...int) part {
	most := slices.Max(counts)
	p := part{name: fmt.Sprintf("growth/generations/%s", quota), seconds: 5 + float64(most)/50}
	p.run = func(ctx context.Context, b *bench) (rows []row, err error) {
		s, err := b.open(ctx, contestant{side: sideDriver}, quota, nil)
		if err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, s.close()) }()
		d := s.side.(*driver)
		file := filepath.Join(s.volumePath(volumeName(0)), "data")
		if err := errors.Join(d.create(ctx, volumeName(0), nil, testkit.Writer), writeNoise(1<<20, file)); err != nil {
			return nil, err
		}
		made, err := b.series(ctx, "generation", most, nil, func(i int) error {
			return d.create(ctx, volumeName(i+1), testkit.FromVolume(volumeName(i)), testkit.Writer)
		})
		if err != nil {
			return nil, err
		}
		removed, err := b.series(ctx, "removal", len(made), nil, func(i int) error { return d.delete(ctx, volumeName(len(made)-i)) })
		removed = backwards(removed, len(made)) // the last generation was removed first
		r := row{Topic: topicGrowth, Operation: "clone of a clone", Inflight: 1, Quota: string(quota), OursName: sideDriver, XName: "generations"}
		rows = r.curve(milliseconds, windows(made, counts))
		r.Operation = "delete of a clone of a clone"
		return append(rows, r.curve(milliseconds, windows(removed, counts))...), err
	}
	return p
}

// seriesTime limits the time of a series.
const seriesTime = time.Minute

// series times act for 0 to n-1, one after the other, in ms. It stops after seriesTime. before is not
// timed.
func (b *bench) series(ctx context.Context, what string, n int, before, act func(i int) error) (times []float64, err error) {
	for i, end := 0, time.Now().Add(seriesTime); i < n && time.Now().Before(end); i++ {
		if i%100 == 0 {
			b.progress("%s %d of %d", what, i, n)
		}
		if before != nil {
			if err := before(i); err != nil {
				return times, err
			}
		}
		begin := time.Now()
		if err := errors.Join(act(i), ctx.Err()); err != nil {
			return times, err
		}
		times = append(times, float64(time.Since(begin).Microseconds())/1000)
	}
	return times, nil
}

// backwards sorts the times of removals by how many existed at each. The first removal was with n.
// Those that were not measured are NaN.
func backwards(times []float64, n int) []float64 {
	all := make([]float64, n)
	for i := range all {
		all[i] = math.NaN()
		if k := n - 1 - i; k < len(times) {
			all[i] = times[k]
		}
	}
	return all
}

// points are the measured values at each count.
type points map[int][]float64

func (p points) add(count int, value float64) { p[count] = append(p[count], value) }

// windowSize is the number of values for one point.
const windowSize = 10

// windows returns the last windowSize values before each count.
func windows(series []float64, counts []int) points {
	p := points{}
	for _, n := range counts {
		if n <= len(series) && !math.IsNaN(series[n-1]) && !math.IsNaN(series[max(0, n-windowSize)]) {
			p[n] = series[max(0, n-windowSize):n]
		}
	}
	return p
}

// curve returns a row for each point, compared with the first.
func (r row) curve(u unit, p points) (rows []row) {
	counts := make([]int, 0, len(p))
	for n := range p {
		counts = append(counts, n)
	}
	slices.Sort(counts)
	for _, n := range counts {
		next := r
		if r.XName == "volumes" {
			next.Existing = n
		}
		next.X, next.PeerName = float64(n), fmt.Sprintf("%d %s", counts[0], r.XName)
		rows = append(rows, next.compare(u, p[n], p[counts[0]]))
	}
	return rows
}
