package soak

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/btrfs-csi/btrfs-csi/test/reliability/load"
)

// bound limits how much of something a driver may have in the last quarter of a run, compared with the second
// quarter. The first is for warming up. It compares medians, because all values vary with the requests in flight.
// A leak per request would exceed the bound many times: a run of a few minutes has some ten thousand requests
// between the two quarters.
type bound struct {
	what   string
	of     func(Sample) float64
	factor float64
	more   float64
}

var bounds = []bound{
	// The garbage collector lets the heap of some MiB double, and returns memory late. The index grows
	// until it has 10,000 removals.
	{"bytes of memory", func(s Sample) float64 { return float64(s.Memory) }, 1.1, 8 << 20},
	// Each of the 12 workers has about one request in flight, with a goroutine and up to three
	// descriptors. The median varies less.
	{"goroutines", func(s Sample) float64 { return float64(s.Goroutines) }, 1, 10},
	{"descriptors", func(s Sample) float64 { return float64(s.Descriptors) }, 1, 10},
}

// leastSamples is the smallest number of samples that flat accepts.
const leastSamples = 40

// flat fails if the memory, goroutines or descriptors of a driver grow after it has warmed up.
func flat(samples []Sample) error {
	if len(samples) < leastSamples {
		return fmt.Errorf("%d samples are too few to see whether anything grows, wanted are %d: let it run for longer", len(samples), leastSamples)
	}
	var errs []error
	for _, b := range bounds {
		early, late := median(samples[len(samples)/4:len(samples)/2], b.of), median(samples[len(samples)*3/4:], b.of)
		if most := early*b.factor + b.more; late > most {
			errs = append(errs, fmt.Errorf("the driver grows: the median of the last quarter of the run is %.0f %s, that of the second %.0f; at most %.0f are allowed",
				late, b.what, early, most))
		}
	}
	return errors.Join(errs...)
}

// A request may take this much longer in the last quarter than in the second. If the time grew with the number of
// all requests so far it would take 2.3 times as long. The rest is for other load of the machine.
const (
	slower     = 1.75
	slowerMore = 10 * time.Millisecond
)

// flatLatencies fails if requests take longer and longer.
func flatLatencies(all map[string][]load.Latency) error {
	var errs []error
	for what, parts := range all {
		if len(parts) < load.LatencySlots*3/4 {
			continue // too few to compare
		}
		p50 := func(l load.Latency) float64 { return float64(l.P50) }
		early, late := median(parts[len(parts)/4:len(parts)/2], p50), median(parts[len(parts)*3/4:], p50)
		if most := slower*early + float64(slowerMore); late > most {
			errs = append(errs, fmt.Errorf("the driver becomes slow: the median of the last quarter of the run is %v for %s, that of the second %v; at most %v is allowed",
				time.Duration(late), what, time.Duration(early), time.Duration(most)))
		}
	}
	return errors.Join(errs...)
}

func median[T any](all []T, of func(T) float64) float64 {
	values := make([]float64, len(all))
	for i, one := range all {
		values[i] = of(one)
	}
	slices.Sort(values)
	return values[len(values)/2]
}
