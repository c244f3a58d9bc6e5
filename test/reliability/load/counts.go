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
	Refused      int `json:"refused"`    // with a code after which nobody repeats a request
	Unanswered   int `json:"unanswered"` // broken off, or to be repeated
}

// Counts counts the requests and writes of all workers.
type Counts struct {
	mu       sync.Mutex // protects what follows
	requests map[string]*Answers
	writes   int
	began    time.Time // zero if latencies are not measured
	timings  map[string][]timing
}

// NewCounts returns counts of nothing.
func NewCounts() *Counts { return &Counts{requests: map[string]*Answers{}} }

// StartTiming makes Counts measure the latency of each request from now on.
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

// add counts a request that has just been answered. It measures only requests that are named by
// their method alone; a longer name is for a repeated or a wrong request.
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

// Sent returns the number of requests.
func (c *Counts) Sent() (n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, a := range c.requests {
		n += a.Sent
	}
	return n
}

// Add adds the counts of other requests.
func (a *Answers) Add(other Answers) {
	a.Sent += other.Sent
	a.Acknowledged += other.Acknowledged
	a.Refused += other.Refused
	a.Unanswered += other.Unanswered
}

// Report returns the number of files that were written, and the requests by name.
func (c *Counts) Report() (writes int, requests map[string]Answers) {
	c.mu.Lock()
	defer c.mu.Unlock()
	requests = map[string]Answers{}
	for what, a := range c.requests {
		requests[what] = *a
	}
	return c.writes, requests
}
