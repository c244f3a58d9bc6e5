package mount

import (
	"sync/atomic"
	"time"
)

// patience is how long the kernel may take for an answer. It has read tables of
// thousands of mounts in milliseconds.
const patience = 10 * time.Second

// overdue is the number of questions that were given up on and have no answer yet.
var overdue atomic.Int64

// ask asks the kernel, which may have to wait for a disk, and gives up after a while:
// ErrSilent. What hangs in the kernel cannot be ended and holds a thread. So until the
// last question that was given up on has its answer, no other one is asked.
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
