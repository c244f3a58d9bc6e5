package soak

import (
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/btrfs-csi/btrfs-csi/test/reliability/load"
)

// TestFlat checks that flat accepts noise, a warm-up and a fall, and finds a leak in noise.
func TestFlat(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 1))
	// at is the elapsed part of the run, from 0 to 1.
	series := func(change func(at float64, s *Sample)) []Sample {
		all := make([]Sample, samples)
		for i := range all {
			all[i] = Sample{
				Memory:     30<<20 + random.Int64N(8<<20),
				Goroutines: 40 + random.IntN(16), Descriptors: 20 + random.IntN(30),
			}
			change(float64(i)/samples, &all[i])
		}
		return all
	}
	for _, test := range []struct {
		name   string
		change func(at float64, s *Sample)
		want   string
	}{
		{"noise", func(float64, *Sample) {}, ""},
		{"warms up", func(at float64, s *Sample) { s.Memory += int64(min(at, 0.2) * 200 * mib) }, ""},
		{"a peak in the end", func(at float64, s *Sample) {
			if at > 0.95 {
				s.Memory, s.Goroutines, s.Descriptors = 3*s.Memory, 3*s.Goroutines, 3*s.Descriptors
			}
		}, ""},
		{"falls", func(at float64, s *Sample) { s.Goroutines -= int(30 * at) }, ""},
		{"memory leaks", func(at float64, s *Sample) { s.Memory += int64(at * 40 * mib) }, "bytes of memory"},
		{"goroutines leak", func(at float64, s *Sample) { s.Goroutines += int(40 * at) }, "goroutines"},
		{"descriptors leak", func(at float64, s *Sample) { s.Descriptors += int(60 * at) }, "descriptors"},
		{"memory leaks late", func(at float64, s *Sample) { s.Memory += int64(max(0, at-0.6) * 80 * mib) }, "bytes of memory"},
	} {
		t.Run(test.name, func(t *testing.T) { wantError(t, flat(series(test.change)), test.want) })
	}
	wantError(t, flat(series(func(float64, *Sample) {})[:leastSamples-1]), "too few")
}

func TestFlatLatencies(t *testing.T) {
	series := func(grows time.Duration) (all []load.Latency) {
		for i := range load.LatencySlots {
			all = append(all, load.Latency{P50: 4*time.Millisecond + time.Duration(i%5)*time.Millisecond + grows*time.Duration(i)/load.LatencySlots})
		}
		return all
	}
	wantError(t, flatLatencies(map[string][]load.Latency{"A": series(0), "B": series(10 * time.Millisecond), "rare": series(time.Hour)[:9]}), "")
	wantError(t, flatLatencies(map[string][]load.Latency{"A": series(0), "B": series(200 * time.Millisecond)}), "for B")
}

func wantError(t *testing.T, err error, want string) {
	t.Helper()
	if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
		t.Errorf("got %v, want %q", err, want)
	}
}
