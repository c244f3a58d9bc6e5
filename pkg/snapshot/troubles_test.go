package snapshot

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

// TestTroubleIsLoggedOnce: a trouble that lasts is logged once an hour, each pool's and each
// message by itself, and another one at once.
func TestTroubleIsLoggedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var logged troubles
		sick, worse := errors.New("sick"), errors.New("worse")
		for step, c := range []struct {
			after   time.Duration
			message string
			pool    string
			err     error
			want    bool
		}{
			{0, "cannot be used", "a", sick, true},
			{0, "cannot be used", "a", errors.New("sick"), false},
			{0, "cannot be used", "b", sick, true},
			{0, "cannot be read", "a", sick, true},
			{time.Second, "cannot be used", "a", worse, true},
			{repeatTrouble - 1, "cannot be used", "a", worse, false},
			{1, "cannot be used", "a", worse, true},
		} {
			time.Sleep(c.after)
			if got := logged.news(c.message, c.pool, c.err); got != c.want {
				t.Errorf("step %d: got %v", step, got)
			}
		}
	})
}
