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

// Returns runs fn, and fails the test if fn does not return.
func Returns(t testing.TB, what string, fn func()) {
	t.Helper()
	done := make(chan struct{})
	go func() { defer close(done); fn() }()
	select {
	case <-done:
	case <-time.After(Patience):
		t.Fatalf("%s hangs", what)
	}
}
