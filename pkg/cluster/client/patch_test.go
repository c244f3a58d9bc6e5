package client

import (
	"testing"
)

func TestMetadataPatch(t *testing.T) {
	for _, c := range []struct {
		name         string
		have, want   map[string]string
		label, wants map[string]string
		patch        string
	}{
		{name: "nothing new", have: map[string]string{"a": "1", "other": "x"}, want: map[string]string{"a": "1", "b": ""}},
		{name: "new, other, gone", have: map[string]string{"b": "1", "c": "2", "other": "x"}, want: map[string]string{"a": "1", "b": "2", "c": ""},
			patch: `{"metadata":{"annotations":{"a":"1","b":"2","c":null}}}`},
		{name: "a label", label: map[string]string{"l": "node-1"}, wants: map[string]string{"l": "node-2"},
			patch: `{"metadata":{"labels":{"l":"node-2"}}}`},
	} {
		if got := string(MetadataPatch(c.have, c.want, c.label, c.wants)); got != c.patch {
			t.Errorf("%s: want %s, got %s", c.name, c.patch, got)
		}
	}
}
