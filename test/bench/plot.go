package main

import (
	"fmt"
	"html"
	"math"
	"slices"
	"strings"
)

// point is one of a line.
type point struct{ x, y float64 }

// line is a curve with a name, the same in every panel that has it.
type line struct {
	name   string
	points []point
}

// panel is a diagram with logarithmic axes.
type panel struct {
	title string
	x, y  string // what the axes are
	lines []line
}

const (
	panelWidth  = 330.0
	panelHeight = 230.0
	marginLeft  = 56.0
	marginTop   = 30.0
	marginRight = 16.0
	marginLow   = 44.0
	legendRow   = 20.0
	columns     = 3
)

// colours can be told apart by those who see few.
var colours = []string{"#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000"}

// plot draws panels side by side, with one legend for all, as SVG.
func plot(panels []panel) string {
	names := lineNames(panels)
	rows := (len(panels) + columns - 1) / columns
	width, top := columns*panelWidth, legendRow*float64(1+(len(names)-1)/3)+8
	height := top + float64(rows)*panelHeight
	var s strings.Builder
	fmt.Fprintf(&s, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %.0f %.0f" width="%.0f" font-family="sans-serif" font-size="11">`+"\n", width, height, width)
	fmt.Fprintf(&s, `<rect width="%.0f" height="%.0f" fill="white"/>`+"\n", width, height)
	for i, name := range names {
		x, y := 12+float64(i%3)*width/3, legendRow*float64(i/3)+16
		fmt.Fprintf(&s, `<circle cx="%.1f" cy="%.1f" r="4" fill="%s"/><text x="%.1f" y="%.1f">%s</text>`+"\n", x, y-4, colour(i), x+10, y, html.EscapeString(name))
	}
	for i, p := range panels {
		fmt.Fprintf(&s, `<g transform="translate(%.1f %.1f)">`+"\n", float64(i%columns)*panelWidth, top+float64(i/columns)*panelHeight)
		p.draw(&s, names)
		s.WriteString("</g>\n")
	}
	s.WriteString("</svg>\n")
	return s.String()
}

func colour(i int) string { return colours[i%len(colours)] }

// lineNames are those of all lines, each once, in the order of their appearance.
func lineNames(panels []panel) (names []string) {
	for _, p := range panels {
		for _, l := range p.lines {
			if !slices.Contains(names, l.name) {
				names = append(names, l.name)
			}
		}
	}
	return names
}

func (p panel) draw(s *strings.Builder, names []string) {
	x, y := p.axis(func(at point) float64 { return at.x }), p.axis(func(at point) float64 { return at.y })
	x.from, x.to = marginLeft, panelWidth-marginRight
	y.from, y.to = panelHeight-marginLow, marginTop
	fmt.Fprintf(s, `<text x="%.1f" y="%.1f" font-weight="bold">%s</text>`+"\n", marginLeft, marginTop-12, html.EscapeString(p.title))
	fmt.Fprintf(s, `<text x="%.1f" y="%.1f" text-anchor="middle">%s</text>`+"\n", (x.from+x.to)/2, panelHeight-10, html.EscapeString(p.x))
	fmt.Fprintf(s, `<text transform="translate(12 %.1f) rotate(-90)" text-anchor="middle">%s</text>`+"\n", (y.from+y.to)/2, html.EscapeString(p.y))
	for _, tick := range y.decades() {
		at := y.place(tick)
		fmt.Fprintf(s, `<path d="M%.1f %.1fH%.1f" stroke="#ddd"/><text x="%.1f" y="%.1f" text-anchor="end">%s</text>`+"\n", x.from, at, x.to, x.from-4, at+4, short(tick))
	}
	for _, tick := range p.xValues() {
		at := x.place(tick)
		fmt.Fprintf(s, `<path d="M%.1f %.1fV%.1f" stroke="#eee"/><text x="%.1f" y="%.1f" text-anchor="middle">%s</text>`+"\n", at, y.from, y.to, at, y.from+14, short(tick))
	}
	fmt.Fprintf(s, `<path d="M%.1f %.1fV%.1fH%.1f" fill="none" stroke="#666"/>`+"\n", x.from, y.to, y.from, x.to)
	for _, l := range p.lines {
		c := colour(slices.Index(names, l.name))
		var path strings.Builder
		for i, at := range l.points {
			fmt.Fprintf(&path, "%c%.1f %.1f", "ML"[min(i, 1)], x.place(at.x), y.place(at.y))
			fmt.Fprintf(s, `<circle cx="%.1f" cy="%.1f" r="2.5" fill="%s"/>`+"\n", x.place(at.x), y.place(at.y), c)
		}
		fmt.Fprintf(s, `<path d="%s" fill="none" stroke="%s" stroke-width="1.5"/>`+"\n", path.String(), c)
	}
}

// axis is logarithmic: low to high are drawn between from and to. What is not above
// zero stands at the lower end.
type axis struct{ low, high, from, to float64 }

func (p panel) axis(value func(point) float64) axis {
	a := axis{low: math.Inf(1)}
	for _, l := range p.lines {
		for _, at := range l.points {
			if v := value(at); v > 0 {
				a.low, a.high = min(a.low, v), max(a.high, v)
			}
		}
	}
	if a.high == 0 {
		return axis{low: 1, high: 10}
	}
	if a.high < 3*a.low { // what is flat has to look flat
		a.low, a.high = a.low/2, a.high*2
	}
	return a
}

func (a axis) place(v float64) float64 {
	share := math.Log(max(v, a.low)/a.low) / math.Log(a.high/a.low)
	return a.from + share*(a.to-a.from)
}

// decades are the ticks of an axis: powers of ten, with 2 and 5 times each where
// there are few.
func (a axis) decades() (ticks []float64) {
	steps := []float64{1}
	if a.high/a.low < 200 {
		steps = []float64{1, 2, 5}
	}
	for power := math.Pow(10, math.Floor(math.Log10(a.low))); power <= a.high; power *= 10 {
		for _, step := range steps {
			if v := power * step; v >= a.low && v <= a.high {
				ticks = append(ticks, v)
			}
		}
	}
	return ticks
}

// xValues are those that were measured: they are few.
func (p panel) xValues() (values []float64) {
	for _, l := range p.lines {
		for _, at := range l.points {
			if !slices.Contains(values, at.x) {
				values = append(values, at.x)
			}
		}
	}
	return values
}

// short is a number for an axis.
func short(v float64) string {
	switch {
	case v >= 1e6:
		return fmt.Sprintf("%gM", v/1e6)
	case v >= 1e3:
		return fmt.Sprintf("%gk", v/1e3)
	}
	return fmt.Sprintf("%g", v)
}
