package reliability

import (
	"slices"
	"strings"
	"testing"

	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
)

func TestCompareList(t *testing.T) {
	volume := &object{id: "volume", kind: meta.Active}
	copied := &object{id: "copy", kind: meta.Committed, source: volume}
	expected := map[string]expectation{
		"volume": {object: volume, must: true, sizes: []int64{1, 2}},
		"copy":   {object: copied, sizes: []int64{1}},
	}
	good := []listed{{"volume", "", 2}, {"copy", "volume", 1}}
	if err := compareList(expected, good); err != nil {
		t.Error(err)
	}
	if err := compareList(expected, good[:1]); err != nil {
		t.Error(err)
	}
	for want, list := range map[string][]listed{
		"volume is not listed":   good[1:],
		"other is listed":        append(slices.Clone(good), listed{"other", "", 1}),
		"twice":                  append(slices.Clone(good), good[0]),
		"listed with 3 bytes":    {{"volume", "", 3}},
		"listed with the source": {{"volume", "", 1}, {"copy", "", 1}},
	} {
		if err := compareList(expected, list); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}

func TestCompareIndex(t *testing.T) {
	ledger := map[string]meta.Record{"a": {Size: 1}, "b": {Size: 2, Source: meta.Volume("a")}}
	if err := compareIndex(ledger, []listed{{"a", "", 1}, {"b", "a", 2}}); err != nil {
		t.Error(err)
	}
	for want, list := range map[string][]listed{
		"b is in the ledger and not in the index": {{"a", "", 1}},
		"c is in the index":                       {{"a", "", 1}, {"b", "a", 2}, {"c", "", 1}},
		"b is in the index as":                    {{"a", "", 1}, {"b", "a", 3}},
	} {
		if err := compareIndex(ledger, list); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}
