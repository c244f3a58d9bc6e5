package soak

import (
	"time"

	"github.com/btrfs-csi/btrfs-csi/test/reliability/load"
	"github.com/btrfs-csi/btrfs-csi/test/testkit/plot"
)

// plotted lists the requests whose latencies are drawn.
var plotted = []string{"CreateVolume", "CreateSnapshot", "ControllerExpandVolume", "DeleteVolume", "DeleteSnapshot", "NodePublishVolume"}

// Plot draws the process and the latencies of the driver that was left alone, as SVG.
func (r Report) Plot() string {
	sampled := func(name string, of func(Sample) float64) plot.Line {
		l := plot.Line{Name: name}
		for _, s := range r.Alone.Samples {
			l.Points = append(l.Points, plot.Point{X: s.After.Minutes(), Y: of(s)})
		}
		return l
	}
	timed := func(of func(load.Latency) time.Duration) (lines []plot.Line) {
		for _, what := range plotted {
			l := plot.Line{Name: what}
			for _, at := range r.Alone.Latencies[what] {
				l.Points = append(l.Points, plot.Point{X: at.After.Minutes(), Y: of(at).Seconds() * 1e3})
			}
			lines = append(lines, l)
		}
		return lines
	}
	const x = "minutes"
	return plot.SVG([]plot.Panel{
		{Title: "Resident memory", X: x, Y: "MiB", Lines: []plot.Line{sampled("memory", func(s Sample) float64 { return float64(s.Memory) / mib })}},
		{Title: "Goroutines and descriptors", X: x, Lines: []plot.Line{
			sampled("goroutines", func(s Sample) float64 { return float64(s.Goroutines) }),
			sampled("descriptors", func(s Sample) float64 { return float64(s.Descriptors) }),
		}},
		{Title: "Latency, median", X: x, Y: "ms", Lines: timed(func(l load.Latency) time.Duration { return l.P50 })},
		{Title: "Latency, p99", X: x, Y: "ms", Lines: timed(func(l load.Latency) time.Duration { return l.P99 })},
	}, 2)
}
