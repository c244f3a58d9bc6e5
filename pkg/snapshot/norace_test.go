//go:build !race

package snapshot_test

// chosen reports whether a case of many is run: see the one for the race detector.
func chosen() bool { return true }
