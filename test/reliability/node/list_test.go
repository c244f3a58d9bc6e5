package node

import (
	"slices"
	"strings"
	"testing"

	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
	"github.com/btrfs-csi/btrfs-csi/test/reliability/model"
)

func TestCompareList(t *testing.T) {
	volume := &model.Object{ID: "volume", Kind: meta.Active}
	copied := &model.Object{ID: "copy", Kind: meta.Committed, Source: volume}
	expected := map[string]model.Expectation{
		"volume": {Object: volume, Must: true, Sizes: []int64{1, 2}},
		"copy":   {Object: copied, Sizes: []int64{1}},
	}
	good := []Listed{{"volume", "", 2}, {"copy", "volume", 1}}
	if err := CompareList(expected, good); err != nil {
		t.Error(err)
	}
	if err := CompareList(expected, good[:1]); err != nil {
		t.Error(err)
	}
	for want, list := range map[string][]Listed{
		"volume is not listed":   good[1:],
		"other is listed":        append(slices.Clone(good), Listed{"other", "", 1}),
		"twice":                  append(slices.Clone(good), good[0]),
		"listed with 3 bytes":    {{"volume", "", 3}},
		"listed with the source": {{"volume", "", 1}, {"copy", "", 1}},
	} {
		if err := CompareList(expected, list); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}

func TestCompareIndex(t *testing.T) {
	ledger := map[string]meta.Record{"a": {Size: 1}, "b": {Size: 2, Source: meta.Volume("a")}}
	if err := compareIndex(ledger, []Listed{{"a", "", 1}, {"b", "a", 2}}); err != nil {
		t.Error(err)
	}
	for want, list := range map[string][]Listed{
		"b is in the ledger and not in the index": {{"a", "", 1}},
		"c is in the index":                       {{"a", "", 1}, {"b", "a", 2}, {"c", "", 1}},
		"b is in the index as":                    {{"a", "", 1}, {"b", "a", 3}},
	} {
		if err := compareIndex(ledger, list); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}
