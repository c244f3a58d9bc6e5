package snapshot

import (
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// slowCommits is a Filesystem on which every commit takes a while.
type slowCommits struct {
	Filesystem
	took time.Duration
}

func (f *slowCommits) Sync(Slot) error {
	time.Sleep(f.took)
	return nil
}

func TestCommitsAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &commits{filesystem: &slowCommits{took: time.Millisecond}}
		for range 10 {
			began := time.Now()
			a := c.announce()
			if err := c.sync(a, Slot{}); err != nil {
				t.Fatal(err)
			}
			a.leave()
			if took := time.Since(began); took != time.Millisecond {
				t.Errorf("one operation alone took %v, its commit takes 1ms", took)
			}
		}
	})
}

// TestCommitsFail: an operation that fails before its commit keeps nobody waiting,
// and a commit that fails is told to all that it was for.
func TestCommitsFail(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		broken := errors.New("broken")
		c := &commits{filesystem: failing{reason: broken}}
		gone := c.announce()
		began := time.Now()
		var all sync.WaitGroup
		for range 6 {
			all.Go(func() {
				a := c.announce()
				defer a.leave()
				if err := c.sync(a, Slot{}); !errors.Is(err, broken) {
					t.Errorf("got %v", err)
				}
			})
		}
		time.Sleep(time.Microsecond)
		gone.leave()
		gone.leave()
		all.Wait()
		if took := time.Since(began); took > 2*mostPatience {
			t.Errorf("took %v", took)
		}
	})
}

// TestCommitsEachSyncs: a commit that the kernel has made does not make everything
// durable that came before it, such as what an fsync writes to the log of one
// directory alone. So each operation of a group syncs its own slot, once it has come.
func TestCommitsEachSyncs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &syncedSlots{slowCommits: slowCommits{took: time.Millisecond}, synced: map[Slot]int{}}
		c := &commits{filesystem: f, took: f.took}
		together := c.announce()
		var all sync.WaitGroup
		for i := range 8 {
			s := Slot{"active", string(rune('a' + i))}
			all.Go(func() {
				_ = c.sync(c.announce(), s)
				if f.of(s) != 1 {
					t.Errorf("%s was answered and synced %d times", s, f.of(s))
				}
			})
		}
		synctest.Wait()
		together.leave()
		all.Wait()
		if c.expected != 8 {
			t.Errorf("the last group had %d operations, the test is of one with 8", c.expected)
		}
	})
}

// syncedSlots counts how often each slot was synced.
type syncedSlots struct {
	slowCommits
	mu     sync.Mutex // protects synced
	synced map[Slot]int
}

func (f *syncedSlots) Sync(s Slot) error {
	err := f.slowCommits.Sync(s)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.synced[s]++
	return err
}

func (f *syncedSlots) of(s Slot) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.synced[s]
}

type failing struct {
	Filesystem
	reason error
}

func (f failing) Sync(Slot) error { return f.reason }
