package soak

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs"
	"github.com/btrfs-csi/btrfs-csi/test/reliability/load"
	"github.com/btrfs-csi/btrfs-csi/test/reliability/model"
	"github.com/btrfs-csi/btrfs-csi/test/reliability/node"
)

const mib = 1 << 20

// partOptions say what to do to a driver.
type partOptions struct {
	Binary string // btrfs-csi
	// Disturbed is the binary of BuildDisturbed, which takes turns with the other where there
	// are kills or cuts; empty for none.
	Disturbed string
	Dir       string // an empty directory for the pools, not on btrfs
	Kills     int
	Cuts      int
	// Duration is how long to go on at least. Kills and cuts go on for as long, or, where
	// there are to be none, the load alone.
	Duration time.Duration
	// Limit is how long to go on at most, whatever kills and cuts are left then. 0 is as
	// long as it takes.
	Limit   time.Duration
	Quota   []btrfs.QuotaMode // that take turns; all without it
	Workers int               // 12 without it
	Seed    uint64            // a random one without it
	Log     func(format string, args ...any)
	// Sample is how often to look at the driver's process and how long its answers take.
	// Only for one that is left alone, without kills and cuts.
	Sample time.Duration
}

// leg is the part of a run that is done to one node.
type leg struct {
	*model.Model
	*load.Gate
	options partOptions
	report  *PartReport
	node    *node.Node
	random  *rand.Rand
	closed  string // a copy of the index as the driver left it when it was last stopped; empty for none
	kills   int    // rounds that began with one
	cuts    int
}

// runPart puts drivers under load, each with its own pool and kind of quota, kills them
// and cuts their power. It returns at the first thing that is not as it should be.
// Whatever comes of it, all is unmounted and taken away.
func runPart(ctx context.Context, o partOptions) (PartReport, error) {
	if o.Seed == 0 {
		o.Seed = rand.Uint64() >> 32
	}
	o.Workers = cmp.Or(o.Workers, 12)
	if o.Log == nil {
		o.Log = func(string, ...any) {}
	}
	if len(o.Quota) == 0 {
		o.Quota = node.Modes()
	}
	report := PartReport{Seed: o.Seed, counts: load.NewCounts(), logged: node.NewLogged()}
	began := time.Now()
	var errs []error
	for i, quota := range o.Quota {
		part := o
		part.Kills, part.Cuts = share(o.Kills, i, len(o.Quota)), share(o.Cuts, i, len(o.Quota))
		part.Duration, part.Limit = o.Duration/time.Duration(len(o.Quota)), o.Limit/time.Duration(len(o.Quota))
		part.Seed = o.Seed + uint64(i)
		if err := runLeg(ctx, part, quota, &report); err != nil {
			errs = append(errs, fmt.Errorf("quota %s, seed %d: %w", quota, o.Seed, err))
			break
		}
	}
	report.Elapsed = time.Since(began)
	report.fill()
	return report, errors.Join(errs...)
}

// share divides n among so many that each gets about the same.
func share(n, i, among int) int { return n*(i+1)/among - n*i/among }

// runLeg makes a node, does everything to it, and takes it away.
func runLeg(ctx context.Context, o partOptions, quota btrfs.QuotaMode, report *PartReport) (err error) {
	dir := filepath.Join(o.Dir, string(quota))
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	image := filepath.Join(dir, "pool.img")
	if o.Cuts > 0 {
		shelf, shelfErr := newShelf(ctx, dir)
		if shelfErr != nil {
			return shelfErr
		}
		defer func() { err = errors.Join(err, shelf.close()) }()
		image = filepath.Join(shelf.dir, "pool.img")
	}
	l := &leg{
		Model: model.New(), Gate: load.NewGate(), options: o, report: report,
		node:   node.New(o.Binary, filepath.Join(dir, "node"), image, quota),
		random: rand.New(rand.NewPCG(o.Seed, 0)),
	}
	l.node.Logged = report.logged
	l.node.Disturbed, l.node.Seed = o.Disturbed, o.Seed
	if err := node.NewPool(ctx, image); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.node.Close()) }()
	if err := l.node.Open(ctx); err != nil {
		return err
	}
	if err := l.run(ctx); err != nil {
		return l.explain(err)
	}
	return nil
}

// run starts the driver and the workers, and ends with an empty pool.
func (l *leg) run(ctx context.Context) error {
	if err := l.node.Serve(ctx); err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	stop := context.AfterFunc(ctx, l.End)
	defer stop()
	workers := &load.Load{Model: l.Model, Gate: l.Gate, Node: l.node, Seed: l.options.Seed, Counts: l.report.counts}
	for i := range l.options.Workers {
		group.Go(func() error { return workers.Worker(i + 1).Run(ctx) })
	}
	group.Go(func() error {
		defer l.End()
		return l.rounds(ctx, workers)
	})
	return group.Wait()
}

