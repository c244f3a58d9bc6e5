package reliability

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"
)

// Sample is what a driver's process had at one time.
type Sample struct {
	After       time.Duration `json:"after"`
	Memory      int64         `json:"memory"` // resident, in bytes
	Goroutines  int           `json:"goroutines"`
	Descriptors int           `json:"descriptors"`
}

// Latency is how long it took to acknowledge the requests of one kind.
type Latency struct {
	After time.Duration `json:"after"`
	Count int           `json:"count"`
	P50   time.Duration `json:"p50"`
	P99   time.Duration `json:"p99"`
}

// timing is one request that was acknowledged.
type timing struct{ after, took time.Duration }

// watch looks at the driver every so often until stop is called, which also holds
// what was seen against what is flat.
func (l *leg) watch(ctx context.Context) (stop func() error) {
	if l.options.Sample == 0 {
		return func() error { return nil }
	}
	began := time.Now()
	l.report.counts.time(began)
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan error)
	go func() { done <- l.look(ctx, began) }()
	return func() error {
		cancel()
		if err := <-done; err != nil {
			return err
		}
		l.report.Latencies = l.report.counts.latencies(time.Since(began))
		return errors.Join(flat(l.report.Samples), flatLatencies(l.report.Latencies))
	}
}

// look samples until ctx ends.
func (l *leg) look(ctx context.Context, began time.Time) error {
	tick := time.NewTicker(l.options.Sample)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		s, err := l.node.sample()
		if err != nil && ctx.Err() == nil {
			return err
		}
		s.After = time.Since(began)
		l.report.Samples = append(l.report.Samples, s)
	}
}

// sample looks at the driver's process.
func (n *node) sample() (s Sample, err error) {
	proc := fmt.Sprintf("/proc/%d", n.process.Cmd.Process.Pid)
	descriptors, err := os.ReadDir(proc + "/fd")
	s.Descriptors = len(descriptors)
	if err != nil {
		return s, err
	}
	status, err := os.ReadFile(proc + "/status")
	if err != nil {
		return s, err
	}
	if _, after, _ := strings.Cut(string(status), "VmRSS:"); after != "" {
		_, err = fmt.Sscan(after, &s.Memory)
		s.Memory <<= 10
	}
	if err != nil || s.Memory == 0 {
		return s, fmt.Errorf("%s/status: no VmRSS (%w) in %q", proc, err, status)
	}
	profile, err := n.goroutines()
	if err != nil {
		return s, err
	}
	_, err = fmt.Sscanf(profile, "goroutine profile: total %d", &s.Goroutines)
	return s, err
}

// latencySlots is how many parts of a run have latencies of their own.
const latencySlots = 60

// latencies cuts a run into parts of equal length and returns those of each, by kind
// of request. A part in which there was no such request is left out.
func (c *counts) latencies(elapsed time.Duration) map[string][]Latency {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := map[string][]Latency{}
	for what, timings := range c.timings {
		for i := range latencySlots {
			from, to := elapsed*time.Duration(i)/latencySlots, elapsed*time.Duration(i+1)/latencySlots
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
