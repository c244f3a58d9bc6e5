package plot

import (
	"encoding/xml"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
)

// TestSVG: for any panels the result is an SVG with a path for each line, and each coordinate is a
// number.
func TestSVG(t *testing.T) {
	growing := []Line{{"a", []Point{{1, 10}, {10, 100}}}, {"b & c", []Point{{1, 0}, {10, 3}}}}
	for name, panels := range map[string][]Panel{
		"nothing":     nil,
		"no points":   {{Title: "empty", Lines: []Line{{Name: "a"}, {Name: "b"}}}},
		"one point":   {{Log: true, Lines: []Line{{"a", []Point{{1, 1}}}, {"b", []Point{{0, 0}}}}}},
		"linear":      {{Title: "<title>", X: "x", Y: "y", Lines: growing}},
		"logarithmic": {{Title: "<title>", X: "x", Y: "y", Log: true, Lines: growing}},
		"many":        slices.Repeat([]Panel{{Lines: growing}}, 7),
	} {
		t.Run(name, func(t *testing.T) {
			svg := SVG(panels, 3)
			for d := xml.NewDecoder(strings.NewReader(svg)); ; {
				if _, err := d.Token(); errors.Is(err, io.EOF) {
					break
				} else if err != nil {
					t.Fatalf("%v in\n%s", err, svg)
				}
			}
			if n := strings.Count(svg, `stroke-width="1.5"`); n != 2*len(panels) {
				t.Errorf("%d lines, want %d", n, 2*len(panels))
			}
			if strings.Contains(svg, "NaN") || strings.Contains(svg, "Inf") {
				t.Errorf("no numbers in\n%s", svg)
			}
		})
	}
}

func TestTicks(t *testing.T) {
	for _, test := range []struct {
		axis axis
		want []float64
	}{
		{axis{high: 38}, []float64{0, 10, 20, 30}},
		{axis{high: 8}, []float64{0, 2, 4, 6, 8}},
		{axis{high: 150}, []float64{0, 50, 100, 150}},
		{axis{log: true, low: 3, high: 30}, []float64{5, 10, 20}},
		{axis{log: true, low: 3, high: 3000}, []float64{10, 100, 1000}},
	} {
		if got := test.axis.ticks(); !slices.Equal(got, test.want) {
			t.Errorf("%+v has the ticks %v, want %v", test.axis, got, test.want)
		}
	}
}
