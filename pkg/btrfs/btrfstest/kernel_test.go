package btrfstest

import (
	"testing"

	"github.com/btrfs-csi/btrfs-csi/internal/kernel"
)

func TestFact(t *testing.T) {
	major, minor := kernel.Version()
	for _, test := range []struct {
		fact  Fact
		holds bool
	}{
		{Fact{"", major, minor}, true}, {Fact{"", major - 1, minor + 1}, true}, {Fact{"", major, minor + 1}, false}, {Fact{"", major + 1, 0}, false},
	} {
		if got := test.fact.Holds(); got != test.holds {
			t.Errorf("%+v on %s: %v", test.fact, kernel.Release(), got)
		}
		t.Run("need", func(t *testing.T) {
			defer func() {
				if t.Skipped() == test.holds {
					t.Errorf("%+v on %s: skipped %v", test.fact, kernel.Release(), t.Skipped())
				}
			}()
			test.fact.Need(t)
		})
	}
}
