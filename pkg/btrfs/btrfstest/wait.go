package btrfstest

import (
	"testing"
	"time"
)

// Patience is the timeout of all waits. It is far longer than any step takes on a busy
// machine, so that no test depends on speed.
const Patience = 5 * time.Minute

// Eventually waits until is returns true. After Patience it fails the test.
func Eventually(t testing.TB, what string, is func() bool) {
	t.Helper()
	if !Comes(is) {
		t.Fatalf("not within %s: %s", Patience, what)
	}
}

// Comes waits until is returns true. After Patience it returns false.
func Comes(is func() bool) bool {
	for deadline := time.Now().Add(Patience); !is(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			return false
		}
	}
	return true
}
