package reliability

import (
	"context"
	"sync"
)

// gate lets the workers through, or holds them where nothing is under way.
type gate struct {
	lock     sync.Mutex // protects what follows
	changed  *sync.Cond
	state    gateState
	most     int // operations at a time
	working  int // operations begun and not done
	touching int // requests sent and not answered, writes under way
}

type gateState int

const (
	gateOpen  gateState = iota
	gateDrain           // what has begun may be finished, nothing new begins
	gateShut            // nothing may be sent
	gateGone            // there is nothing more to do
)

func newGate() *gate {
	g := &gate{state: gateShut}
	g.changed = sync.NewCond(&g.lock)
	return g
}

// begin waits until an operation may begin; false if none ever will.
func (g *gate) begin() bool {
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

func (g *gate) done() {
	g.lock.Lock()
	defer g.lock.Unlock()
	g.working--
	g.changed.Broadcast()
}

// touch runs fn when the node may be touched.
func (g *gate) touch(ctx context.Context, fn func() error) error {
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

// open lets everything through, so many operations at a time.
func (g *gate) open(most int) {
	g.lock.Lock()
	g.most = most
	g.lock.Unlock()
	g.set(gateOpen)
}

// shut waits until nothing is under way. Operations stay where they are, between two
// requests.
func (g *gate) shut() {
	g.set(gateShut)
	g.lock.Lock()
	defer g.lock.Unlock()
	for g.touching > 0 {
		g.changed.Wait()
	}
}

// drain waits until every operation has been answered.
func (g *gate) drain() {
	g.set(gateDrain)
	g.lock.Lock()
	defer g.lock.Unlock()
	for g.working > 0 {
		g.changed.Wait()
	}
}

// end lets the workers go home. It wins over all that comes later.
func (g *gate) end() { g.set(gateGone) }

func (g *gate) set(s gateState) {
	g.lock.Lock()
	defer g.lock.Unlock()
	if g.state != gateGone {
		g.state = s
	}
	g.changed.Broadcast()
}
