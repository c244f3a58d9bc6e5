package pool

import (
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// Patience is how long calls to a pool may take.
type Patience struct {
	Look time.Duration // a look-up
	Walk time.Duration // a call that reads a whole tree, or the mount table of the node
	// Step is for a call that changes something. It may wait for a commit, which takes half a
	// minute on a slow disk under load.
	Step time.Duration
	// Thaw is how long a filesystem that is not frozen may take to let a writer in, which needs
	// neither the disk nor a commit.
	Thaw time.Duration
}

// DefaultPatience suits disks of all kinds.
var DefaultPatience = Patience{Look: 5 * time.Second, Walk: time.Minute, Step: 2 * time.Minute, Thaw: time.Second}

// WithLook returns p with d for a look-up. The other durations are raised to d, Thaw to d/5, if
// they are less.
func (p Patience) WithLook(d time.Duration) Patience {
	return Patience{Look: d, Walk: max(p.Walk, d), Step: max(p.Step, d), Thaw: max(p.Thaw, d/5)}
}

// mostAsking bounds the threads that wait in the kernel for look-ups in one pool.
const mostAsking = 128

// answers records whether the disk of a pool answers. A disk may become silent: calls then return
// neither a result nor an error, but wait in the kernel, and nothing can end that.
//
// A look-up runs in a goroutine of its own. If it takes too long, look returns ErrSilent and
// leaves the goroutine behind. From then on every look-up fails at once, until all goroutines
// left behind have returned and the disk answers again. So a silent pool costs a request to all
// pools one wait at most, and never more than mostAsking threads.
//
// A step, which changes something, is never given up: it would take effect after its request was
// answered and its ID unlocked. A step that takes too long makes the pool silent too.
type answers struct {
	pool     string
	patience Patience
	changed  func()        // called when silence begins or ends; may be nil
	asking   chan struct{} // one element for each look-up in the kernel
	now      atomic.Pointer[silence]

	mu      sync.Mutex // protects what follows, and changes of now
	overdue int        // calls that were given up and have not returned
	thaw    *thaw      // the running one; nil: none
}

// silence is whether a pool is silent, and since when.
type silence struct {
	err   error         // nil: the pool answers
	begun chan struct{} // closed when it does not answer any more
}

// what names a call to a pool.
type what struct {
	method string
	at     Slot // zero for calls about the whole pool
}

func (w what) String() string {
	if w.at == (Slot{}) {
		return w.method
	}
	return w.method + " " + w.at.String()
}

// call is a running call: 0, or how it ended first.
type call struct{ atomic.Int32 }

const (
	returned = 1
	givenUp  = 2
)

func newAnswers(pool string, patience Patience) *answers {
	a := &answers{pool: pool, patience: patience, asking: make(chan struct{}, mostAsking)}
	a.now.Store(&silence{begun: make(chan struct{})})
	return a
}

// giveUp marks a call as overdue and the pool as silent; false if the call has returned.
func (a *answers) giveUp(c *call, w what) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !c.CompareAndSwap(0, givenUp) {
		return false
	}
	a.overdue++
	if now := a.now.Load(); now.err == nil {
		a.now.Store(&silence{SilentError(a.pool, w.String(), time.Now()), now.begun})
		close(now.begun)
		a.notify()
	}
	return true
}

// end marks a call that was given up as returned. The silence ends with the last one.
func (a *answers) end() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.overdue--; a.overdue == 0 {
		a.now.Store(&silence{begun: make(chan struct{})})
		a.notify()
	}
}

func (a *answers) notify() {
	if a.changed != nil {
		go a.changed()
	}
}

// SilentError returns the ErrSilent of a pool in which a call of method was given up. Its text
// stays the same during one silence.
func SilentError(pool, method string, since time.Time) error {
	return fmt.Errorf("pool %q: %w since %s (%s): look at the disk and for it in the kernel's log; the pool is used again when it answers",
		pool, ErrSilent, since.UTC().Format(time.RFC3339), method)
}

// look runs a look-up. It gives the look-up up after limit, unless the session is patient. Until a
// look-up returns it uses the session.
func look[T any](s *Session, method string, at Slot, limit time.Duration, fn func() (T, error)) (value T, err error) {
	if s.patient {
		err = s.step(method, at, func() (err error) { value, err = fn(); return err })
		return value, err
	}
	w, now := what{method, at}, s.now.Load()
	if now.err != nil {
		return value, now.err
	}
	timeout := time.NewTimer(limit)
	defer timeout.Stop()
	select {
	case s.asking <- struct{}{}:
	case <-now.begun:
		return value, s.refusal(w)
	case <-timeout.C:
		return value, s.refusal(w)
	}
	type answer struct {
		value T
		err   error
	}
	c, answered := &call{}, make(chan answer, 1)
	go func() {
		value, err := fn()
		if err != nil {
			err = s.explain(err)
		}
		<-s.asking
		if c.CompareAndSwap(0, returned) {
			answered <- answer{value, err}
			return
		}
		s.end()
		s.Close()
	}()
	select {
	case a := <-answered:
		return a.value, a.err
	case <-now.begun:
	case <-timeout.C:
	}
	s.users.Add(1) // for the goroutine that is left behind
	if s.giveUp(c, w) {
		return value, s.refusal(w)
	}
	s.users.Add(-1)
	a := <-answered
	return a.value, a.err
}

// refusal returns the error of a look-up that was given up.
func (a *answers) refusal(w what) error {
	if now := a.now.Load(); now.err != nil {
		return now.err
	}
	return SilentError(a.pool, w.String(), time.Now()) // the pool has just answered, or has too many look-ups
}

// thaw is a running check of whether a filesystem lets writers in. Concurrent callers share it,
// so that at most one thread waits in the kernel.
type thaw struct {
	began time.Time
	done  chan struct{} // closed when err is set
	err   error
}

// Thawed fails with ErrFrozen if the filesystem has let no writer in for patience.Thaw.
func (s *Session) Thawed() error {
	if now := s.now.Load(); now.err != nil {
		return now.err
	}
	t := s.thawing()
	timeout := time.NewTimer(time.Until(t.began.Add(s.patience.Thaw)))
	defer timeout.Stop()
	select {
	case <-t.done:
		return t.err
	case <-timeout.C:
		return FrozenError(s.pool, t.began)
	}
}

// FrozenError returns the ErrFrozen of a pool that lets no writer in.
func FrozenError(pool string, since time.Time) error {
	return fmt.Errorf("pool %q: %w since %s or before: thaw it (fsfreeze --unfreeze); no snapshot needs a freeze, each is of one instant",
		pool, ErrFrozen, since.UTC().Format(time.RFC3339))
}

func (s *Session) thawing() *thaw {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.thaw != nil {
		return s.thaw
	}
	t := &thaw{began: time.Now(), done: make(chan struct{})}
	s.thaw = t
	s.users.Add(1)
	go func() {
		defer s.Close()
		if err := s.directory.Thawed(); err != nil {
			t.err = s.explain(err)
		}
		s.mu.Lock()
		s.thaw = nil
		s.mu.Unlock()
		close(t.done)
	}()
	return t
}
