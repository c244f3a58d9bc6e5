package simulate

import (
	"context"
	"encoding/binary"
	"fmt"
	oldrand "math/rand"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing/synctest"
	"time"

	"github.com/google/uuid"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/btrfs-csi/btrfs-csi/pkg/cluster/clustertest"
	"github.com/btrfs-csi/btrfs-csi/pkg/driver"
)

// place is where a run has on the real machine what is not in memory. Each run needs another.
type place struct {
	dir      string // on a btrfs, for volumes and mounts
	stateDir string // for state directories; fast, as they are synced
}

// simulation is one run of a cluster, in one bubble of testing/synctest.
type simulation struct {
	plan plan
	rand *rand.Rand
	place
	ctx   context.Context
	all   sync.WaitGroup // what runs
	api   *clustertest.API
	admin conn // that nothing goes wrong for
	gate  *gate
	views *lockedViews
	facts facts
	stats Stats

	nodes   []*node
	disks   []*disk
	workers []*worker
	leaders map[string]bool // nodes whose resizer is elected
	settles bool            // no more faults
	mounts  int
	made    int // claims and snapshots

	writing sync.Mutex // protects journal
	journal []string

	plugging sync.RWMutex // protects disks, and what is written of them while processes run

	mu       sync.Mutex // protects what follows
	pods     map[string]*pod
	broken   error                // the first promise that was
	kept     map[string]time.Time // since when a PersistentVolume keeps its volume
	isolated map[string]time.Time // until when a node was
}

// Stats are what runs did.
type Stats struct {
	Runs, Steps, Actions, Starts int
	Virtual                      time.Duration
	Verdicts                     map[verdict]int
	Volumes, Snapshots           int
}

func (s *Stats) add(other Stats) {
	s.Runs, s.Steps, s.Actions, s.Starts = s.Runs+other.Runs, s.Steps+other.Steps, s.Actions+other.Actions, s.Starts+other.Starts
	s.Virtual, s.Volumes, s.Snapshots = s.Virtual+other.Virtual, s.Volumes+other.Volumes, s.Snapshots+other.Snapshots
	if s.Verdicts == nil {
		s.Verdicts = map[verdict]int{}
	}
	for v, n := range other.Verdicts {
		s.Verdicts[v] += n
	}
}

// lockedViews are views for all goroutines.
type lockedViews struct {
	mu sync.Mutex
	v  views
}

func (l *lockedViews) now() *view { l.mu.Lock(); defer l.mu.Unlock(); return l.v.now() }

// recent returns a view that is not older than another one.
func (l *lockedViews) recent(back int) *view {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.v.now()
	return l.v.recent[max(0, len(l.v.recent)-1-back)]
}

// run runs a plan in a bubble, and returns the promise that was broken.
func run(p plan, at place) (stats Stats, journal []string, err error) {
	seed := [32]byte{}
	binary.LittleEndian.PutUint64(seed[:], p.seed)
	uuid.SetRand(rand.NewChaCha8(seed))
	defer uuid.SetRand(nil)
	oldrand.Seed(int64(p.seed)) //nolint:staticcheck // client-go draws its delays from it
	ctx, cancel := context.WithCancel(context.Background())
	s := &simulation{
		plan: p, rand: rand.New(rand.NewPCG(p.seed, 1)), place: at, ctx: ctx, gate: newGate(), api: clustertest.Empty(),
		leaders: map[string]bool{}, pods: map[string]*pod{}, kept: map[string]time.Time{}, isolated: map[string]time.Time{},
		facts: facts{of: map[string]*fact{}}, stats: Stats{Runs: 1, Verdicts: map[verdict]int{}},
	}
	s.views, s.admin = &lockedViews{v: views{api: s.api, decoded: map[string]any{}}}, conn{s.api}
	began := time.Now()
	err = s.live()
	s.end(cancel)
	s.stats.Virtual = time.Since(began)
	if err != nil {
		err = fmt.Errorf("%w\nafter %v and %d steps of\n%v\n%s", err, s.stats.Virtual, s.stats.Steps, p, s.lastWords())
	}
	return s.stats, s.journal, err
}

// live builds the cluster, has the plan happen to it, and waits until it has settled.
func (s *simulation) live() error {
	s.build()
	for _, a := range s.plan.actions {
		for range a.after {
			if err := s.step(); err != nil {
				return err
			}
		}
		synctest.Wait()
		s.stats.Actions++
		s.note("ACTION %v: %s", a, s.act(a))
	}
	return s.settle()
}

