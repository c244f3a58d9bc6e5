package queue

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

// TestRun: a key that fails is retried with growing delays. A key that is postponed or done is not.
func TestRun(t *testing.T) {
	for _, c := range []struct {
		name string
		errs []error         // of its attempts; nil after these
		at   []time.Duration // the times of the attempts
	}{
		{name: "done", at: []time.Duration{0}},
		{name: "put off", errs: []error{ErrPutOff}, at: []time.Duration{0}},
		{name: "fails twice", errs: []error{errors.New("a"), errors.New("b")}, at: []time.Duration{0, time.Second, 3 * time.Second}},
		{name: "fails often", errs: []error{errors.New("a"), errors.New("b"), errors.New("c"), errors.New("d")}, at: []time.Duration{0, time.Second, 3 * time.Second, 7 * time.Second, 12 * time.Second}},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				q := New[string](time.Second, 5*time.Second)
				began := time.Now()
				var at []time.Duration
				go q.Run(t.Context(), func(context.Context, string) error {
					at = append(at, time.Since(began))
					if len(at) <= len(c.errs) {
						return c.errs[len(at)-1]
					}
					return nil
				})
				q.Add("key")
				time.Sleep(time.Minute)
				synctest.Wait()
				if len(at) != len(c.at) {
					t.Fatalf("want it tried at %v, got %v", c.at, at)
				}
				for i, want := range c.at {
					if got := at[i].Truncate(100 * time.Millisecond); got != want {
						t.Errorf("want attempt %d after %v, got %v", i+1, want, at[i])
					}
				}
			})
		})
	}
}
