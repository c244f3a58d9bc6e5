package model

import (
	"slices"
	"testing"

	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
	"github.com/btrfs-csi/btrfs-csi/test/reliability/files"
)

func TestTimeline(t *testing.T) {
	sizes := Timeline[int]{{Span{1, 2}, 10}, {Span{5, 7}, 20}, {Span{9, 0}, 30}}
	for name, test := range map[string]struct {
		at   Window
		want []int
	}{
		"before anything":         {Window{0, 0}, nil},
		"being made":              {Window{1, 1}, []int{10}},
		"made":                    {Window{3, 4}, []int{10}},
		"asked for more":          {Window{4, 5}, []int{10, 20}},
		"answered in the window":  {Window{6, 8}, []int{10, 20}},
		"answered before it":      {Window{7, 8}, []int{20}},
		"asked, and not answered": {Window{8, 12}, []int{20, 30}},
	} {
		t.Run(name, func(t *testing.T) {
			if got := sizes.during(test.at); !slices.Equal(got, test.want) {
				t.Errorf("got %v, want %v", got, test.want)
			}
		})
	}
}

// TestExpect expects a volume that is made at position 2, written from 5 on, copied from 6 on, and
// removed from 8 to 9.
func TestExpect(t *testing.T) {
	volume := &Object{ID: "volume", Kind: meta.Active, Created: Span{1, 2}, Removed: Span{8, 9}}
	volume.Sizes = Timeline[int64]{{volume.Created, 10}}
	volume.Contents = Timeline[files.Content]{{volume.Created, ""}, {Span{3, 4}, "a"}, {Span{5, 7}, "b"}}
	copied := &Object{ID: "copy", Kind: meta.Committed, Source: volume, Created: Span{6, 0}}
	m := &Model{All: map[string]*Object{"volume": volume, "copy": copied}}
	for name, test := range map[string]struct {
		at                 Window
		volume, must, copy bool
		contents           []files.Content // of the copy
	}{
		"before the request":   {Window{0, 0}, false, false, false, nil},
		"being made":           {Window{1, 1}, true, false, false, nil},
		"made":                 {Window{2, 2}, true, true, false, nil},
		"being copied":         {Window{6, 6}, true, true, true, []files.Content{"a", "b"}},
		"being removed":        {Window{7, 8}, true, false, true, []files.Content{"a", "b"}},
		"removed, in a window": {Window{8, 9}, true, false, true, []files.Content{"a", "b"}},
		"removed":              {Window{9, 9}, false, false, true, []files.Content{"a", "b"}},
	} {
		t.Run(name, func(t *testing.T) {
			e := m.Expect(test.at)
			v, thereV := e["volume"]
			c, thereC := e["copy"]
			if thereV != test.volume || v.Must != test.must || thereC != test.copy || c.Must {
				t.Errorf("got %+v", e)
			}
			if !slices.Equal(c.Contents, test.contents) {
				t.Errorf("the copy may contain %v, want %v", c.Contents, test.contents)
			}
		})
	}
}
