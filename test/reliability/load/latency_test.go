package load

import (
	"testing"
	"time"
)

func TestLatencies(t *testing.T) {
	c := NewCounts()
	c.StartTiming(time.Now())
	for i := range 100 {
		c.timings["A"] = append(c.timings["A"], timing{time.Second, time.Duration(100 - i)})
	}
	c.timings["A"] = append(c.timings["A"], timing{50 * time.Second, 7})
	got := c.Latencies(time.Minute)["A"]
	if len(got) != 2 || got[0] != (Latency{time.Second, 100, 51, 100}) || got[1] != (Latency{50 * time.Second, 1, 7, 7}) {
		t.Errorf("got %v", got)
	}
}
