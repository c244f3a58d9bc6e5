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

// partOptions are the options of runPart.
type partOptions struct {
	Binary string // btrfs-csi
	// Disturbed is the binary of node.BuildDisturbed, or "". It takes turns with Binary.
	Disturbed string
	Dir       string // an empty directory for the pools, not on btrfs
	Kills     int
	Cuts      int
	// Duration is the least time. Until its end there are more kills and cuts, or, where none are
	// wanted, there is load alone.
	Duration time.Duration
	// Limit is the longest time, even if kills and cuts are left then. 0 means no limit.
	Limit   time.Duration
	Quota   []btrfs.QuotaMode // one after the other; nil for all
	Workers int               // 0 for 12
	Seed    uint64            // 0 for a random one
	Log     func(format string, args ...any)
	// Sample is the time between two samples of the driver's process, for a part without kills and
	// cuts. Such a part also measures latencies. 0 means no samples.
	Sample time.Duration
}

// leg is what happens to one node.
type leg struct {
	*model.Model
	*load.Gate
	options partOptions
	report  *PartReport
	node    *node.Node
	random  *rand.Rand
	closed  string // a copy of the index after the last orderly stop; "" before that
	kills   int    // rounds that were a kill
	cuts    int
}

// runPart puts one driver for each quota mode under load, kills it and cuts its power. It returns
// the first error, and always unmounts and removes everything.
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

// share returns the part of n that number i of so many gets, about the same for each.
func share(n, i, among int) int { return n*(i+1)/among - n*i/among }

// runLeg makes a node, runs a leg on it, and removes it.
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

// run starts the driver and the workers, and runs rounds. At the end the pool is empty.
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

// rounds runs kills, cuts, restarts and rests in random order.
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

// goesOn reports whether another round follows.
func (l *leg) goesOn(after time.Duration) bool {
	if l.options.Limit > 0 && after >= l.options.Limit {
		return false
	}
	return l.kills < l.options.Kills || l.cuts < l.options.Cuts || after < l.options.Duration
}

// draw draws the next round.
func (l *leg) draw() func(context.Context) error {
	kills, cuts := max(0, l.options.Kills-l.kills), max(0, l.options.Cuts-l.cuts)
	if kills+cuts == 0 { // all are done, but Duration has not passed
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

// rest lets the load go on for a while, and then checks the node.
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

// kill kills the driver at a random instant, and sometimes the next one while it starts. It checks
// the node before the workers repeat their requests, and after.
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

// settled waits until every request is answered, and checks that the node is as the model says.
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

// restart stops the driver under load and starts another one, as an upgrade does.
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

// finish checks the node at the end of the rounds, removes all objects, and checks again.
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

// explain adds the stories of the objects that an error names.
func (l *leg) explain(err error) error {
	stories := l.Stories(err.Error())
	stories = stories[:min(len(stories), 4)]
	return fmt.Errorf("%w\n%s\nthe driver's last words:\n%s", err, strings.Join(stories, "\n"), l.node.LastWords())
}
