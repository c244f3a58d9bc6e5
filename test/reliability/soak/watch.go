package soak

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/btrfs-csi/btrfs-csi/test/reliability/node"
)

// Sample is the use of resources of a driver's process at one time.
type Sample struct {
	After       time.Duration `json:"after"`
	Memory      int64         `json:"memory"` // resident, in bytes
	Goroutines  int           `json:"goroutines"`
	Descriptors int           `json:"descriptors"`
}

// watch samples the driver until the caller calls stop. stop fails if the driver has grown or become
// slow.
func (l *leg) watch(ctx context.Context) (stop func() error) {
	if l.options.Sample == 0 {
		return func() error { return nil }
	}
	began := time.Now()
	l.report.counts.StartTiming(began)
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan error)
	go func() { done <- l.look(ctx, began) }()
	return func() error {
		cancel()
		if err := <-done; err != nil {
			return err
		}
		l.report.Latencies = l.report.counts.Latencies(time.Since(began))
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
		s, err := sample(l.node)
		if err != nil && ctx.Err() == nil {
			return err
		}
		s.After = time.Since(began)
		l.report.Samples = append(l.report.Samples, s)
	}
}

// sample samples a driver's process.
func sample(n *node.Node) (s Sample, err error) {
	proc := fmt.Sprintf("/proc/%d", n.Process.Cmd.Process.Pid)
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
	profile, err := n.Goroutines()
	if err != nil {
		return s, err
	}
	_, err = fmt.Sscanf(profile, "goroutine profile: total %d", &s.Goroutines)
	return s, err
}
