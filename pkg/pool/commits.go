package pool

import (
	"sync"
	"sync/atomic"
	"time"
)

// mostPatience bounds how long an operation that is ready for its fsync waits for
// others.
const mostPatience = 25 * time.Millisecond

// Commits has operations of one pool that come to their fsync at about the same
// time share a commit. The kernel lets whoever comes while a transaction is open
// join it, but who asks for its commit closes it: by themselves, one operation after
// the other would. So those that are ready wait for the commit under way, which
// theirs would queue behind, for the operations that are known to be on their way,
// and for as many as came the last time; all that for no longer than a few commits
// take. An operation that is alone never waits.
//
// Snapshots are not among them. Their ioctl joins a transaction and asks for its commit in
// one, and who does so while another commit is under way is with all that come until
// that has ended (since Linux 6.6; before, with fewer). For one that has not begun there
// is nothing to be won by waiting.
type Commits struct {
	mu         sync.Mutex    // protects what follows
	announced  int           // operations announced that have not come yet
	waiting    *group        // nil: none
	committing int           // operations of earlier groups
	expected   int           // how many were in the last group
	idle       time.Time     // when the last commit ended
	took       time.Duration // the last commit
}

// group are operations that commit together.
type group struct {
	size  int
	start chan struct{} // closed when they may, and no more join
	leads atomic.Bool   // set by the one that goes first
	led   chan struct{} // closed after the first commit
}

// Ticket is an operation that will commit, or fail before.
type Ticket struct {
	commits *Commits
	joined  bool // protected by commits.mu
}

// Begin returns the ticket of an operation that ends with an fsync, or before. It has to
// call Done, however it ends.
func (c *Commits) Begin() *Ticket {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.announced++
	return &Ticket{commits: c}
}

// Done has nobody wait for the operation any more.
func (t *Ticket) Done() {
	t.commits.mu.Lock()
	defer t.commits.mu.Unlock()
	t.join()
	t.commits.dispatch()
}

// join counts the operation out of those that are on their way. The caller holds
// commits.mu.
func (t *Ticket) join() {
	if t != nil && !t.joined {
		t.joined = true
		t.commits.announced--
	}
}

// dispatch lets the group go that waits for nobody else. The caller holds mu.
func (c *Commits) dispatch() {
	if g := c.waiting; g != nil && c.committing == 0 && c.announced == 0 && g.size >= c.expected {
		c.release()
	}
}

// release lets the group go. The caller holds mu.
func (c *Commits) release() {
	g := c.waiting
	c.waiting = nil
	c.expected = g.size
	c.committing += g.size
	close(g.start)
}

// join waits for others, and returns with them.
func (c *Commits) join(t *Ticket) *group {
	c.mu.Lock()
	t.join()
	if c.waiting == nil {
		if c.committing == 0 && time.Since(c.idle) > mostPatience {
			c.expected = 0
		}
		c.waiting = &group{start: make(chan struct{}), led: make(chan struct{})}
	}
	g := c.waiting
	g.size++
	c.dispatch()
	patience := min(4*c.took, mostPatience)
	c.mu.Unlock()

	if happens(g.start, patience) {
		return g
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.waiting == g {
		c.release()
	}
	return g
}

// happens waits for a channel to be closed, false if that takes too long.
func happens(event <-chan struct{}, patience time.Duration) bool {
	timeout := time.NewTimer(patience)
	defer timeout.Stop()
	select {
	case <-event:
		return true
	case <-timeout.C:
		return false
	}
}

// depart says that an operation has committed, and how long that took if it did
// not find it done.
func (c *Commits) depart(took time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if took > 0 {
		c.took = took
	}
	c.committing--
	c.idle = time.Now()
	c.dispatch()
}

// Share runs sync, the fsync of an operation, in a group. A commit of another operation
// makes durable what it is for, too, so one of the group goes first, and the others find
// little or nothing to do.
func (c *Commits) Share(t *Ticket, sync func() error) error {
	g := c.join(t)
	if g.leads.CompareAndSwap(false, true) {
		began := time.Now()
		err := sync()
		close(g.led)
		c.depart(time.Since(began))
		return err
	}
	happens(g.led, mostPatience)
	defer c.depart(0)
	return sync()
}
