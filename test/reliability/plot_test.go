package reliability

import (
	"encoding/xml"
	"errors"
	"io"
	"strings"
	"testing"
	"time"
)

// TestPlot: whatever there is to draw, it is an SVG with a line for each curve, within
// its bounds.
func TestPlot(t *testing.T) {
	for name, r := range map[string]Report{
		"nothing": {},
		"a run": {
			Samples:   []Sample{{time.Second, 30 << 20, 40, 20}, {time.Minute, 31 << 20, 41, 21}},
			Latencies: map[string][]Latency{"CreateVolume": {{time.Second, 9, time.Millisecond, time.Second}}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			svg := r.plot()
			for d := xml.NewDecoder(strings.NewReader(svg)); ; {
				if _, err := d.Token(); errors.Is(err, io.EOF) {
					break
				} else if err != nil {
					t.Fatalf("%v in\n%s", err, svg)
				}
			}
			if n := strings.Count(svg, `stroke-width="1.2"`); n != 3+2*len(plotted) {
				t.Errorf("%d lines", n)
			}
			if strings.Contains(svg, "NaN") || strings.Contains(svg, "Inf") {
				t.Errorf("no numbers in\n%s", svg)
			}
		})
	}
	if _, most := (diagram{curves: []curve{{points: []point{{0, 33}}}}}).extent(); most != 40 {
		t.Errorf("an axis for 33 ends at %v", most)
	}
}
