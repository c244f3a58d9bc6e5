package pool

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs"
	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
)

// Patience is how long calls to a pool may take.
type Patience struct {
	Look time.Duration // a look-up
	Walk time.Duration // a call that reads a whole tree, or the mount table of the node
	// Step is for a call that changes something. It may wait for a commit, which takes half a
	// minute on a slow disk under load.
	Step time.Duration
	// Thaw is how long a filesystem that is not frozen may take to let a writer in, which needs
	// neither the disk nor a commit.
	Thaw time.Duration
}

// DefaultPatience suits disks of all kinds.
var DefaultPatience = Patience{Look: 5 * time.Second, Walk: time.Minute, Step: 2 * time.Minute, Thaw: time.Second}

// WithLook returns p with d for a look-up. The other durations are raised to d, Thaw to d/5, if
// they are less.
func (p Patience) WithLook(d time.Duration) Patience {
	return Patience{Look: d, Walk: max(p.Walk, d), Step: max(p.Step, d), Thaw: max(p.Thaw, d/5)}
}

// mostAsking bounds the threads that wait in the kernel for look-ups in one pool.
const mostAsking = 128

// guard is the Filesystem of a pool whose disk may become silent. Calls then return neither a
// result nor an error, but wait in the kernel, and nothing can end that.
//
// A look-up runs in a goroutine of its own. If it takes too long, guard returns ErrSilent and
// leaves the goroutine behind. From then on every look-up fails at once, until all goroutines
// left behind have returned and the disk answers again. So a silent pool costs a request to all
// pools one wait at most, and never more than mostAsking threads.
//
// A step, which changes something, is never given up: it would take effect after its request was
// answered and its ID unlocked. A step that takes too long makes the pool silent too.
type guard struct {
	*answers
	filesystem Filesystem
	// patient makes look-ups wait like steps, so that a slow commit does not stop an operation in
	// the middle.
	patient bool
}

var _ Filesystem = (*guard)(nil)

// answers records whether a disk answers.
type answers struct {
	pool     string
	patience Patience
	changed  func()        // called when silence begins or ends; may be nil
	asking   chan struct{} // one element for each look-up in the kernel

	mu      sync.Mutex // protects what follows
	overdue int        // calls that were given up and have not returned
	silence error      // nil: the pool answers
	silent  chan struct{}
	thaw    *thaw // the running one; nil: none
}

// what names a call to a pool.
type what struct {
	method string
	at     Slot // zero for calls about the whole pool
}

func (w what) String() string {
	if w.at == (Slot{}) {
		return w.method
	}
	return w.method + " " + w.at.String()
}

// call is a running call. answers.mu protects its fields.
type call struct{ overdue, returned bool }

func newGuard(pool string, filesystem Filesystem, patience Patience) *guard {
	return &guard{filesystem: filesystem, answers: &answers{
		pool: pool, patience: patience, asking: make(chan struct{}, mostAsking), silent: make(chan struct{}),
	}}
}

// failure is an error of the kernel with its meaning for a request.
type failure struct {
	meaning, cause error
	text           string
}

func (f *failure) Error() string   { return f.text }
func (f *failure) Unwrap() []error { return []error{f.meaning, f.cause} }

// Cause returns the error of the kernel in err, or err itself if there is none.
func Cause(err error) error {
	var f *failure
	if errors.As(err, &f) {
		return f.cause
	}
	return err
}

// explain adds the meaning for a request to an error of the kernel.
func (g *guard) explain(err error) error {
	var meaning error
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		meaning = ErrNoSpace
	case errors.Is(err, unix.EROFS):
		meaning = ErrReadOnly
	case errors.Is(err, unix.ETXTBSY):
		meaning = ErrSwapFile
	case errors.Is(err, unix.EIO), errors.Is(err, unix.ESTALE):
		meaning = ErrAway
	default:
		return err
	}
	text := fmt.Sprintf("pool %q: %v: %v", g.pool, meaning, err)
	room, failed := await(g.answers, what{method: "Room"}, g.patience.Look, g.filesystem.Room)
	if failed == nil && room.Stopped {
		text += ": " + whyReadOnly(room, "")
	}
	return &failure{meaning, err, text}
}

