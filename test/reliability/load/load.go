package load

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
	"github.com/btrfs-csi/btrfs-csi/test/reliability/model"
	"github.com/btrfs-csi/btrfs-csi/test/reliability/node"
	"github.com/btrfs-csi/btrfs-csi/test/testkit"
)

// mostObjects is about the number of volumes, and of snapshots, at a time.
const mostObjects = 20

// Load is what all workers of a node share.
type Load struct {
	*model.Model
	*Gate
	Node   *node.Node
	Seed   uint64
	Counts *Counts
	Calm   bool // no equal requests at once, and no short deadlines
}

// Worker runs one operation after the other.
type Worker struct {
	*Load
	Random   *rand.Rand
	number   int
	declared int // how many objects this worker has declared
}

// Worker returns a worker. Its number and the seed determine what it does.
func (l *Load) Worker(number int) *Worker {
	return &Worker{Load: l, number: number, Random: rand.New(rand.NewPCG(l.Seed, uint64(number)))}
}

// Run runs operations until the end of the gate.
func (w *Worker) Run(ctx context.Context) error {
	for w.begin() {
		err := w.work(ctx)
		w.done()
		if err != nil {
			return err
		}
	}
	return nil
}

// task is a kind of operation. No other worker uses its object at the same time, unless the task is
// shared: then others may write, expand and remove the object meanwhile.
type task struct {
	weight int
	fits   func(*model.Object) bool // nil if the task needs no object
	do     func(context.Context, *model.Object) error
	shared bool
}

func (w *Worker) tasks() []task {
	removals, crowded := 3, w.crowded()
	if crowded {
		removals = 20
	}
	// making returns the weight of a task that makes an object. Where there are too many objects,
	// workers remove more than they make.
	making := func(weight int) int {
		if crowded {
			return 1
		}
		return weight
	}
	return []task{
		{weight: making(5), do: w.Create},
		{weight: making(8), fits: (*model.Object).IsWritable, do: w.copier(meta.Committed), shared: true},
		{weight: making(5), fits: (*model.Object).IsWritable, do: w.copier(meta.Active), shared: true},
		{weight: making(5), fits: (*model.Object).IsSnapshot, do: w.copier(meta.Active), shared: true},
		{weight: making(2), fits: (*model.Object).IsSnapshot, do: w.copier(meta.View), shared: true},
		{weight: 4, fits: (*model.Object).IsWritable, do: w.Expand},
		{weight: 5, fits: (*model.Object).IsUnmounted, do: w.Mount},
		{weight: 16, fits: (*model.Object).IsMountedWritable, do: w.write},
		{weight: 3, fits: (*model.Object).IsMounted, do: w.Unmount},
		{weight: removals, fits: (*model.Object).IsUnused, do: w.Remove},
		{weight: 1, do: w.contend},
		{weight: 5, fits: (*model.Object).IsMade, do: w.look},
		{weight: 1, do: w.lookAround},
		{weight: 2, do: w.list},
		{weight: 5, fits: (*model.Object).IsMade, do: w.provoke},
	}
}

// crowded reports whether there are more than mostObjects volumes or snapshots.
func (w *Worker) crowded() bool {
	w.Mu.Lock()
	defer w.Mu.Unlock()
	snapshots := 0
	for _, o := range w.Living {
		if o.IsSnapshot() {
			snapshots++
		}
	}
	return max(snapshots, len(w.Living)-snapshots) > mostObjects
}

// work draws a task and an object that fits it, and runs it. Without such an object it does nothing.
func (w *Worker) work(ctx context.Context) error {
	tasks := w.tasks()
	total := 0
	for _, t := range tasks {
		total += t.weight
	}
	if w.Awaits(model.Configured) && w.Random.IntN(2) == 0 { // no other draw makes it likely
		return w.Create(ctx, nil)
	}
	drawn := w.Random.IntN(total)
	at := slices.IndexFunc(tasks, func(t task) bool {
		drawn -= t.weight
		return drawn < 0
	})
	t := tasks[at]
	if t.fits == nil {
		return t.do(ctx, nil)
	}
	o := w.draw(t)
	if o == nil {
		return nil
	}
	if !t.shared {
		defer w.Release(o)
	}
	return t.do(ctx, o)
}

// draw draws an object that fits the task. Unless the task is shared, draw takes an object that no
// other worker has, and marks it as busy.
func (w *Worker) draw(t task) *model.Object {
	w.Mu.Lock()
	defer w.Mu.Unlock()
	fit := slices.DeleteFunc(slices.Clone(w.Living), func(o *model.Object) bool {
		return o.Created.Answered == 0 || o.Busy && !t.shared || !t.fits(o)
	})
	if len(fit) == 0 {
		return nil
	}
	o := fit[w.Random.IntN(len(fit))]
	if !t.shared {
		o.Busy = true
	}
	return o
}

