package keylock

import (
	"context"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

func TestAcquire(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s Set[string]
		take := func(ctx context.Context, exclusive, shared string) (func(), string, bool) {
			keys := func(s string) []string { return slices.DeleteFunc([]string{s}, func(s string) bool { return s == "" }) }
			return s.Acquire(ctx, keys(exclusive), keys(shared))
		}
		ended, end := context.WithCancel(t.Context())
		end()
		release, _, ok := take(t.Context(), "copy", "source")
		again, _, okAgain := take(t.Context(), "other copy", "source")
		if !ok || !okAgain {
			t.Fatal("two cannot share a lock")
		}
		for exclusive, shared := range map[string]string{"source": "", "copy": "", "new": "copy"} {
			began := time.Now()
			if _, busy, ok := take(ended, exclusive, shared); ok || busy != max(exclusive, shared) && busy != "copy" {
				t.Errorf("%s, %s shared: %v, busy is %q", exclusive, shared, ok, busy)
			}
			if _, _, ok := take(t.Context(), exclusive, shared); ok || time.Since(began) != Patience {
				t.Errorf("%s, %s shared: %v after %s", exclusive, shared, ok, time.Since(began))
			}
		}
		if release, ok := s.TryAcquire("new"); !ok {
			t.Error("a request that failed has kept a lock")
		} else {
			release()
		}
		if _, ok := s.TryAcquire("source"); ok {
			t.Error("a shared lock was taken exclusively")
		}
		time.AfterFunc(time.Second, release)
		time.AfterFunc(2*time.Second, again)
		began := time.Now()
		if _, _, ok := take(t.Context(), "source", ""); !ok || time.Since(began) != 2*time.Second {
			t.Errorf("after both had ended: %v, after %s", ok, time.Since(began))
		}
	})
}