// patiently returns the Filesystem for an operation that has begun.
func (g *guard) patiently() Filesystem {
	return &guard{answers: g.answers, filesystem: g.filesystem, patient: true}
}

// state returns a channel that is closed when the pool becomes silent, and the ErrSilent of a
// pool that is silent.
func (a *answers) state() (<-chan struct{}, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.silent, a.silence
}

// giveUp marks a call as overdue and the pool as silent; false if the call has returned.
func (a *answers) giveUp(c *call, w what) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if c.returned {
		return false
	}
	c.overdue = true
	a.overdue++
	if a.silence == nil {
		a.silence = SilentError(a.pool, w.String(), time.Now())
		close(a.silent)
		a.notify()
	}
	return true
}

// end marks a call as returned. The silence ends with the last overdue call.
func (a *answers) end(c *call) {
	a.mu.Lock()
	defer a.mu.Unlock()
	c.returned = true
	if !c.overdue {
		return
	}
	if a.overdue--; a.overdue == 0 {
		a.silence, a.silent = nil, make(chan struct{})
		a.notify()
	}
}

func (a *answers) notify() {
	if a.changed != nil {
		go a.changed()
	}
}

// SilentError returns the ErrSilent of a pool in which a call of method was given up. Its text
// stays the same during one silence.
func SilentError(pool, method string, since time.Time) error {
	return fmt.Errorf("pool %q: %w since %s (%s): look at the disk and for it in the kernel's log; the pool is used again when it answers",
		pool, ErrSilent, since.UTC().Format(time.RFC3339), method)
}

// ask runs a look-up, and gives it up after limit.
func ask[T any](g *guard, w what, limit time.Duration, fn func() (T, error)) (T, error) {
	if g.patient {
		return step(g, w, fn)
	}
	value, err := await(g.answers, w, limit, fn)
	return value, g.explain(err)
}

// await is ask without explain, and for callers that are never patient.
func await[T any](g *answers, w what, limit time.Duration, fn func() (T, error)) (T, error) {
	var none T
	silent, silence := g.state()
	if silence != nil {
		return none, silence
	}
	timeout := time.NewTimer(limit)
	defer timeout.Stop()
	select {
	case g.asking <- struct{}{}:
	case <-silent:
		return none, g.refusal(w)
	case <-timeout.C:
		return none, g.refusal(w)
	}
	type answer struct {
		value T
		err   error
	}
	c, answered := &call{}, make(chan answer, 1)
	go func() {
		value, err := fn()
		<-g.asking
		g.end(c)
		answered <- answer{value, err}
	}()
	select {
	case a := <-answered:
		return a.value, a.err
	case <-silent:
	case <-timeout.C:
	}
	if !g.giveUp(c, w) {
		a := <-answered
		return a.value, a.err
	}
	return none, g.refusal(w)
}

// refusal returns the error of a look-up that was given up.
func (a *answers) refusal(w what) error {
	if _, silence := a.state(); silence != nil {
		return silence
	}
	return SilentError(a.pool, w.String(), time.Now()) // the pool has just answered, or has too many look-ups
}

// step runs a call that is never given up.
func step[T any](g *guard, w what, fn func() (T, error)) (T, error) {
	c := &call{}
	overdue := time.AfterFunc(g.patience.Step, func() { g.giveUp(c, w) })
	value, err := fn()
	overdue.Stop()
	g.end(c)
	return value, g.explain(err)
}

// look, walk and change run a call with the patience for its kind.
func look[T any](g *guard, w what, fn func() (T, error)) (T, error) {
	return ask(g, w, g.patience.Look, fn)
}

func walk[T any](g *guard, w what, fn func() (T, error)) (T, error) {
	return ask(g, w, g.patience.Walk, fn)
}

func change(g *guard, w what, fn func() error) error {
	_, err := step(g, w, func() (struct{}, error) { return struct{}{}, fn() })
	return err
}

// thaw is a running check of whether a filesystem lets writers in. Concurrent callers share it,
// so that at most one thread waits in the kernel.
type thaw struct {
	began time.Time
	done  chan struct{} // closed when err is set
	err   error
}

