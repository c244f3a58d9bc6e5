package load

import (
	"slices"
	"time"
)

// Latency is how long it took to acknowledge the requests of one kind.
type Latency struct {
	After time.Duration `json:"after"`
	Count int           `json:"count"`
	P50   time.Duration `json:"p50"`
	P99   time.Duration `json:"p99"`
}

// timing is one request that was acknowledged.
type timing struct{ after, took time.Duration }

// LatencySlots is how many parts of a run have latencies of their own.
const LatencySlots = 60

// Latencies cuts a run into parts of equal length and returns those of each, by kind
// of request. A part in which there was no such request is left out.
func (c *Counts) Latencies(elapsed time.Duration) map[string][]Latency {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := map[string][]Latency{}
	for what, timings := range c.timings {
		for i := range LatencySlots {
			from, to := elapsed*time.Duration(i)/LatencySlots, elapsed*time.Duration(i+1)/LatencySlots
			var took []time.Duration
			for _, t := range timings {
				if t.after >= from && t.after < to {
					took = append(took, t.took)
				}
			}
			if len(took) > 0 {
				all[what] = append(all[what], latencyOf(from, took))
			}
		}
	}
	return all
}

func latencyOf(after time.Duration, took []time.Duration) Latency {
	slices.Sort(took)
	return Latency{After: after, Count: len(took), P50: quantile(took, 0.5), P99: quantile(took, 0.99)}
}

// quantile returns that of a sorted list, by the nearest rank.
func quantile[T any](sorted []T, q float64) T {
	return sorted[min(int(q*float64(len(sorted))), len(sorted)-1)]
}
