//go:build race

package snapshot_test

import "math/rand/v2"

// chosen reports whether to run one of many cases. The race detector makes a case five times
// slower and finds nothing more, since only one goroutine works at a time. So one case in eight
// is run, chosen at random. make test runs all cases without it.
func chosen() bool { return rand.IntN(8) == 0 }
