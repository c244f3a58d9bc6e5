//go:build race

package snapshot_test

import "math/rand/v2"

// chosen reports whether a case of many is run. With the race detector one takes five times
// as long, and shows no more: one goroutine works at a time. So one in eight is run then,
// others each time. make test runs all of them without it.
func chosen() bool { return rand.IntN(8) == 0 }
