//go:build !race

package snapshot_test

// chosen reports whether to run one of many cases; see race_test.go.
func chosen() bool { return true }