// DeclareNext gives an object a new name, and declares it as busy. Some names are not safe as the
// name of a directory.
func (w *Worker) DeclareNext(o *model.Object) *model.Object {
	w.declared++
	stem := map[bool]string{true: "snapshot", false: "pvc"}[o.IsSnapshot()]
	o.Name = fmt.Sprintf("%s-%x-%d-%d", stem, w.Seed, w.number, w.declared)
	if w.Random.IntN(8) == 0 {
		o.Name = fmt.Sprintf("Ein %s/../%x %d %d ✓", stem, w.Seed, w.number, w.declared)
	}
	o.ID = meta.ID(o.Name)
	w.Mu.Lock()
	defer w.Mu.Unlock()
	w.Declare(o)
	return o
}

// several returns how many equal requests to send at once, mostly one.
func (w *Worker) several() int {
	if !w.Calm && w.Random.IntN(8) == 0 {
		return 3
	}
	return 1
}

// together runs do several times at once, each time by a worker with random numbers of its own.
func (w *Worker) together(ctx context.Context, several int, do func(context.Context, *Worker) error) error {
	group, ctx := errgroup.WithContext(ctx)
	for range several {
		rival := &Worker{Load: w.Load, number: w.number, Random: rand.New(rand.NewPCG(w.Random.Uint64(), w.Random.Uint64()))}
		group.Go(func() error { return do(ctx, rival) })
	}
	return group.Wait()
}

// rivals collects the answers to equal requests that were sent at once.
type rivals[T any] struct {
	mu    sync.Mutex // protects given
	given []T
}

// add adds an answer that is no error.
func (r *rivals[T]) add(answer T, err error) {
	if err != nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.given = append(r.given, answer)
}

// Insist repeats a request until its answer is final: success, or a code after which no sidecar
// repeats it.
func (w *Worker) Insist(ctx context.Context, what string, o *model.Object, send func(context.Context, *testkit.Driver) error) error {
	return w.insistOn(ctx, what, o, final, send)
}

// insistOn is Insist with another condition for a final answer.
func (w *Worker) insistOn(ctx context.Context, what string, o *model.Object, answered func(error) bool, send func(context.Context, *testkit.Driver) error) error {
	began := time.Now()
	for attempt := 0; ; attempt++ {
		var err error
		gateErr := w.touch(ctx, func() error {
			err = w.send(ctx, what, send)
			w.note(o, what, err)
			return nil
		})
		if gateErr != nil {
			return gateErr
		}
		if answered(err) {
			return err
		}
		if err := w.Node.Fell(); err != nil {
			return err
		}
		if time.Since(began) > node.Patience {
			at, atErr := w.Node.Goroutines()
			return fmt.Errorf("%s was not answered within %v, by %d attempts; the last: %w; the driver is at (%w):\n%s",
				what, node.Patience, attempt+1, err, atErr, at)
		}
		time.Sleep(time.Duration(1+w.Random.IntN(5*min(attempt+1, 10))) * time.Millisecond)
	}
}

// send sends a request once. Some requests get a deadline of a few milliseconds. The driver then
// breaks such a request off, or completes it after the caller has given up.
func (w *Worker) send(ctx context.Context, what string, send func(context.Context, *testkit.Driver) error) error {
	deadline := node.Patience
	if !w.Calm && w.Random.IntN(12) == 0 {
		deadline = time.Duration(w.Random.IntN(15_000)) * time.Microsecond
	}
	ctx, cancel := context.WithTimeout(ctx, deadline)
	defer cancel()
	c := w.Node.Driver.Load()
	if c == nil {
		return status.Error(codes.Unavailable, "no driver")
	}
	began := time.Now()
	err := send(ctx, c)
	w.Counts.add(what, err, began)
	return err
}

// final reports whether an answer is final. After the others, sidecars and kubelet repeat the
// request.
func final(err error) bool {
	switch status.Code(err) {
	case codes.Aborted, codes.Unavailable, codes.DeadlineExceeded, codes.Canceled:
		return false
	}
	return true
}

// note adds an answer to the trail of an object.
func (w *Worker) note(o *model.Object, what string, err error) {
	if o == nil {
		return
	}
	w.Mu.Lock()
	defer w.Mu.Unlock()
	text := what + ": " + status.Code(err).String()
	if err != nil {
		text += " " + status.Convert(err).Message()
	}
	w.Record(o, text)
}
