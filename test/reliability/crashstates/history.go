package crashstates

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs/btrfstest"
	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
	"github.com/btrfs-csi/btrfs-csi/pkg/pool/pooltest"
	"github.com/btrfs-csi/btrfs-csi/test/reliability/files"
	"github.com/btrfs-csi/btrfs-csi/test/reliability/load"
	"github.com/btrfs-csi/btrfs-csi/test/reliability/model"
	"github.com/btrfs-csi/btrfs-csi/test/testkit"
)

const mib = 1 << 20

// shape says what exists between two calls of a history: the volume that it begins with, one other
// volume, and one snapshot of the first.
type shape struct {
	volume, snapshot bool
	other            meta.Kind // "" for none
	repeatable       bool      // there was a call before
}

// call is a CSI call, or a write of a pod.
type call struct {
	name string
	fits func(shape) bool
	then func(shape) shape
	do   func(context.Context, *history) error
}

func hasVolume(s shape) bool            { return s.volume }
func hasNoOther(s shape) bool           { return s.other == "" }
func canCopy(s shape) bool              { return s.volume && s.other == "" }
func canRestore(s shape) bool           { return s.snapshot && s.other == "" }
func canSnapshot(s shape) bool          { return s.volume && !s.snapshot }
func canWriteOther(s shape) bool        { return s.other == meta.Active }
func same(s shape) shape                { return s }
func withOther(s shape) shape           { s.other = meta.Active; return s }
func withView(s shape) shape            { s.other = meta.View; return s }
func withSnapshot(s shape) shape        { s.snapshot = true; return s }
func ofVolume(h *history) *model.Object { return h.volume }
func ofOther(h *history) *model.Object  { return h.other }
func ofSnap(h *history) *model.Object   { return h.snapshot }
func none(*history) *model.Object       { return nil }

// class has parameters that the first volume and its copies lack.
var class = map[string]string{"compression": "zstd"}

// calls lists all calls that histories consist of.
var calls = []call{
	{"create", hasNoOther, withOther, makeOther(meta.Active, none, nil)},
	{"create of a class", hasNoOther, withOther, makeOther(meta.Active, none, class)},
	{"snapshot", canSnapshot, withSnapshot, func(ctx context.Context, h *history) error {
		o, err := h.makeObject(ctx, &model.Object{Kind: meta.Committed, Source: h.volume})
		h.snapshot = o
		return err
	}},
	{"clone", canCopy, withOther, makeOther(meta.Active, ofVolume, nil)},
	{"clone of a class", canCopy, withOther, makeOther(meta.Active, ofVolume, class)},
	{"restore", canRestore, withOther, makeOther(meta.Active, ofSnap, nil)},
	{"restore of a class", canRestore, withOther, makeOther(meta.Active, ofSnap, class)},
	{"view", canRestore, withView, makeOther(meta.View, ofSnap, nil)},
	{"view of a volume", canCopy, withView, makeOther(meta.View, ofVolume, nil)},
	{"expand", hasVolume, same, expandOf(ofVolume)},
	{"expand the other", canWriteOther, same, expandOf(ofOther)},
	{"write", hasVolume, same, writeTo(ofVolume)},
	{"write to the other", canWriteOther, same, writeTo(ofOther)},
	{"delete", hasVolume, func(s shape) shape { s.volume = false; return s }, removeOf(ofVolume)},
	{"delete the other", func(s shape) bool { return s.other != "" }, func(s shape) shape { s.other = ""; return s }, removeOf(ofOther)},
	{"delete the snapshot", func(s shape) bool { return s.snapshot }, func(s shape) shape { s.snapshot = false; return s }, removeOf(ofSnap)},
	{"repeat", func(s shape) bool { return s.repeatable }, same, func(ctx context.Context, h *history) error { return h.again(ctx) }},
}

