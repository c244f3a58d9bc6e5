package mount

import (
	"sync/atomic"
	"time"
)

// patience is the time limit for an answer of the kernel. Tables with thousands of mounts
// take milliseconds.
const patience = 10 * time.Second

// overdue is the number of timed-out questions whose calls have not returned yet.
var overdue atomic.Int64

// ask runs a question to the kernel and returns ErrSilent after patience. A blocked call
// cannot be interrupted and occupies a thread. So ask returns ErrSilent at once until all
// timed-out calls have returned.
func ask[T any](question func() (T, error)) (T, error) { return askFor(patience, &overdue, question) }

func askFor[T any](limit time.Duration, overdue *atomic.Int64, question func() (T, error)) (T, error) {
	var none T
	if overdue.Load() > 0 {
		return none, ErrSilent
	}
	type answer struct {
		value T
		err   error
	}
	answered := make(chan answer, 1)
	go func() {
		value, err := question()
		answered <- answer{value, err}
	}()
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case a := <-answered:
		return a.value, a.err
	case <-timer.C:
		overdue.Add(1)
		go func() {
			<-answered
			overdue.Add(-1)
		}()
		return none, ErrSilent
	}
}
