package pool

import (
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// slow is an fsync that takes a millisecond.
func slow() error {
	time.Sleep(time.Millisecond)
	return nil
}

func TestCommitsAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &Commits{}
		for range 10 {
			began := time.Now()
			a := c.Begin()
			if err := c.Share(a, slow); err != nil {
				t.Fatal(err)
			}
			a.Done()
			if took := time.Since(began); took != time.Millisecond {
				t.Errorf("one operation alone took %v, its commit takes 1ms", took)
			}
		}
	})
}

// TestCommitsFail: an operation that fails before its commit delays nobody, and a commit that
// fails fails all operations of its group.
func TestCommitsFail(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		broken := errors.New("broken")
		c := &Commits{}
		gone := c.Begin()
		began := time.Now()
		var all sync.WaitGroup
		for range 6 {
			all.Go(func() {
				a := c.Begin()
				defer a.Done()
				if err := c.Share(a, func() error { return broken }); !errors.Is(err, broken) {
					t.Errorf("got %v", err)
				}
			})
		}
		time.Sleep(time.Microsecond)
		gone.Done()
		gone.Done()
		all.Wait()
		if took := time.Since(began); took > 2*mostPatience {
			t.Errorf("took %v", took)
		}
	})
}

// TestCommitsEachSyncs: one commit does not make durable what an fsync writes to the log of a
// single directory. So each operation of a group syncs its own slot after it has joined.
func TestCommitsEachSyncs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &Commits{took: time.Millisecond}
		together := c.Begin()
		var all sync.WaitGroup
		for i := range 8 {
			all.Go(func() {
				synced := 0
				_ = c.Share(c.Begin(), func() error { synced++; return slow() })
				if synced != 1 {
					t.Errorf("%d was answered and synced %d times", i, synced)
				}
			})
		}
		synctest.Wait()
		together.Done()
		all.Wait()
		if c.expected != 8 {
			t.Errorf("the last group had %d operations, the test is of one with 8", c.expected)
		}
	})
}