// sequences returns all possible sequences of so many calls.
func sequences(length int) [][]call {
	var all [][]call
	var extend func(shape, []call)
	extend = func(s shape, sequence []call) {
		if len(sequence) == length {
			all = append(all, append([]call(nil), sequence...))
			return
		}
		for _, c := range calls {
			if c.fits(s) {
				next := c.then(s)
				next.repeatable = true
				extend(next, append(sequence, c))
			}
		}
	}
	extend(shape{volume: true}, nil)
	return all
}

// nameOf returns the name of a sequence.
func nameOf(sequence []call) string {
	var names []string
	for _, c := range sequence {
		names = append(names, c.name)
	}
	return strings.Join(names, ", ")
}

// interference is a commit or a kill during the last call of a history.
type interference struct {
	kind interferenceKind
	step int // the step that it precedes, from 1
}

type interferenceKind string

const (
	undisturbed interferenceKind = ""
	committed   interferenceKind = "somebody commits"
	killed      interferenceKind = "the driver is killed, and the next one asked again"
)

func (i interference) String() string {
	if i.kind == undisturbed {
		return "undisturbed"
	}
	return fmt.Sprintf("%s before step %d of the last call", i.kind, i.step)
}

// history is a sequence of calls in progress.
type history struct {
	*load.Worker
	volume, other, snapshot *model.Object
	again                   func(context.Context) error // the last call
	byPod                   bool                        // a pod makes the last call; there is no driver to kill
	interference            interference
	length                  func() (int, error) // of the log of the disk
	forgotten               string              // a method of pool.Filesystem that the driver forgets in the last call

	mu    sync.Mutex // protects what follows
	last  bool       // the last call is in progress
	steps int        // of the last call so far
	trace []string   // the steps, each with the length of the log before it

	restarts chan error // the result of the restart after a kill; nil without a kill
}

// run makes a call. After a kill it repeats the request to the next driver.
func (h *history) run(ctx context.Context, c call, last bool) error {
	h.during(last)
	defer h.during(false)
	err := c.do(ctx, h)
	if err != nil {
		err = fmt.Errorf("%s: %w", c.name, err)
	}
	if h.restarts != nil {
		err = errors.Join(err, <-h.restarts)
		h.restarts = nil
	}
	return err
}

// interferences returns all possible interferences. The last call must be over, since they depend on
// its steps.
func (h *history) interferences() []interference {
	var all []interference
	for step := 1; step <= h.steps; step++ {
		all = append(all, interference{committed, step})
		if !h.byPod {
			all = append(all, interference{killed, step})
		}
	}
	return all
}

// during records whether the last call is in progress.
func (h *history) during(last bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.last = last
}

// errKilled is the result of every step of a driver that was killed.
var errKilled = errors.New("this driver has been killed")

// around returns the function that a driver calls at each step.
func (h *history) around(ctx context.Context) func(pooltest.Step, func() error) error {
	dead := false // protected by mu
	return func(s pooltest.Step, do func() error) error {
		kill, err := h.interfere(fmt.Sprintf("%s %s", s.Method, s.Slot), &dead)
		if kill {
			h.kill(ctx)
		}
		if err != nil {
			return err
		}
		if h.forgets(s.Method) {
			return nil
		}
		return do()
	}
}

// forgets reports whether the driver leaves out a step, as a test demands.
func (h *history) forgets(method string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.last && h.forgotten == method
}

// interfere records a step, and commits, or reports a kill, if the interference precedes it.
func (h *history) interfere(step string, dead *bool) (kill bool, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if *dead {
		return false, errKilled
	}
	if !h.last {
		return false, nil
	}
	h.steps++
	length, err := h.length()
	if err != nil {
		return false, err
	}
	h.trace = append(h.trace, fmt.Sprintf("%6d %s", length, step))
	if h.steps != h.interference.step {
		return false, nil
	}
	switch h.interference.kind {
	case committed:
		h.trace = append(h.trace, fmt.Sprintf("%6d somebody commits before that", length))
		return false, btrfstest.Sync(h.Node.Pool())
	case killed:
		h.trace = append(h.trace, fmt.Sprintf("%6d the driver is killed before that", length))
		*dead = true
		return true, errKilled
	}
	return false, nil
}