// Thawed fails with ErrFrozen if the filesystem has let no writer in for patience.Thaw.
func (g *guard) Thawed() error {
	if _, silence := g.state(); silence != nil {
		return silence
	}
	t := g.thawing()
	timeout := time.NewTimer(time.Until(t.began.Add(g.patience.Thaw)))
	defer timeout.Stop()
	select {
	case <-t.done:
		return t.err
	case <-timeout.C:
		return FrozenError(g.pool, t.began)
	}
}

// FrozenError returns the ErrFrozen of a pool that lets no writer in.
func FrozenError(pool string, since time.Time) error {
	return fmt.Errorf("pool %q: %w since %s or before: thaw it (fsfreeze --unfreeze); no snapshot needs a freeze, each is of one instant",
		pool, ErrFrozen, since.UTC().Format(time.RFC3339))
}

func (g *guard) thawing() *thaw {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.thaw != nil {
		return g.thaw
	}
	t := &thaw{began: time.Now(), done: make(chan struct{})}
	g.thaw = t
	go func() {
		t.err = g.explain(g.filesystem.Thawed())
		g.mu.Lock()
		g.thaw = nil
		g.mu.Unlock()
		close(t.done)
	}()
	return t
}

// The methods below define what kind of call each one is: one that never waits, a look-up, a
// walk, or a step.

func (g *guard) PoolID() string         { return g.filesystem.PoolID() }
func (g *guard) SlotPath(s Slot) string { return g.filesystem.SlotPath(s) }
func (g *guard) MountOptions() []string { return g.filesystem.MountOptions() }

// Pin releases the pin at once if it comes after the call was given up. Otherwise the pool could
// not be unmounted any more.
func (g *guard) Pin() (release func()) {
	var mu sync.Mutex // protects what follows
	var unpin func()  // nil: not pinned
	over := false     // release was called
	release = func() {
		mu.Lock()
		defer mu.Unlock()
		if over = true; unpin != nil {
			unpin()
			unpin = nil
		}
	}
	_, err := look(g, what{method: "Pin"}, func() (struct{}, error) {
		now := g.filesystem.Pin()
		mu.Lock()
		defer mu.Unlock()
		if unpin = now; over {
			unpin()
			unpin = nil
		}
		return struct{}{}, nil
	})
	if err != nil {
		release()
	}
	return release
}

func (g *guard) Alive() error {
	_, err := look(g, what{method: "Alive"}, func() (struct{}, error) { return struct{}{}, g.filesystem.Alive() })
	return err
}

func (g *guard) Room() (btrfs.Room, error) {
	return look(g, what{method: "Room"}, g.filesystem.Room)
}

func (g *guard) Space() (btrfs.Space, error) {
	return look(g, what{method: "Space"}, g.filesystem.Space)
}

func (g *guard) Devices() ([]btrfs.Device, error) {
	return look(g, what{method: "Devices"}, g.filesystem.Devices)
}

func (g *guard) List(a Area) ([]string, error) {
	return look(g, what{"List", Slot{Area: a}}, func() ([]string, error) { return g.filesystem.List(a) })
}

func (g *guard) Record(s Slot) ([]byte, error) {
	return look(g, what{"Record", s}, func() ([]byte, error) { return g.filesystem.Record(s) })
}

func (g *guard) Beside(s Slot) ([]string, error) {
	return look(g, what{"Beside", s}, func() ([]string, error) { return g.filesystem.Beside(s) })
}

func (g *guard) SwapFiles(s Slot) ([]string, error) {
	return walk(g, what{"SwapFiles", s}, func() ([]string, error) { return g.filesystem.SwapFiles(s) })
}

func (g *guard) Outside() ([]OutsideSubvolume, error) {
	return walk(g, what{method: "Outside"}, g.filesystem.Outside)
}

func (g *guard) Info(s Slot) (btrfs.SubvolumeInfo, error) {
	return look(g, what{"Info", s}, func() (btrfs.SubvolumeInfo, error) { return g.filesystem.Info(s) })
}

