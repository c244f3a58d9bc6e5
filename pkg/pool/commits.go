package pool

import (
	"sync"
	"sync/atomic"
	"time"
)

// mostPatience bounds how long an operation that is ready for its fsync waits for
// others.
const mostPatience = 25 * time.Millisecond

// Commits lets operations of one pool that reach their fsync at about the same time share a
// commit. The kernel lets operations join an open transaction, but an fsync closes it. Without
// Commits, concurrent operations would commit one after the other. So an operation that is ready
// waits for the running commit, behind which its own would queue. It also waits for the
// operations that have a ticket, and until its group is as large as the last one. It waits for no
// longer than 4 commits take. A lone operation never waits.
//
// Snapshots do not use Commits. Their ioctl joins a transaction and requests its commit in one
// call. All ioctls that begin during another commit share the next one (before Linux 6.6, fewer
// do), so waiting would gain nothing.
type Commits struct {
	mu         sync.Mutex    // protects what follows
	tickets    int           // operations with a ticket that are in no group yet
	waiting    *group        // nil: none
	committing int           // operations of released groups that have not committed
	expected   int           // size of the last group
	idle       time.Time     // when the last commit ended
	took       time.Duration // duration of the last commit
}

// group is a set of operations that commit together.
type group struct {
	size  int
	start chan struct{} // closed when the group is complete and may commit
	leads atomic.Bool   // set by the operation that commits first
	led   chan struct{} // closed after the first commit
}

// Ticket is an operation that will commit, or end before.
type Ticket struct {
	commits *Commits
	joined  bool // protected by commits.mu
}

// Begin returns the ticket of an operation that is on its way to an fsync. The operation must
// call Done, however it ends.
func (c *Commits) Begin() *Ticket {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.tickets++
	return &Ticket{commits: c}
}

// Done ends the operation: nobody waits for it any more. It may be repeated.
func (t *Ticket) Done() {
	t.commits.mu.Lock()
	defer t.commits.mu.Unlock()
	if !t.joined {
		t.join()
		t.commits.dispatch()
	}
}

// join removes the operation from those that others wait for. The caller holds commits.mu.
func (t *Ticket) join() {
	if t != nil && !t.joined {
		t.joined = true
		t.commits.tickets--
	}
}

// dispatch releases the waiting group if it has nothing to wait for. The caller holds mu.
func (c *Commits) dispatch() {
	if g := c.waiting; g != nil && c.committing == 0 && c.tickets == 0 && g.size >= c.expected {
		c.release()
	}
}

// release lets the waiting group commit. The caller holds mu.
func (c *Commits) release() {
	g := c.waiting
	c.waiting = nil
	c.expected = g.size
	c.committing += g.size
	close(g.start)
}

// join adds an operation to the waiting group, and returns when the group may commit.
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
	released, patience := c.waiting != g, min(4*c.took, mostPatience)
	c.mu.Unlock()

	if released || happens(g.start, patience) {
		return g
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.waiting == g {
		c.release()
	}
	return g
}

// happens waits until event is closed; false if that takes longer than patience.
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

// committed records that an operation has committed. took is how long the first one of its group
// needed, 0 for the others.
func (c *Commits) committed(took time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if took > 0 {
		c.took = took
	}
	c.committing--
	c.idle = time.Now()
	c.dispatch()
}

// Share runs sync, the fsync of an operation, in a group. The first fsync commits the transaction
// of all, so that the others find little or nothing to do.
func (c *Commits) Share(t *Ticket, sync func() error) error {
	g := c.join(t)
	if g.leads.CompareAndSwap(false, true) {
		began := time.Now()
		err := sync()
		close(g.led)
		c.committed(time.Since(began))
		return err
	}
	happens(g.led, mostPatience)
	defer c.committed(0)
	return sync()
}
