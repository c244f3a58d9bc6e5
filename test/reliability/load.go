package reliability

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
	"github.com/btrfs-csi/btrfs-csi/test/testkit"
)

// mostObjects is how many volumes, and how many snapshots, there are at a time, about.
const mostObjects = 20

// load are the workers' means.
type load struct {
	*model
	*gate
	node   *node
	seed   uint64
	counts *counts
	calm   bool // every request is sent once, and with patience
}

// worker asks one thing after the other.
type worker struct {
	*load
	random   *rand.Rand
	number   int
	declared int // how many objects this worker has declared
}

func (l *load) worker(number int) *worker {
	return &worker{load: l, number: number, random: rand.New(rand.NewPCG(l.seed, uint64(number)))}
}

// run works until the gate says that it is over.
func (w *worker) run(ctx context.Context) error {
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
	fits   func(*object) bool // nil: it needs none
	do     func(context.Context, *object) error
	shared bool
}

func (w *worker) tasks() []task {
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
		{weight: making(5), do: w.create},
		{weight: making(8), fits: (*object).isWritable, do: w.copier(meta.Committed), shared: true},
		{weight: making(5), fits: (*object).isWritable, do: w.copier(meta.Active), shared: true},
		{weight: making(5), fits: (*object).isSnapshot, do: w.copier(meta.Active), shared: true},
		{weight: making(2), fits: (*object).isSnapshot, do: w.copier(meta.View), shared: true},
		{weight: 4, fits: (*object).isWritable, do: w.expand},
		{weight: 5, fits: (*object).isUnmounted, do: w.mount},
		{weight: 16, fits: (*object).isMountedWritable, do: w.write},
		{weight: 3, fits: (*object).isMounted, do: w.unmount},
		{weight: removals, fits: (*object).isUnused, do: w.remove},
		{weight: 1, do: w.contend},
		{weight: 5, fits: (*object).isMade, do: w.look},
		{weight: 1, do: w.lookAround},
		{weight: 2, do: w.list},
		{weight: 5, fits: (*object).isMade, do: w.provoke},
	}
}

// crowded reports whether there is more than enough of something.
func (w *worker) crowded() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	snapshots := 0
	for _, o := range w.living {
		if o.isSnapshot() {
			snapshots++
		}
	}
	return max(snapshots, len(w.living)-snapshots) > mostObjects
}

// work draws a task and an object, and does it. Where no object fits it does nothing.
func (w *worker) work(ctx context.Context) error {
	tasks := w.tasks()
	total := 0
	for _, t := range tasks {
		total += t.weight
	}
	if w.awaits(configured) && w.random.IntN(2) == 0 { // else it is rare
		return w.create(ctx, nil)
	}
	drawn := w.random.IntN(total)
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
		defer w.release(o)
	}
	return t.do(ctx, o)
}

// draw draws an object that was made. Unless it is shared nobody else has it, and the
// worker has it from then on.
func (w *worker) draw(t task) *object {
	w.mu.Lock()
	defer w.mu.Unlock()
	fit := slices.DeleteFunc(slices.Clone(w.living), func(o *object) bool {
		return o.created.answered == 0 || o.busy && !t.shared || !t.fits(o)
	})
	if len(fit) == 0 {
		return nil
	}
	o := fit[w.random.IntN(len(fit))]
	if !t.shared {
		o.busy = true
	}
	return o
}

// declareNext declares an object under a name of its own, which the worker has for
// itself. Some names are not safe as the name of a directory.
func (w *worker) declareNext(o *object) *object {
	w.declared++
	stem := map[bool]string{true: "snapshot", false: "pvc"}[o.isSnapshot()]
	o.name = fmt.Sprintf("%s-%x-%d-%d", stem, w.seed, w.number, w.declared)
	if w.random.IntN(8) == 0 {
		o.name = fmt.Sprintf("Ein %s/../%x %d %d ✓", stem, w.seed, w.number, w.declared)
	}
	o.id = meta.ID(o.name)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.declare(o)
	return o
}

// several is how many ask for the same at once: mostly one.
func (w *worker) several() int {
	if !w.calm && w.random.IntN(8) == 0 {
		return 3
	}
	return 1
}

// together has several do the same at once, each with random numbers of its own.
func (w *worker) together(ctx context.Context, several int, do func(context.Context, *worker) error) error {
	group, ctx := errgroup.WithContext(ctx)
	for range several {
		rival := &worker{load: w.load, number: w.number, random: rand.New(rand.NewPCG(w.random.Uint64(), w.random.Uint64()))}
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

// insist sends a request until it is answered for good: with success, or with a code
// after which nobody asks again.
func (w *worker) insist(ctx context.Context, what string, o *object, send func(context.Context, *testkit.Driver) error) error {
	return w.insistOn(ctx, what, o, final, send)
}

// insistOn is insist where something else counts as an answer.
func (w *worker) insistOn(ctx context.Context, what string, o *object, answered func(error) bool, send func(context.Context, *testkit.Driver) error) error {
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
		if err := w.node.fell(); err != nil {
			return err
		}
		if time.Since(began) > patience {
			at, atErr := w.node.goroutines()
			return fmt.Errorf("%s was not answered within %v, by %d attempts; the last: %w; the driver is at (%w):\n%s",
				what, patience, attempt+1, err, atErr, at)
		}
		time.Sleep(time.Duration(1+w.random.IntN(5*min(attempt+1, 10))) * time.Millisecond)
	}
}

// send sends a request once. Some callers have no patience: their request goes on
// behind their back, or is broken off somewhere.
func (w *worker) send(ctx context.Context, what string, send func(context.Context, *testkit.Driver) error) error {
	deadline := patience
	if !w.calm && w.random.IntN(12) == 0 {
		deadline = time.Duration(w.random.IntN(15_000)) * time.Microsecond
	}
	ctx, cancel := context.WithTimeout(ctx, deadline)
	defer cancel()
	c := w.node.driver.Load()
	if c == nil {
		return status.Error(codes.Unavailable, "no driver")
	}
	began := time.Now()
	err := send(ctx, c)
	w.counts.add(what, err, began)
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
func (w *worker) note(o *object, what string, err error) {
	if o == nil {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	text := what + ": " + status.Code(err).String()
	if err != nil {
		text += " " + status.Convert(err).Message()
	}
	w.record(o, text)
}
