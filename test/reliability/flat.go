package reliability

import (
	"errors"
	"fmt"
	"slices"
	"time"
)

// bound says how much of something a driver may have in the last quarter of a run, held
// against the second: the first is for it to warm up. Medians are compared, since all
// goes up and down with the requests under way. What leaks with the requests grows on
// through both, by many times what is allowed: a run of a few minutes has some ten thousand
// of them between the two.
type bound struct {
	what   string
	of     func(Sample) float64
	factor float64
	more   float64
}

var bounds = []bound{
	// The collector lets the heap, of some MiB, double before it runs, and gives back
	// late. Until the index has its 10,000 last removals, it grows.
	{"bytes of memory", func(s Sample) float64 { return float64(s.Memory) }, 1.1, 8 << 20},
	// Each of the 12 workers has about one request under way, which is a goroutine and
	// up to three descriptors; the median does not swing by as many.
	{"goroutines", func(s Sample) float64 { return float64(s.Goroutines) }, 1, 10},
	{"descriptors", func(s Sample) float64 { return float64(s.Descriptors) }, 1, 10},
}

// leastSamples is how many samples can be judged.
const leastSamples = 40

// flat fails for what grows on after the driver has warmed up.
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

// A request may take so much longer in the last quarter than in the second. What takes
// the longer the more there ever was takes 2.3 times as long then. The machine has other
// things to do, too, which is in what is allowed.
const (
	slower     = 1.75
	slowerMore = 10 * time.Millisecond
)

// flatLatencies fails for requests that take longer and longer.
func flatLatencies(all map[string][]Latency) error {
	var errs []error
	for what, parts := range all {
		if len(parts) < latencySlots*3/4 {
			continue // too rare to judge
		}
		p50 := func(l Latency) float64 { return float64(l.P50) }
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
	return quantile(values, 0.5)
}