// rounds do one thing after the other to the driver, in random order.
func (l *leg) rounds(ctx context.Context, workers *load.Load) error {
	stopWatching := l.watch(ctx)
	for began := time.Now(); l.goesOn(time.Since(began)); {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		began := time.Now()
		if err := l.draw()(ctx); err != nil {
			return err
		}
		l.options.Log("quota %s, %d kills, %d cuts, %d restarts, %d requests: the last took %v, of which the start %v", l.node.Quota,
			l.report.Kills, l.report.Cuts, l.report.Restarts, l.report.counts.Sent(), time.Since(began).Round(time.Millisecond), l.node.Ready.Round(time.Millisecond))
	}
	if err := stopWatching(); err != nil {
		return err
	}
	return l.finish(ctx, workers)
}

// goesOn reports whether there is more to do after some time.
func (l *leg) goesOn(after time.Duration) bool {
	if l.options.Limit > 0 && after >= l.options.Limit {
		return false
	}
	return l.kills < l.options.Kills || l.cuts < l.options.Cuts || after < l.options.Duration
}

// draw draws what to do next.
func (l *leg) draw() func(context.Context) error {
	kills, cuts := max(0, l.options.Kills-l.kills), max(0, l.options.Cuts-l.cuts)
	if kills+cuts == 0 { // there is time left
		kills, cuts = l.options.Kills, l.options.Cuts
	}
	switch {
	case kills+cuts == 0:
		return l.rest
	case l.random.IntN(8) == 0:
		return l.restart
	case l.random.IntN(kills+cuts) < kills:
		return l.kill
	}
	return l.cut
}

// rest lets the load go on, and then checks.
func (l *leg) rest(ctx context.Context) error {
	l.work(ctx, 2*time.Second)
	return l.settled(ctx, "in the midst of the load")
}

// work lets the workers work for a random time.
func (l *leg) work(ctx context.Context, most time.Duration) {
	l.Open(l.options.Workers)
	select {
	case <-time.After(most/4 + time.Duration(l.random.Int64N(int64(most)))):
	case <-ctx.Done():
	}
}

// kill kills the driver at a random instant, at times the next one too while it
// starts, and checks what is left, before and after everything is asked for again.
func (l *leg) kill(ctx context.Context) error {
	l.work(ctx, 600*time.Millisecond)
	if err := l.node.Kill(); err != nil {
		return err
	}
	l.kills++
	l.report.Kills++
	l.Shut()
	for l.random.IntN(4) == 0 {
		if err := l.node.Begin(); err != nil {
			return err
		}
		time.Sleep(time.Duration(l.random.Int64N(int64(l.node.Ready))))
		if err := l.node.Kill(); err != nil {
			return err
		}
		l.report.Kills++
		l.report.KillsAtStart++
	}
	if err := l.node.Serve(ctx); err != nil {
		return err
	}
	t, err := l.node.Check(ctx, l.Expect(l.Instant()))
	if err == nil && l.kills%5 == 0 {
		err = l.node.Sweep(ctx)
	}
	if err != nil {
		return fmt.Errorf("after kill %d: %w", l.report.Kills, err)
	}
	l.report.AtKills.Add(t)
	return l.settled(ctx, fmt.Sprintf("after kill %d, and all was asked for again", l.report.Kills))
}

// settled has everything answered, and checks that the node is exactly as the model.
func (l *leg) settled(ctx context.Context, when string) error {
	if err := l.node.CheckMounts(l.Model); err != nil {
		return fmt.Errorf("%s: %w", when, err)
	}
	l.Drain()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	_, err := l.node.Check(ctx, l.Expect(l.Instant()))
	if err = errors.Join(err, l.node.CheckMounts(l.Model)); err != nil {
		return fmt.Errorf("%s: %w", when, err)
	}
	return nil
}

// restart stops the driver and starts the next, as an upgrade does, under load.
func (l *leg) restart(ctx context.Context) error {
	l.work(ctx, 300*time.Millisecond)
	if err := l.node.Stop(); err != nil {
		return err
	}
	l.report.Restarts++
	l.Shut()
	l.closed = filepath.Join(l.node.Dir, "closed.db")
	if err := copyIndex(l.node.Index(), l.closed); err != nil {
		return err
	}
	if err := l.node.Serve(ctx); err != nil {
		return err
	}
	return l.settled(ctx, "after a restart")
}

// finish checks what is there at the end, and that all of it can be removed.
func (l *leg) finish(ctx context.Context, workers *load.Load) error {
	l.Drain()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err := l.node.CheckQuota(ctx); err != nil {
		return fmt.Errorf("at the end: %w", err)
	}
	if err := l.node.Serve(ctx); err != nil {
		return err
	}
	w := workers.Worker(0)
	for len(l.Living) > 0 {
		o := l.Living[0]
		if o.IsMounted() {
			if err := w.Unmount(ctx, o); err != nil {
				return err
			}
		}
		if err := w.Remove(ctx, o); err != nil {
			return err
		}
	}
	if err := l.settled(ctx, "when all had been removed"); err != nil {
		return err
	}
	l.report.Objects += len(l.All)
	if err := l.node.CheckQuota(ctx); err != nil {
		return fmt.Errorf("when all had been removed: %w", err)
	}
	return nil
}

// explain adds to a failure what happened to the objects that it names.
func (l *leg) explain(err error) error {
	stories := l.Stories(err.Error())
	stories = stories[:min(len(stories), 4)]
	return fmt.Errorf("%w\n%s\nthe driver's last words:\n%s", err, strings.Join(stories, "\n"), l.node.LastWords())
}
