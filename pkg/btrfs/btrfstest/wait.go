package btrfstest

import (
	"testing"
	"time"
)

// Patience ends a wait for something that never comes. It is far more than anything takes
// on a busy machine: no test may depend on speed.
const Patience = 5 * time.Minute

// Eventually waits until is returns true, and fails the test if it never does.
func Eventually(t testing.TB, what string, is func() bool) {
	t.Helper()
	if !Comes(is) {
		t.Fatalf("not within %s: %s", Patience, what)
	}
}

// Comes waits until is returns true, and reports whether it ever does.
func Comes(is func() bool) bool {
	for deadline := time.Now().Add(Patience); !is(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			return false
		}
	}
	return true
}
