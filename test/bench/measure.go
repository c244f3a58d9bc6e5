package main

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// limit ends a timed part: after so many items, or so long, whatever comes first.
type limit struct {
	items int
	time  time.Duration
}

// measured is a timed part.
type measured struct {
	items   int // the items 0 to items-1 were worked on
	time    time.Duration
	commits int // of the filesystem meanwhile
}

// rate is in items a second.
func (m measured) rate() float64 { return float64(m.items) / m.time.Seconds() }

func (m measured) commitsEach() float64 { return float64(m.commits) / float64(m.items) }

// perform works on items, inflight of them at a time. Those that have begun when the
// time is over are brought to an end, and count.
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

// median is the middle of values, or the mean of the two in the middle.
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

// inTurn returns the indices 0 to n-1, backwards in every second round: whatever
// the machine does meanwhile is not always to the same one's cost.
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
