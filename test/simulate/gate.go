package simulate

import (
	"context"
	"slices"
	"strings"
	"sync"
)

// gate is where everything waits that reaches out of a process of the cluster: a request to
// the API server, what comes of a watch, a step on a disk, a mount, a CSI call. The scheduler
// lets one go at a time, and says what becomes of it.
type gate struct {
	mu      sync.Mutex
	waiting []*ticket
	dead    map[string]bool
	arrived int
}

// ticket is one thing that waits.
type ticket struct {
	kind    kind
	who     string // the process
	what    string
	n       int
	verdict chan verdict
}

type kind string

const (
	kindRequest kind = "request"
	kindWatch   kind = "watch"
	kindDisk    kind = "disk"
	kindMount   kind = "mount"
	kindCall    kind = "call"
)

// verdict is what becomes of what waited.
type verdict string

const (
	pass     verdict = "passes"
	fail     verdict = "fails"             // without effect
	lose     verdict = "loses its answer"  // with effect
	conflict verdict = "conflicts"         // a write of an object
	expire   verdict = "is too old"        // a watch
	gone     verdict = "has died meantime" // the process
)

func newGate() *gate { return &gate{dead: map[string]bool{}} }

// wait waits for the scheduler. It returns gone when the process has died, or ctx has ended.
func (g *gate) wait(ctx context.Context, kind kind, who, what string) verdict {
	g.mu.Lock()
	if g.dead[who] || ctx.Err() != nil {
		g.mu.Unlock()
		return gone
	}
	g.arrived++
	t := &ticket{kind, who, what, g.arrived, make(chan verdict, 1)}
	g.waiting = append(g.waiting, t)
	g.mu.Unlock()
	select {
	case v := <-t.verdict:
		return v
	case <-ctx.Done():
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.remove(t)
	return gone
}

// pending returns what waits, in an order that does not depend on who came first.
func (g *gate) pending() []*ticket {
	g.mu.Lock()
	defer g.mu.Unlock()
	slices.SortFunc(g.waiting, func(a, b *ticket) int {
		if c := strings.Compare(a.who, b.who); c != 0 {
			return c
		}
		if c := strings.Compare(a.what, b.what); c != 0 {
			return c
		}
		return a.n - b.n
	})
	return slices.Clone(g.waiting)
}

// release lets one go.
func (g *gate) release(t *ticket, v verdict) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.remove(t)
	t.verdict <- v
}

func (g *gate) remove(t *ticket) {
	g.waiting = slices.DeleteFunc(g.waiting, func(other *ticket) bool { return other == t })
}

// kill has a process end: nothing of it has an effect any more.
func (g *gate) kill(who string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.dead[who] = true
	g.waiting = slices.DeleteFunc(g.waiting, func(t *ticket) bool {
		if t.who == who {
			t.verdict <- gone
		}
		return t.who == who
	})
}

// node returns the node of a process, "" for none.
func (t *ticket) node() string { return nodeOf(t.who) }

func nodeOf(who string) string {
	name, _, _ := strings.Cut(who, "#")
	_, node, _ := strings.Cut(name, "@")
	return node
}

func (t *ticket) String() string { return string(t.kind) + " of " + t.who + ": " + t.what }