// build starts an empty cluster.
func (s *simulation) build() {
	s.api.Put(clustertest.Classes, &storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: className}, Provisioner: driver.Name})
	for i := range s.plan.nodes {
		name := fmt.Sprintf("node-%d", i+1)
		n := s.newNode(name)
		s.nodes = append(s.nodes, n)
		s.mounts++
		s.disks = append(s.disks, &disk{fs: n.host.Pool(poolName), node: n, name: poolName, mount: fmt.Sprintf("mount-%d", s.mounts)})
		s.api.Put(clustertest.Nodes, clustertest.ReadyNode(name))
		s.workers = append(s.workers, s.provisioner(n), s.snapshotter(n), s.resizer(n), s.kubeletOf(n))
	}
	for _, n := range s.nodes {
		n.start()
	}
	s.leaders[s.nodes[0].name] = true
	s.workers = append(s.workers, s.binder(), s.placer(), s.snapshotController())
}

// pauses are what a step may wait; most are short.
var pauses = []time.Duration{time.Millisecond, 100 * time.Millisecond, 500 * time.Millisecond, time.Second, 3 * time.Second, 15 * time.Second, 40 * time.Second}

// step has one thing happen, and looks at all promises.
func (s *simulation) step() error {
	synctest.Wait()
	s.stats.Steps++
	pending := s.passable()
	switch x := s.rand.IntN(100); {
	case len(pending) > 0 && x < 70:
		s.let(pending[s.rand.IntN(len(pending))])
	case x < 88:
		w := s.workers[s.rand.IntN(len(s.workers))]
		w.tick(s.views.recent(s.lag()))
	default:
		time.Sleep(pauses[s.rand.IntN(len(pauses))])
	}
	synctest.Wait()
	s.lifecycle()
	return s.check()
}

// lag returns how many versions a component is behind.
func (s *simulation) lag() int {
	if s.settles || s.rand.IntN(2) == 0 {
		return 0
	}
	return s.rand.IntN(remembered)
}

// passable returns what can pass the gate.
func (s *simulation) passable() []*ticket {
	pending := s.gate.pending()
	passable := pending[:0]
	for _, t := range pending {
		n := s.nodeNamed(t.node())
		if n != nil && n.isolate.Load() && t.kind == kindWatch {
			continue
		}
		if s.plan.noise.slowWatches && !s.settles && t.kind == kindWatch && s.rand.IntN(4) > 0 {
			continue
		}
		passable = append(passable, t)
	}
	return passable
}

// let lets one pass, or has it go wrong.
func (s *simulation) let(t *ticket) {
	v := s.verdict(t)
	s.stats.Verdicts[v]++
	s.note("%v %s", t, v)
	s.gate.release(t, v)
}

func (s *simulation) verdict(t *ticket) verdict {
	if n := s.nodeNamed(t.node()); n != nil && n.isolate.Load() && t.kind == kindRequest {
		return fail
	}
	if s.settles {
		return pass
	}
	noise, x := s.plan.noise, s.rand.IntN(1000)
	for _, c := range []struct {
		of      int
		verdict verdict
		may     bool
	}{
		{noise.fail, fail, t.kind == kindRequest || t.kind == kindCall || t.kind == kindWatch},
		{noise.lose, lose, t.kind == kindRequest && !strings.Contains(t.what, "(watch)") || t.kind == kindCall},
		{noise.conflict, conflict, t.kind == kindRequest && (strings.HasPrefix(t.what, "PUT"))},
		{noise.expire, expire, t.kind == kindRequest && strings.Contains(t.what, "(watch)")},
	} {
		if c.may && x < c.of {
			return c.verdict
		}
		x -= c.of
		if x < 0 {
			break
		}
	}
	return pass
}

func (s *simulation) nodeNamed(name string) *node {
	for _, n := range s.nodes {
		if n.name == name {
			return n
		}
	}
	return nil
}

// lifecycle has Kubernetes see which nodes are ready.
func (s *simulation) lifecycle() {
	for _, n := range s.nodes {
		o, ok := s.views.now().nodes.get(n.name)
		if !ok {
			continue
		}
		s.mu.Lock()
		since := n.down
		if n.isolate.Load() && since.IsZero() {
			since = s.isolated[n.name]
		}
		s.mu.Unlock()
		ready := since.IsZero() || time.Since(since) < 40*time.Second
		if ready == nodeIsReady(o) {
			continue
		}
		o = o.DeepCopy()
		o.Status = clustertest.ReadyNode(n.name).Status
		if !ready {
			o.Status.Conditions = nil
		}
		must(s.admin.updateStatus(s.ctx, clustertest.Nodes, o))
	}
}

