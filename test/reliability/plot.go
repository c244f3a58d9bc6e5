package reliability

import (
	"fmt"
	"html"
	"strings"
	"time"
)

// curve is a line of a diagram over time.
type curve struct {
	name   string
	points []point
}

type point struct {
	after time.Duration
	value float64
}

// diagram shows curves over the time of a run, from zero up. test/bench has another plot,
// with logarithmic axes, on which what grows slowly would look flat.
type diagram struct {
	title  string
	curves []curve
}

const (
	diagramWidth  = 480.0
	diagramHeight = 260.0
	left, right   = 60.0, 16.0 // of the axes
	top, low      = 50.0, 34.0
	inARow        = 2
)

// colours can be told apart by those who see few.
var colours = []string{"#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000"}

// plot draws diagrams side by side, as SVG.
func plot(diagrams []diagram) string {
	rows := (len(diagrams) + inARow - 1) / inARow
	width, height := diagramWidth*inARow, diagramHeight*float64(rows)
	var s strings.Builder
	fmt.Fprintf(&s, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %.0f %.0f" width="%.0f" font-family="sans-serif" font-size="11">`+"\n", width, height, width)
	fmt.Fprintf(&s, `<rect width="%.0f" height="%.0f" fill="white"/>`+"\n", width, height)
	for i, d := range diagrams {
		fmt.Fprintf(&s, `<g transform="translate(%.0f %.0f)">`+"\n", float64(i%inARow)*diagramWidth, float64(i/inARow)*diagramHeight)
		d.draw(&s)
		s.WriteString("</g>\n")
	}
	s.WriteString("</svg>\n")
	return s.String()
}

func (d diagram) draw(s *strings.Builder) {
	last, most := d.extent()
	x := func(after time.Duration) float64 {
		return left + (diagramWidth-left-right)*after.Seconds()/last.Seconds()
	}
	y := func(value float64) float64 { return diagramHeight - low - (diagramHeight-top-low)*value/most }
	fmt.Fprintf(s, `<text x="%.0f" y="16" font-weight="bold">%s</text>`+"\n", left, html.EscapeString(d.title))
	const ticks = 4
	for i := range ticks + 1 {
		value, after := most*float64(i)/ticks, last*time.Duration(i)/ticks
		fmt.Fprintf(s, `<path d="M%.1f %.1fH%.1f" stroke="#ddd"/><text x="%.1f" y="%.1f" text-anchor="end">%.4g</text>`+"\n",
			left, y(value), diagramWidth-right, left-4, y(value)+4, value)
		fmt.Fprintf(s, `<text x="%.1f" y="%.1f" text-anchor="middle">%v</text>`+"\n", x(after), diagramHeight-low+16, after.Round(time.Second))
	}
	for i, c := range d.curves {
		at := left + float64(i%3)*135
		fmt.Fprintf(s, `<circle cx="%.1f" cy="%d" r="4" fill="%s"/><text x="%.1f" y="%d">%s</text>`+"\n", at+4, 26+14*(i/3), colours[i], at+12, 30+14*(i/3), html.EscapeString(c.name))
		var path strings.Builder
		for j, p := range c.points {
			fmt.Fprintf(&path, "%c%.1f %.1f", "ML"[min(j, 1)], x(p.after), y(p.value))
		}
		fmt.Fprintf(s, `<path d="%s" fill="none" stroke="%s" stroke-width="1.2"/>`+"\n", path.String(), colours[i])
	}
}

// extent returns what the axes have to reach: a round number up, and not zero.
func (d diagram) extent() (last time.Duration, most float64) {
	last, highest := time.Second, 1.0
	for _, c := range d.curves {
		for _, p := range c.points {
			last, highest = max(last, p.after), max(highest, p.value)
		}
	}
	for power := 1.0; ; power *= 10 {
		for _, step := range []float64{1, 2, 4, 8} {
			if most = step * power; most >= highest {
				return last, most
			}
		}
	}
}

// plotted are the requests whose latencies are drawn.
var plotted = []string{"CreateVolume", "CreateSnapshot", "ControllerExpandVolume", "DeleteVolume", "DeleteSnapshot", "NodePublishVolume"}

// plot draws how the driver that was left alone has been.
func (r Report) plot() string {
	sampled := func(name string, of func(Sample) float64) curve {
		c := curve{name: name}
		for _, s := range r.Samples {
			c.points = append(c.points, point{s.After, of(s)})
		}
		return c
	}
	timed := func(of func(Latency) time.Duration) (curves []curve) {
		for _, what := range plotted {
			c := curve{name: what}
			for _, l := range r.Latencies[what] {
				c.points = append(c.points, point{l.After, of(l).Seconds() * 1e3})
			}
			curves = append(curves, c)
		}
		return curves
	}
	return plot([]diagram{
		{"Resident memory, MiB", []curve{sampled("memory", func(s Sample) float64 { return float64(s.Memory) / mib })}},
		{"Goroutines and descriptors", []curve{
			sampled("goroutines", func(s Sample) float64 { return float64(s.Goroutines) }),
			sampled("descriptors", func(s Sample) float64 { return float64(s.Descriptors) }),
		}},
		{"Latency, median, ms", timed(func(l Latency) time.Duration { return l.P50 })},
		{"Latency, p99, ms", timed(func(l Latency) time.Duration { return l.P99 })},
	})
}