func (g *guard) Nested(s Slot) ([]string, error) {
	return look(g, what{"Nested", s}, func() ([]string, error) { return g.filesystem.Nested(s) })
}

func (g *guard) NestedUpTo(s Slot, transid uint64) ([]string, error) {
	return look(g, what{"NestedUpTo", s}, func() ([]string, error) { return g.filesystem.NestedUpTo(s, transid) })
}

func (g *guard) Census() (Census, error) {
	return walk(g, what{method: "Census"}, g.filesystem.Census)
}

func (g *guard) NestedSince(from uint64) (Census, error) {
	return look(g, what{method: "NestedSince"}, func() (Census, error) { return g.filesystem.NestedSince(from) })
}

func (g *guard) QuotaStatus() (btrfs.QuotaStatus, error) {
	return look(g, what{method: "QuotaStatus"}, g.filesystem.QuotaStatus)
}

func (g *guard) Limits() (map[uint64]int64, error) {
	return walk(g, what{method: "Limits"}, g.filesystem.Limits)
}

func (g *guard) Usage(subvolume uint64) (Usage, error) {
	return look(g, what{method: "Usage"}, func() (Usage, error) { return g.filesystem.Usage(subvolume) })
}

func (g *guard) PinnedQuota() ([]uint64, error) {
	return walk(g, what{method: "PinnedQuota"}, g.filesystem.PinnedQuota)
}

func (g *guard) StaleQuota() ([]uint64, error) {
	return walk(g, what{method: "StaleQuota"}, g.filesystem.StaleQuota)
}

func (g *guard) Mkdir(s Slot) error {
	return change(g, what{"Mkdir", s}, func() error { return g.filesystem.Mkdir(s) })
}

func (g *guard) Rmdir(s Slot) error {
	return change(g, what{"Rmdir", s}, func() error { return g.filesystem.Rmdir(s) })
}

func (g *guard) Move(from, to Slot) error {
	return change(g, what{"Move", from}, func() error { return g.filesystem.Move(from, to) })
}

func (g *guard) SetRecord(s Slot, record []byte) error {
	return change(g, what{"SetRecord", s}, func() error { return g.filesystem.SetRecord(s, record) })
}

func (g *guard) Sync(s Slot) error {
	return change(g, what{"Sync", s}, func() error { return g.filesystem.Sync(s) })
}

func (g *guard) Create(s Slot) error {
	return change(g, what{"Create", s}, func() error { return g.filesystem.Create(s) })
}

func (g *guard) Snapshot(from, to Slot, readOnly bool) error {
	return change(g, what{"Snapshot", to}, func() error { return g.filesystem.Snapshot(from, to, readOnly) })
}

func (g *guard) Destroy(s Slot) error {
	return change(g, what{"Destroy", s}, func() error { return g.filesystem.Destroy(s) })
}

func (g *guard) SyncRoot(s Slot) error {
	return change(g, what{"SyncRoot", s}, func() error { return g.filesystem.SyncRoot(s) })
}

func (g *guard) Apply(s Slot, p meta.Parameters) error {
	return change(g, what{"Apply", s}, func() error { return g.filesystem.Apply(s, p) })
}

func (g *guard) Rescan() error {
	return change(g, what{method: "Rescan"}, func() error { return g.filesystem.Rescan() })
}

func (g *guard) SetLimit(subvolume uint64, bytes int64) error {
	return change(g, what{method: "SetLimit"}, func() error { return g.filesystem.SetLimit(subvolume, bytes) })
}

func (g *guard) Bound(volume uint64, size int64, nested []uint64) (Usage, error) {
	return step(g, what{method: "Bound"}, func() (Usage, error) { return g.filesystem.Bound(volume, size, nested) })
}

func (g *guard) LiftLimit(subvolume uint64) error {
	return change(g, what{method: "LiftLimit"}, func() error { return g.filesystem.LiftLimit(subvolume) })
}

func (g *guard) ForgetQuota(subvolume uint64) error {
	return change(g, what{method: "ForgetQuota"}, func() error { return g.filesystem.ForgetQuota(subvolume) })
}