// note writes what happened, for who looks for a cause.
func (s *simulation) note(format string, args ...any) {
	s.writing.Lock()
	defer s.writing.Unlock()
	s.journal = append(s.journal, time.Now().Format("15:04:05.000 ")+fmt.Sprintf(format, args...))
}

// settleTime is within what a cluster without faults has to settle, and settleSteps what it
// may need for that.
const (
	settleTime  = 30 * time.Minute
	settleSteps = 60_000
	// quiet is for how long it then has to stay as it is.
	quiet = 6 * time.Minute
	// mostWrites is how often a driver may write in half of that time.
	mostWrites = 20
)

// settle ends all faults, and waits until everything agrees and stays so.
func (s *simulation) settle() error {
	synctest.Wait()
	s.settles = true
	s.heal()
	began, steps := time.Now(), 0
	var agreed time.Time
	var owners string
	version := 0
	for {
		if err := s.drain(&steps); err != nil {
			return err
		}
		differs := s.differs()
		now := s.owners()
		switch {
		case differs == "" && agreed.IsZero():
			agreed, owners = time.Now(), now
		case differs == "" && now != owners:
			return fmt.Errorf("pools change their owners without end: from %s to %s", owners, now)
		case differs == "" && time.Since(agreed) > quiet:
			if now := s.written(); now > version+mostWrites {
				return fmt.Errorf("objects are written without end: %d times in %v\n%s", now-version, quiet/2, strings.Join(s.journal[max(0, len(s.journal)-300):], "\n"))
			}
			return nil
		case differs == "" && time.Since(agreed) < quiet/2:
			version = s.written()
		case differs != "":
			agreed = time.Time{}
		}
		if time.Since(began) > settleTime+quiet || steps > settleSteps {
			if differs == "" {
				differs = "it agrees, but not for long"
			}
			return fmt.Errorf("it does not settle: %s", differs)
		}
		time.Sleep(2 * time.Second)
	}
}

// written returns how often something was written, but for Events.
func (s *simulation) written() (n int) {
	for _, line := range s.journal {
		if strings.Contains(line, " request of driver") && !strings.Contains(line, ": GET") && !strings.Contains(line, "/events") {
			n++
		}
	}
	return n
}

// drain lets everything pass until nothing waits and nothing is to be done.
func (s *simulation) drain(steps *int) error {
	for range 2000 {
		synctest.Wait()
		s.stats.Steps++
		*steps++
		if pending := s.passable(); len(pending) > 0 {
			s.let(pending[s.rand.IntN(len(pending))])
			continue
		}
		begun := 0
		for _, w := range s.workers {
			begun += w.tick(s.views.now())
		}
		synctest.Wait()
		s.lifecycle()
		if err := s.check(); err != nil || begun == 0 {
			return err
		}
	}
	return nil
}

// end ends all that runs.
func (s *simulation) end(cancel context.CancelFunc) {
	synctest.Wait()
	s.settles = true
	for _, d := range s.disks {
		d.fs.Answer()
	}
	for _, n := range s.nodes {
		s.stats.Starts += n.starts
		if n.driver.Load() != nil {
			n.kill()
		}
		unmountAll(n.kubelet())
	}
	cancel()
	ended := make(chan struct{})
	go func() { s.all.Wait(); close(ended) }()
	for over := false; !over; time.Sleep(time.Second) {
		synctest.Wait()
		for _, t := range s.gate.pending() {
			s.gate.release(t, gone)
		}
		select {
		case <-ended:
			over = true
		default:
		}
	}
	for _, handle := range sorted(s.facts.of) {
		if strings.HasPrefix(handle, "snapshot-") {
			s.stats.Snapshots++
		} else {
			s.stats.Volumes++
		}
	}
}

// lastWords is the end of the journal.
func (s *simulation) lastWords() string {
	if file := os.Getenv("SIMULATE_JOURNAL"); file != "" {
		_ = os.WriteFile(filepath.Clean(file), []byte(strings.Join(s.journal, "\n")), 0o600)
	}
	return strings.Join(s.journal[max(0, len(s.journal)-40):], "\n")
}
