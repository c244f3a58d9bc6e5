package reliability

import (
	"slices"
	"testing"

	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
)

func TestTimeline(t *testing.T) {
	sizes := timeline[int]{{span{1, 2}, 10}, {span{5, 7}, 20}, {span{9, 0}, 30}}
	for name, test := range map[string]struct {
		at   window
		want []int
	}{
		"before anything":         {window{0, 0}, nil},
		"being made":              {window{1, 1}, []int{10}},
		"made":                    {window{3, 4}, []int{10}},
		"asked for more":          {window{4, 5}, []int{10, 20}},
		"answered in the window":  {window{6, 8}, []int{10, 20}},
		"answered before it":      {window{7, 8}, []int{20}},
		"asked, and not answered": {window{8, 12}, []int{20, 30}},
	} {
		t.Run(name, func(t *testing.T) {
			if got := sizes.during(test.at); !slices.Equal(got, test.want) {
				t.Errorf("got %v, want %v", got, test.want)
			}
		})
	}
}

// TestExpect: a volume is made at 2, written from 5 on, copied from 6 on and removed
// from 8 to 9.
func TestExpect(t *testing.T) {
	volume := &object{id: "volume", kind: meta.Active, created: span{1, 2}, removed: span{8, 9}}
	volume.sizes = timeline[int64]{{volume.created, 10}}
	volume.contents = timeline[content]{{volume.created, ""}, {span{3, 4}, "a"}, {span{5, 7}, "b"}}
	copied := &object{id: "copy", kind: meta.Committed, source: volume, created: span{6, 0}}
	m := &model{all: map[string]*object{"volume": volume, "copy": copied}}
	for name, test := range map[string]struct {
		at                 window
		volume, must, copy bool
		contents           []content // of the copy
	}{
		"before the request":   {window{0, 0}, false, false, false, nil},
		"being made":           {window{1, 1}, true, false, false, nil},
		"made":                 {window{2, 2}, true, true, false, nil},
		"being copied":         {window{6, 6}, true, true, true, []content{"a", "b"}},
		"being removed":        {window{7, 8}, true, false, true, []content{"a", "b"}},
		"removed, in a window": {window{8, 9}, true, false, true, []content{"a", "b"}},
		"removed":              {window{9, 9}, false, false, true, []content{"a", "b"}},
	} {
		t.Run(name, func(t *testing.T) {
			e := m.expect(test.at)
			v, thereV := e["volume"]
			c, thereC := e["copy"]
			if thereV != test.volume || v.must != test.must || thereC != test.copy || c.must {
				t.Errorf("got %+v", e)
			}
			if !slices.Equal(c.contents, test.contents) {
				t.Errorf("the copy may contain %v, want %v", c.contents, test.contents)
			}
		})
	}
}
