package load

import (
	"strings"
	"sync"
	"time"
)

// Answers counts the requests of one kind.
type Answers struct {
	Sent         int `json:"sent"`
	Acknowledged int `json:"acknowledged"`
	Refused      int `json:"refused"`    // for good
	Unanswered   int `json:"unanswered"` // broken off, or to be asked again
}

// Counts are what the workers add to.
type Counts struct {
	mu       sync.Mutex // protects what follows
	requests map[string]*Answers
	writes   int
	began    time.Time // zero: requests are not timed
	timings  map[string][]timing
}

// NewCounts returns counts of nothing.
func NewCounts() *Counts { return &Counts{requests: map[string]*Answers{}} }

// StartTiming has requests be timed from now on.
func (c *Counts) StartTiming(began time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.began, c.timings = began, map[string][]timing{}
}

func (c *Counts) write() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.writes++
}

// add counts a request that was sent at some time and has just been answered. What
// provokes is for a request that is known by its name, which is no method, and is not timed.
func (c *Counts) add(what string, err error, sent time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	a := c.requests[what]
	if a == nil {
		a = &Answers{}
		c.requests[what] = a
	}
	a.Sent++
	switch {
	case err == nil:
		a.Acknowledged++
		if !c.began.IsZero() && !strings.Contains(what, " ") {
			c.timings[what] = append(c.timings[what], timing{sent.Sub(c.began), time.Since(sent)})
		}
	case final(err):
		a.Refused++
	default:
		a.Unanswered++
	}
}

// Sent returns how many requests were sent so far.
func (c *Counts) Sent() (n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, a := range c.requests {
		n += a.Sent
	}
	return n
}

// Add adds other requests.
func (a *Answers) Add(other Answers) {
	a.Sent += other.Sent
	a.Acknowledged += other.Acknowledged
	a.Refused += other.Refused
	a.Unanswered += other.Unanswered
}

// Report returns how many files were written, and the requests by kind.
func (c *Counts) Report() (writes int, requests map[string]Answers) {
	c.mu.Lock()
	defer c.mu.Unlock()
	requests = map[string]Answers{}
	for what, a := range c.requests {
		requests[what] = *a
	}
	return c.writes, requests
}
