package main

import (
	"context"
	"errors"
	"fmt"
	"math"

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs"
)

// contest times the same operations on several contestants, in turn, round after round.
type contest struct {
	topic    string
	inflight int
	quota    btrfs.QuotaMode
	// operations are timed in this order, since each uses the results of the one before.
	operations  []string
	contestants []contestant
	pairs       []pair
	rounds      int
	limit       limit
	options     []string // of the mount
	xName       string   // the title of the x axis, if the rows are points of a curve
}

// contestant is a side on a filesystem with a number of existing volumes.
type contestant struct {
	side     string
	existing int
}

// pair has the indices of two contestants that are compared.
type pair struct {
	ours, peer int
	want       map[string]float64 // by operation: the least ratio
}

// stand is a filesystem and the side that uses it.
type stand struct {
	*rig
	side
}

func (b *bench) open(ctx context.Context, c contestant, quota btrfs.QuotaMode, options []string) (_ *stand, err error) {
	r, err := newRig(ctx, b.dir, quota, options...)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, r.close())
		}
	}()
	if c.existing > 0 {
		if err := b.fill(ctx, r, c); err != nil {
			return nil, fmt.Errorf("make %d volumes: %w", c.existing, err)
		}
	}
	s, err := b.sides[c.side](ctx, r)
	return &stand{r, s}, err
}

// fill creates the existing volumes.
func (b *bench) fill(ctx context.Context, r *rig, c contestant) error {
	s, err := b.sides[filler(c.side)](ctx, r)
	if err != nil {
		return err
	}
	_, err = perform(ctx, s.operations()[opExisting], 64, limit{c.existing, math.MaxInt64})
	return errors.Join(err, s.close())
}

func (s *stand) close() error { return errors.Join(s.side.close(), s.rig.close()) }

// results are the timed parts of a contestant, by operation, one for each round.
type results map[string][]measured

// run runs all rounds and returns a row for each pair and operation.
func (c contest) run(ctx context.Context, b *bench) ([]row, error) {
	all, err := c.results(ctx, b)
	if err != nil {
		return nil, err
	}
	return c.rows(all), nil
}

// results runs all rounds.
func (c contest) results(ctx context.Context, b *bench) (all []results, err error) {
	stands := make([]*stand, len(c.contestants))
	defer func() {
		for _, s := range stands {
			if s != nil {
				err = errors.Join(err, s.close())
			}
		}
	}()
	for range c.contestants {
		all = append(all, results{})
	}
	for round := range c.rounds {
		for _, i := range inTurn(len(c.contestants), round) {
			b.progress("round %d of %d: %s", round+1, c.rounds, c.contestants[i])
			if stands[i], err = c.round(ctx, b, c.contestants[i], stands[i], all[i]); err != nil {
				return nil, fmt.Errorf("%s: %w", c.contestants[i], err)
			}
		}
	}
	return all, nil
}

func (c contestant) String() string {
	if c.existing == 0 {
		return c.side
	}
	return fmt.Sprintf("%s with %d volumes", c.side, c.existing)
}

// round runs one contestant's turn, on a new filesystem. A filesystem with existing volumes is used
// again, after round has removed all that it added.
func (c contest) round(ctx context.Context, b *bench, who contestant, s *stand, r results) (*stand, error) {
	if s == nil {
		var err error
		if s, err = b.open(ctx, who, c.quota, c.options); err != nil {
			return nil, err
		}
	}
	most, err := s.live(ctx, c, r)
	if who.existing == 0 || err != nil {
		return nil, errors.Join(err, s.close())
	}
	_, err = perform(ctx, s.operations()[opClear], 64, limit{most, math.MaxInt64})
	return s, err
}

// live times the operations, and returns the number of items that they used.
func (s *stand) live(ctx context.Context, c contest, r results) (most int, err error) {
	l := c.limit
	for _, name := range c.operations {
		op := s.operations()[name]
		if op == nil {
			continue
		}
		if before := s.operations()[preparations[name]]; before != nil {
			if _, err := perform(ctx, before, 64, limit{l.items, math.MaxInt64}); err != nil {
				return most, fmt.Errorf("before %s: %w", name, err)
			}
		}
		m, err := s.time(ctx, op, c.inflight, l)
		if err != nil {
			return most, fmt.Errorf("%s: %w", name, err)
		}
		r[name] = append(r[name], m)
		most = max(most, m.items)
		if name != opStats && name != opList && name != opExpand { // later operations do not need their results
			l.items = m.items
		}
	}
	return most, nil
}

// time times an operation on an idle filesystem.
func (s *stand) time(ctx context.Context, op operation, inflight int, l limit) (measured, error) {
	if err := s.settle(ctx); err != nil {
		return measured{}, err
	}
	before, err := s.commits()
	if err != nil {
		return measured{}, err
	}
	m, err := perform(ctx, op, inflight, l)
	if err != nil {
		return m, err
	}
	after, err := s.commits()
	m.commits = after - before
	return m, err
}

// rows returns the rows in the order of the operations.
func (c contest) rows(all []results) (rows []row) {
	for _, name := range c.operations {
		for _, p := range c.pairs {
			ours, peer := all[p.ours][name], all[p.peer][name]
			if len(ours) == 0 || len(peer) == 0 {
				continue // one of the two lacks the operation
			}
			rows = append(rows, c.row(name, p).compare(perSecond, each(ours, measured.rate), each(peer, measured.rate)).
				withCommits(each(ours, measured.commitsEach), each(peer, measured.commitsEach)))
		}
	}
	return rows
}

func (c contest) row(operation string, p pair) row {
	ours, peer := c.contestants[p.ours], c.contestants[p.peer]
	r := row{
		Topic: c.topic, Operation: operation, Inflight: c.inflight, Quota: string(c.quota), Existing: ours.existing,
		OursName: ours.side, PeerName: peer.side, Want: p.want[operation],
	}
	if c.xName != "" {
		r.X, r.XName, r.PeerName = float64(ours.existing), c.xName, fmt.Sprintf("%d %s", peer.existing, c.xName)
	}
	return r
}

func each(all []measured, value func(measured) float64) []float64 {
	values := make([]float64, len(all))
	for i, m := range all {
		values[i] = value(m)
	}
	return values
}
