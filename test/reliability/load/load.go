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

// mostObjects is how many volumes, and how many snapshots, there are at a time, about.
const mostObjects = 20

// Load are the workers' means.
type Load struct {
	*model.Model
	*Gate
	Node   *node.Node
	Seed   uint64
	Counts *Counts
	Calm   bool // every request is sent once, and with patience
}

// Worker asks one thing after the other.
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

// Run works until the gate says that it is over.
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

// task is something to do with an object that the worker has for itself, or, where
// it is shared, that others may write, expand and remove meanwhile.
type task struct {
	weight int
	fits   func(*model.Object) bool // nil: it needs none
	do     func(context.Context, *model.Object) error
	shared bool
}

func (w *Worker) tasks() []task {
	removals, crowded := 3, w.crowded()
	if crowded {
		removals = 20
	}
	// making is the weight of a task that makes an object: more are removed than made where
	// there are too many.
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

// crowded reports whether there is more than enough of something.
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

// work draws a task and an object, and does it. Where no object fits it does nothing.
func (w *Worker) work(ctx context.Context) error {
	tasks := w.tasks()
	total := 0
	for _, t := range tasks {
		total += t.weight
	}
	if w.Awaits(model.Configured) && w.Random.IntN(2) == 0 { // else it is rare
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

// draw draws an object that was made. Unless it is shared nobody else has it, and the
// worker has it from then on.
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

// DeclareNext declares an object under a name of its own, which the worker has for
// itself. Some names are not safe as the name of a directory.
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

// several is how many ask for the same at once: mostly one.
func (w *Worker) several() int {
	if !w.Calm && w.Random.IntN(8) == 0 {
		return 3
	}
	return 1
}

// together has several do the same at once, each with random numbers of its own.
func (w *Worker) together(ctx context.Context, several int, do func(context.Context, *Worker) error) error {
	group, ctx := errgroup.WithContext(ctx)
	for range several {
		rival := &Worker{Load: w.Load, number: w.number, Random: rand.New(rand.NewPCG(w.Random.Uint64(), w.Random.Uint64()))}
		group.Go(func() error { return do(ctx, rival) })
	}
	return group.Wait()
}

// rivals are the answers to those who asked for the same at once.
type rivals[T any] struct {
	mu    sync.Mutex // protects given
	given []T
}

// add adds an answer, unless it is a refusal.
func (r *rivals[T]) add(answer T, err error) {
	if err != nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.given = append(r.given, answer)
}

// Insist sends a request until it is answered for good: with success, or with a code
// after which nobody asks again.
func (w *Worker) Insist(ctx context.Context, what string, o *model.Object, send func(context.Context, *testkit.Driver) error) error {
	return w.insistOn(ctx, what, o, final, send)
}

// insistOn is insist where something else counts as an answer.
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

// send sends a request once. Some callers have no patience: their request goes on
// behind their back, or is broken off somewhere.
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

// final reports whether an answer is one. The others are those after which sidecars
// and kubelet ask again.
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
