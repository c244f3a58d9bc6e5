package load

import (
	"slices"
	"time"
)

// Latency is the time until acknowledgement, of the requests of one kind in a part of a run.
type Latency struct {
	After time.Duration `json:"after"`
	Count int           `json:"count"`
	P50   time.Duration `json:"p50"`
	P99   time.Duration `json:"p99"`
}

// timing is one request that was acknowledged.
type timing struct{ after, took time.Duration }

// LatencySlots is the number of parts of a run.
const LatencySlots = 60

// Latencies divides a run into parts of equal length, and returns the latencies of each part by
// kind of request. A kind lacks the parts in which no request of it was acknowledged.
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

// quantile returns a quantile of a sorted list, by the nearest rank.
func quantile[T any](sorted []T, q float64) T {
	return sorted[min(int(q*float64(len(sorted))), len(sorted)-1)]
}
