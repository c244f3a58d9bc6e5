package fuzz

import (
	"slices"
	"testing"
	"time"
)

func TestParseTargets(t *testing.T) {
	got := parseTargets("FuzzA\nFuzzB\nok  \texample.com/one\t0.01s\nok  \texample.com/none\t0.01s\n?   \texample.com/bare\t[no test files]\nFuzzC\nok  \texample.com/two\t0.02s\n")
	want := []Result{{Package: "example.com/one", Target: "FuzzA"}, {Package: "example.com/one", Target: "FuzzB"}, {Package: "example.com/two", Target: "FuzzC"}}
	if !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestFuzzed(t *testing.T) {
	elapsed, inputs := fuzzed([]byte(`fuzz: elapsed: 0s, gathering baseline coverage: 0/30 completed
fuzz: elapsed: 0s, gathering baseline coverage: 30/30 completed, now fuzzing with 2 workers
fuzz: elapsed: 3s, execs: 1000 (333/sec), new interesting: 1 (total: 31)
fuzz: elapsed: 1m1s, execs: 20123 (350/sec), new interesting: 2 (total: 32)
PASS
`))
	if elapsed != 61*time.Second || inputs != 20123 {
		t.Errorf("got %v, %d inputs", elapsed, inputs)
	}
	if elapsed, inputs := fuzzed([]byte("PASS\n")); elapsed != 0 || inputs != 0 {
		t.Errorf("got %v, %d inputs where there was no fuzzing", elapsed, inputs)
	}
}

// TestEndedLate checks that a target that ends late does not count as failed.
func TestEndedLate(t *testing.T) {
	for name, c := range map[string]struct {
		said string
		want bool
	}{
		"in the middle of an input": {"fuzz: elapsed: 3s, execs: 9 (0/sec)\n--- FAIL: FuzzX (3.04s)\n    context deadline exceeded\nFAIL\nexit status 1\n", true},
		"an input that fails":       {"--- FAIL: FuzzX (0.01s)\n    --- FAIL: FuzzX (0.00s)\n        x_test.go:9: context deadline exceeded\n    \n    Failing input written to testdata\nFAIL\n", false},
		"nothing":                   {"ok  \tx\t3.0s\n", false},
	} {
		if got := endedLate.MatchString(c.said); got != c.want {
			t.Errorf("%s: got %v", name, got)
		}
	}
}
