package main

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// limit ends a timed part after a number of items or a time, whichever comes first.
type limit struct {
	items int
	time  time.Duration
}

// measured is the result of a timed part.
type measured struct {
	items   int // items 0 to items-1 were used
	time    time.Duration
	commits int // commits of the filesystem meanwhile
}

// rate returns items per second.
func (m measured) rate() float64 { return float64(m.items) / m.time.Seconds() }

func (m measured) commitsEach() float64 { return float64(m.commits) / float64(m.items) }

// perform runs an operation on items, inflight of them at a time. Operations that have begun when the
// time is over are finished and count.
func perform(ctx context.Context, op operation, inflight int, l limit) (measured, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var next atomic.Int64
	var workers sync.WaitGroup
	begin := time.Now()
	for range inflight {
		workers.Go(func() {
			for ctx.Err() == nil && time.Since(begin) < l.time {
				i := int(next.Add(1)) - 1
				if i >= l.items {
					return
				}
				if err := op(ctx, i); err != nil {
					cancel(err)
				}
			}
		})
	}
	workers.Wait()
	m := measured{items: min(int(next.Load()), l.items), time: time.Since(begin)}
	return m, context.Cause(ctx)
}

// median returns the middle value, or the mean of the two middle values.
func median(values []float64) float64 {
	if len(values) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(values))
	middle := len(sorted) / 2
	if len(sorted)%2 == 0 {
		return (sorted[middle-1] + sorted[middle]) / 2
	}
	return sorted[middle]
}

// inTurn returns the indices 0 to n-1, backwards in every second round, so that a disturbance does not
// always hit the same side.
func inTurn(n, round int) []int {
	order := make([]int, n)
	for i := range order {
		order[i] = i
		if round%2 == 1 {
			order[i] = n - 1 - i
		}
	}
	return order
}
