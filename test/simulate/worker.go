package simulate

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// worker is a component of Kubernetes or a sidecar, as a rule: what is to be done about what
// it sees of the cluster. It does each thing at least once, and forgets all at a restart.
type worker struct {
	*simulation
	name   string
	todo   func(w *worker, v *view) []task
	starts int
	who    string // with the number of its start
	ctx    context.Context
	cancel context.CancelFunc
	conn   conn

	// What follows is protected by simulation.mu.
	states   map[string]*attempts
	progress map[string]bool // what was begun, and may have been done or not
}

// task is one thing that is to be done.
type task struct {
	key string
	do  func(ctx context.Context) error
}

// attempts are those of one task.
type attempts struct {
	busy  bool
	fails int
	next  time.Time
}

func (s *simulation) newWorker(name string, todo func(w *worker, v *view) []task) *worker {
	w := &worker{simulation: s, name: name, todo: todo}
	w.start()
	return w
}

// start has a worker know nothing, as after a restart.
func (w *worker) start() {
	if w.cancel != nil {
		w.gate.kill(w.who)
		w.cancel()
	}
	w.starts++
	w.who = fmt.Sprintf("%s#%d", w.name, w.starts)
	w.ctx, w.cancel = context.WithCancel(w.simulation.ctx)
	w.conn = conn{newNetwork(w.api, w.gate, w.who)}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.states, w.progress = map[string]*attempts{}, map[string]bool{}
}

// tick begins what is to be done in a view. It returns how much that is.
func (w *worker) tick(v *view) (begun int) {
	for _, t := range w.todo(w, v) {
		w.mu.Lock()
		state := w.states[t.key]
		if state == nil {
			state = &attempts{}
			w.states[t.key] = state
		}
		ready := !state.busy && !time.Now().Before(state.next)
		state.busy = state.busy || ready
		w.mu.Unlock()
		if !ready {
			continue
		}
		begun++
		ctx := w.ctx
		w.all.Go(func() { w.attempt(ctx, t, state) })
	}
	return begun
}

func (w *worker) attempt(ctx context.Context, t task, state *attempts) {
	err := t.do(ctx)
	w.mu.Lock()
	defer w.mu.Unlock()
	state.busy = false
	if err == nil {
		state.fails = 0
		return
	}
	state.fails++
	state.next = time.Now().Add(min(time.Second<<min(state.fails-1, 5), 20*time.Second))
	w.note("%s: %s: %v", w.name, t.key, err)
}

// began notes that something may have been done; knows notes its outcome.
func (w *worker) began(key string) { w.mu.Lock(); defer w.mu.Unlock(); w.progress[key] = true }
func (w *worker) knows(key string) { w.mu.Lock(); defer w.mu.Unlock(); delete(w.progress, key) }
func (w *worker) mayHave(key string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.progress[key]
}

// callTimeout is that of the sidecars.
const callTimeout = 15 * time.Second

// dial returns the driver of a node for one call, which waits at the gate. The scheduler may
// lose the call or its answer.
func (w *worker) dial(n *node) grpc.ClientConnInterface { return &caller{w, n} }

type caller struct {
	*worker
	node *node
}

func (c *caller) Invoke(ctx context.Context, method string, request, response any, _ ...grpc.CallOption) error {
	v := c.gate.wait(ctx, kindCall, c.who, method)
	p := c.node.driver.Load()
	if v == gone || v == fail || p == nil || !p.serving.Load() {
		return status.Error(codes.Unavailable, "the driver is not reached")
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	err := p.conn.Invoke(ctx, method, request, response)
	if v == lose {
		return status.Error(codes.Unavailable, "the answer was lost")
	}
	return err
}

func (c *caller) NewStream(context.Context, *grpc.StreamDesc, string, ...grpc.CallOption) (grpc.ClientStream, error) {
	return nil, status.Error(codes.Unimplemented, "no streams")
}
