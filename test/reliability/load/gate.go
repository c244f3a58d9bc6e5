package load

import (
	"context"
	"sync"
)

// Gate stops the workers between two requests, and lets them go on.
type Gate struct {
	lock     sync.Mutex // protects what follows
	changed  *sync.Cond
	state    gateState
	most     int // most operations at a time
	working  int // operations in progress
	touching int // requests and writes in progress
}

type gateState int

const (
	gateOpen  gateState = iota
	gateDrain           // operations in progress go on, no other may begin
	gateShut            // no request may be sent
	gateGone            // the run is over
)

// NewGate returns a gate that is shut.
func NewGate() *Gate {
	g := &Gate{state: gateShut}
	g.changed = sync.NewCond(&g.lock)
	return g
}

// begin waits until an operation may begin. It returns false if the run is over.
func (g *Gate) begin() bool {
	g.lock.Lock()
	defer g.lock.Unlock()
	for g.state == gateDrain || g.state == gateShut || g.state == gateOpen && g.working >= g.most {
		g.changed.Wait()
	}
	if g.state == gateGone {
		return false
	}
	g.working++
	return true
}

func (g *Gate) done() {
	g.lock.Lock()
	defer g.lock.Unlock()
	g.working--
	g.changed.Broadcast()
}

// touch waits until requests are allowed, and runs fn, which sends a request or writes a file.
func (g *Gate) touch(ctx context.Context, fn func() error) error {
	g.lock.Lock()
	for g.state == gateShut {
		g.changed.Wait()
	}
	g.touching++
	g.lock.Unlock()
	defer func() {
		g.lock.Lock()
		defer g.lock.Unlock()
		g.touching--
		g.changed.Broadcast()
	}()
	if err := ctx.Err(); err != nil {
		return err
	}
	return fn()
}

// Open lets up to most operations run at a time.
func (g *Gate) Open(most int) {
	g.lock.Lock()
	g.most = most
	g.lock.Unlock()
	g.set(gateOpen)
}

// Shut waits until no request is in progress. Operations stop between two requests.
func (g *Gate) Shut() {
	g.set(gateShut)
	g.lock.Lock()
	defer g.lock.Unlock()
	for g.touching > 0 {
		g.changed.Wait()
	}
}

// Drain waits until every operation has ended.
func (g *Gate) Drain() {
	g.set(gateDrain)
	g.lock.Lock()
	defer g.lock.Unlock()
	for g.working > 0 {
		g.changed.Wait()
	}
}

// End ends the run. Later calls have no effect.
func (g *Gate) End() { g.set(gateGone) }

func (g *Gate) set(s gateState) {
	g.lock.Lock()
	defer g.lock.Unlock()
	if g.state != gateGone {
		g.state = s
	}
	g.changed.Broadcast()
}