// kill ends the driver without an answer to its caller, and starts the next.
func (h *history) kill(ctx context.Context) {
	restarts := make(chan error, 1)
	h.restarts = restarts // before the caller can see that there is no driver
	end := h.Node.BreakOff()
	go func() { restarts <- errors.Join(end(), h.Node.ServeInside(ctx, h.around(ctx))) }()
}

// makeOther returns a call that makes the other volume.
func makeOther(kind meta.Kind, source func(*history) *model.Object, parameters map[string]string) func(context.Context, *history) error {
	return func(ctx context.Context, h *history) error {
		o, err := h.makeObject(ctx, &model.Object{Kind: kind, Source: source(h), Parameters: parameters})
		h.other = o
		return err
	}
}

// makeObject makes a volume or a snapshot.
func (h *history) makeObject(ctx context.Context, o *model.Object) (*model.Object, error) {
	var size *csi.CapacityRange
	if o.Source == nil {
		size = &csi.CapacityRange{RequiredBytes: 64 * mib}
		o.Sizes, o.Contents = model.Timeline[int64]{{Value: 64 * mib}}, model.Timeline[files.Content]{{}}
	}
	h.DeclareNext(o)
	defer h.Release(o)
	if o.IsSnapshot() {
		h.again = h.askAgain("CreateSnapshot again", o)
		return o, h.MakeSnapshot(ctx, o)
	}
	h.again = h.askAgain("CreateVolume again", o)
	return o, h.MakeVolume(ctx, o, size)
}

// askAgain returns a function that repeats the request for an object.
func (h *history) askAgain(what string, o *model.Object) func(context.Context) error {
	return func(ctx context.Context) error { return h.Repeat(ctx, what, o) }
}

func expandOf(which func(*history) *model.Object) func(context.Context, *history) error {
	return func(ctx context.Context, h *history) error {
		o := which(h)
		h.again = h.askAgain("ControllerExpandVolume to less", o)
		return h.Expand(ctx, o)
	}
}

func removeOf(which func(*history) *model.Object) func(context.Context, *history) error {
	return func(ctx context.Context, h *history) error {
		o := which(h)
		h.again = func(ctx context.Context) error {
			return h.Insist(ctx, "Delete again", o, func(ctx context.Context, c *testkit.Driver) (err error) {
				if o.IsSnapshot() {
					_, err = c.DeleteSnapshot(ctx, &csi.DeleteSnapshotRequest{SnapshotId: o.ID})
				} else {
					_, err = c.DeleteVolume(ctx, &csi.DeleteVolumeRequest{VolumeId: o.ID})
				}
				return err
			})
		}
		return h.Remove(ctx, o)
	}
}

// writeTo returns a call that publishes a volume, replaces a file durably, and unpublishes the volume.
func writeTo(which func(*history) *model.Object) func(context.Context, *history) error {
	var write func(ctx context.Context, h *history) error
	write = func(ctx context.Context, h *history) error {
		o := which(h)
		h.again = func(ctx context.Context) error { return write(ctx, h) }
		if err := h.Mount(ctx, o); err != nil {
			return err
		}
		return errors.Join(h.writeFile(o), h.Unmount(ctx, o))
	}
	return write
}

// writeFile replaces a file, in steps between which others can interfere.
func (h *history) writeFile(o *model.Object) error {
	before := o.Contents[len(o.Contents)-1].Value
	c := files.RandomChange(h.Random, before)
	next := &model.Event[files.Content]{Value: c.After(before)}
	o.Contents = append(o.Contents, next)
	h.Ask(o, &next.Span, "write %s %d", c.Name, len(c.Data))
	h.byPod = true
	for _, step := range c.Steps(h.Node.TargetOf(o)) {
		if _, err := h.interfere("step of a pod", new(bool)); err != nil {
			return err
		}
		if err := step(); err != nil {
			return err
		}
	}
	h.Answer(o, &next.Span, model.Written)
	return nil
}
