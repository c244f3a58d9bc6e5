// Package plot draws what was measured, as SVG.
package plot

import (
	"fmt"
	"html"
	"math"
	"slices"
	"strings"
)

// Panel is one diagram.
type Panel struct {
	Title, X, Y string // X and Y are the titles of the axes
	// Log makes both axes logarithmic, with the measured values of x as ticks. Else both axes
	// begin at zero.
	Log   bool
	Lines []Line
}

// Line is a curve. Lines of one name have the same colour in all panels.
type Line struct {
	Name   string
	Points []Point
}

// Point is a point of a line.
type Point struct{ X, Y float64 }

const (
	totalWidth    = 990.0
	panelHeight   = 230.0
	marginLeft    = 56.0
	marginTop     = 30.0
	marginRight   = 16.0
	marginLow     = 44.0
	legendRow     = 20.0
	legendColumns = 3
	fewPoints     = 12 // a line with no more points has them marked
)

// colours are distinguishable for colour-blind people, too.
var colours = []string{"#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#882255", "#999933", "#999999"}

func colour(i int) string { return colours[i%len(colours)] }

// SVG draws panels in a number of columns, with one legend.
func SVG(panels []Panel, columns int) string {
	names := lineNames(panels)
	rows := (len(panels) + columns - 1) / columns
	width, top := totalWidth/float64(columns), legendRow*float64(1+(len(names)-1)/legendColumns)+8
	height := top + float64(rows)*panelHeight
	var s strings.Builder
	fmt.Fprintf(&s, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %.0f %.0f" width="%.0f" font-family="sans-serif" font-size="11">`+"\n", totalWidth, height, totalWidth)
	fmt.Fprintf(&s, `<rect width="%.0f" height="%.0f" fill="white"/>`+"\n", totalWidth, height)
	for i, name := range names {
		x, y := 12+float64(i%legendColumns)*totalWidth/legendColumns, legendRow*float64(i/legendColumns)+16
		fmt.Fprintf(&s, `<circle cx="%.1f" cy="%.1f" r="4" fill="%s"/><text x="%.1f" y="%.1f">%s</text>`+"\n", x, y-4, colour(i), x+10, y, html.EscapeString(name))
	}
	for i, p := range panels {
		fmt.Fprintf(&s, `<g transform="translate(%.1f %.1f)">`+"\n", float64(i%columns)*width, top+float64(i/columns)*panelHeight)
		p.draw(&s, width, names)
		s.WriteString("</g>\n")
	}
	s.WriteString("</svg>\n")
	return s.String()
}

// lineNames returns the names of all lines, each once, in the order of their appearance.
func lineNames(panels []Panel) (names []string) {
	for _, p := range panels {
		for _, l := range p.Lines {
			if !slices.Contains(names, l.Name) {
				names = append(names, l.Name)
			}
		}
	}
	return names
}

func (p Panel) draw(s *strings.Builder, width float64, names []string) {
	x, y := p.axis(func(at Point) float64 { return at.X }), p.axis(func(at Point) float64 { return at.Y })
	x.from, x.to = marginLeft, width-marginRight
	y.from, y.to = panelHeight-marginLow, marginTop
	fmt.Fprintf(s, `<text x="%.1f" y="%.1f" font-weight="bold">%s</text>`+"\n", marginLeft, marginTop-12, html.EscapeString(p.Title))
	fmt.Fprintf(s, `<text x="%.1f" y="%.1f" text-anchor="middle">%s</text>`+"\n", (x.from+x.to)/2, panelHeight-10, html.EscapeString(p.X))
	fmt.Fprintf(s, `<text transform="translate(12 %.1f) rotate(-90)" text-anchor="middle">%s</text>`+"\n", (y.from+y.to)/2, html.EscapeString(p.Y))
	for _, tick := range y.ticks() {
		at := y.place(tick)
		fmt.Fprintf(s, `<path d="M%.1f %.1fH%.1f" stroke="#ddd"/><text x="%.1f" y="%.1f" text-anchor="end">%s</text>`+"\n", x.from, at, x.to, x.from-4, at+4, short(tick))
	}
	across := x.ticks()
	if p.Log {
		across = p.Measured()
	}
	for _, tick := range across {
		at := x.place(tick)
		fmt.Fprintf(s, `<path d="M%.1f %.1fV%.1f" stroke="#eee"/><text x="%.1f" y="%.1f" text-anchor="middle">%s</text>`+"\n", at, y.from, y.to, at, y.from+14, short(tick))
	}
	fmt.Fprintf(s, `<path d="M%.1f %.1fV%.1fH%.1f" fill="none" stroke="#666"/>`+"\n", x.from, y.to, y.from, x.to)
	for _, l := range p.Lines {
		c := colour(slices.Index(names, l.Name))
		var path strings.Builder
		for i, at := range l.Points {
			fmt.Fprintf(&path, "%c%.1f %.1f", "ML"[min(i, 1)], x.place(at.X), y.place(at.Y))
			if len(l.Points) <= fewPoints {
				fmt.Fprintf(s, `<circle cx="%.1f" cy="%.1f" r="2.5" fill="%s"/>`+"\n", x.place(at.X), y.place(at.Y), c)
			}
		}
		fmt.Fprintf(s, `<path d="%s" fill="none" stroke="%s" stroke-width="1.5"/>`+"\n", path.String(), c)
	}
}

// axis is an axis from the value low to high, drawn from the coordinate from to to.
type axis struct {
	log                 bool
	low, high, from, to float64
}

func (p Panel) axis(value func(Point) float64) axis {
	a := axis{log: p.Log, low: math.Inf(1)}
	for _, l := range p.Lines {
		for _, at := range l.Points {
			if v := value(at); v > 0 {
				a.low, a.high = min(a.low, v), max(a.high, v)
			}
		}
	}
	switch {
	case a.high == 0:
		a.low, a.high = 1, 10
	case p.Log && a.high < 3*a.low: // a flat line should look flat
		a.low, a.high = a.low/2, a.high*2
	}
	if !p.Log {
		a.low = 0
	}
	return a
}

// place returns the coordinate of a value. Values below the axis are at its lower end.
func (a axis) place(v float64) float64 {
	v = max(v, a.low)
	share := (v - a.low) / (a.high - a.low)
	if a.log {
		share = math.Log(v/a.low) / math.Log(a.high/a.low)
	}
	return a.from + share*(a.to-a.from)
}

// ticks returns round numbers: multiples of 1, 2 or 5 times a power of ten. On a logarithmic axis
// they are powers of ten, and 2 and 5 times each if there are few.
func (a axis) ticks() (ticks []float64) {
	if !a.log {
		power, step := math.Pow(10, math.Floor(math.Log10(a.high))), 0.0
		for _, share := range []float64{0.2, 0.5, 1, 2} {
			if a.high/(power*share) >= 3 {
				step = power * share
			}
		}
		for i := 0.0; i*step <= a.high; i++ {
			ticks = append(ticks, i*step)
		}
		return ticks
	}
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

// Measured returns the values of x of all lines, each once.
func (p Panel) Measured() (values []float64) {
	for _, l := range p.Lines {
		for _, at := range l.Points {
			if !slices.Contains(values, at.X) {
				values = append(values, at.X)
			}
		}
	}
	return values
}

// short formats a number for an axis.
func short(v float64) string {
	switch {
	case v >= 1e6:
		return fmt.Sprintf("%gM", v/1e6)
	case v >= 1e3:
		return fmt.Sprintf("%gk", v/1e3)
	}
	return fmt.Sprintf("%.4g", v)
}
