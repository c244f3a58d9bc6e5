package crashstates

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs"
	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs/btrfstest"
	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
	"github.com/btrfs-csi/btrfs-csi/pkg/pool/pooltest"
	"github.com/btrfs-csi/btrfs-csi/test/reliability/load"
	"github.com/btrfs-csi/btrfs-csi/test/reliability/model"
	"github.com/btrfs-csi/btrfs-csi/test/reliability/node"
	"github.com/btrfs-csi/btrfs-csi/test/reliability/writelog"
	"github.com/btrfs-csi/btrfs-csi/test/testkit"
)

// smallPool is the size of a pool whose writes are recorded.
const smallPool = 256 << 20

// recorder records histories on disks that log every write, and mounts the states that a power cut
// leaves of them.
type recorder struct {
	quota  btrfs.QuotaMode
	dir    string // a tmpfs
	server *writelog.Server
	base   string // image of a pool with one volume
	volume *model.Object
	counts *load.Counts
	nodes  int

	forgotten string // a method of pool.Filesystem that the driver forgets in the last call of each history
	binary    string // a driver to start on some states instead of one in this process; "" for none
	booted    int    // states so far
	processes int    // of these, with the binary
}

// newRecorder makes a recorder in an empty directory.
func newRecorder(ctx context.Context, dir string, quota btrfs.QuotaMode) (_ *recorder, err error) {
	r := &recorder{quota: quota, dir: dir, counts: load.NewCounts()}
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "mode=700"); err != nil {
		return nil, fmt.Errorf("tmpfs at %s: %w", dir, err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, r.close())
		}
	}()
	r.base = filepath.Join(dir, "base.img")
	if err := r.makeBase(ctx); err != nil {
		return nil, err
	}
	disks := filepath.Join(dir, "writelog")
	if err := os.Mkdir(disks, 0o700); err != nil {
		return nil, err
	}
	r.server, err = writelog.Start(disks)
	return r, err
}

func (r *recorder) close() error {
	var err error
	if r.server != nil {
		err = r.server.Stop()
	}
	return errors.Join(err, btrfstest.Unmount(r.dir))
}

// node returns a node with a new directory.
func (r *recorder) node(image string) *node.Node {
	r.nodes++
	return node.New(r.binary, filepath.Join(r.dir, fmt.Sprintf("n%d", r.nodes)), image, r.quota)
}

// makeBase makes a pool with a volume in it. Its metadata has one copy, because a second copy would
// hide what is lost of the first.
func (r *recorder) makeBase(ctx context.Context) (err error) {
	if err := (testkit.Loop{File: r.base}).Make(ctx, smallPool, "-m", "single"); err != nil {
		return err
	}
	n := r.node(r.base)
	defer func() { err = errors.Join(err, n.Clear()) }()
	if err := n.Open(ctx); err != nil {
		return err
	}
	if err := n.ServeInside(ctx, undisturbedStep); err != nil {
		return err
	}
	if r.quota == btrfs.QuotaFull {
		if err := btrfs.WaitRescan(n.Pool()); err != nil {
			return err
		}
	}
	h := r.history(n, model.New())
	if err := makeOther(meta.Active, none, nil)(ctx, h); err != nil {
		return err
	}
	r.volume = h.other
	for range 2 {
		if err := writeTo(ofOther)(ctx, h); err != nil {
			return err
		}
	}
	return n.Stop()
}

// afterCalls begins the failure of a driver whose power was not cut.
const afterCalls = "after the last call, without a power cut"

func undisturbedStep(_ pooltest.Step, do func() error) error { return do() }

// history returns a history that has not begun.
func (r *recorder) history(n *node.Node, m *model.Model) *history {
	g := load.NewGate()
	g.Open(1)
	l := &load.Load{Model: m, Gate: g, Node: n, Seed: 1, Counts: r.counts, Calm: true}
	return &history{Worker: l.Worker(r.nodes), length: func() (int, error) { return 0, nil }}
}

// recording is a history and the log of its disk.
type recording struct {
	*history
	sequence []call
	disk     *writelog.Disk
	log      []writelog.Entry
	begin    int   // length of the log when the last call began
	marks    []int // length of the log at each position of the journal
}

// record records a history.
func (r *recorder) record(ctx context.Context, sequence []call, i interference) (rec *recording, err error) {
	rec = &recording{sequence: sequence, marks: []int{0, 0}}
	if rec.disk, err = r.server.Open(r.base); err != nil {
		return nil, err
	}
	n := r.node(rec.disk.Path())
	m, volume := model.Begun(r.volume)
	rec.history = r.history(n, m)
	rec.volume, rec.interference, rec.length, rec.forgotten = volume, i, rec.disk.Length, r.forgotten
	defer func() {
		if err != nil {
			err = fmt.Errorf("%s: %s\nlast words of the driver:\n%s", rec.name(), rec.explain(err, 0, 0), n.LastWords())
		}
		if gone := n.Clear(); gone != nil {
			err = errors.Join(err, gone)
			return
		}
		if err == nil {
			rec.log, err = rec.disk.Log()
		}
	}()
	if err := n.Open(ctx); err != nil {
		return nil, err
	}
	if err := n.ServeInside(ctx, rec.around(ctx)); err != nil {
		return nil, err
	}
	var markErr error
	m.Passed = func(model.Position) {
		length, err := rec.disk.Length()
		markErr = errors.Join(markErr, err)
		rec.marks = append(rec.marks, length)
	}
	if err = rec.runMarking(ctx); err != nil {
		return rec, errors.Join(err, markErr)
	}
	if _, err = n.Check(ctx, m.Expect(m.Instant())); err != nil {
		err = fmt.Errorf("%s: %w", afterCalls, err)
	}
	return rec, errors.Join(err, markErr, n.Stop())
}

// runMarking runs the history, and records where its last call begins in the log.
func (rec *recording) runMarking(ctx context.Context) (err error) {
	last := len(rec.sequence) - 1
	for i, c := range rec.sequence {
		if i == last {
			if rec.begin, err = rec.disk.Length(); err != nil {
				return err
			}
		}
		if err := rec.run(ctx, c, i == last); err != nil {
			return err
		}
	}
	return nil
}

func (rec *recording) name() string {
	return historyName(rec.Node.Quota, rec.sequence, rec.interference)
}

// historyName returns the name of a history.
func historyName(quota btrfs.QuotaMode, sequence []call, i interference) string {
	return fmt.Sprintf("quota %s: %s; %s", quota, nameOf(sequence), i)
}

// positions returns the first and the last position that the journal may have had while the length of
// the log was between from and to.
func (rec *recording) positions(from, to int) (first, last model.Position) {
	first = model.Position(sort.Search(len(rec.marks), func(p int) bool { return rec.marks[p] >= from })) - 1
	last = model.Position(sort.Search(len(rec.marks), func(p int) bool { return rec.marks[p] > to })) - 1
	return max(first, 1), max(last, 1)
}

// judge compares a state with the journal at each position at which the cut may have happened.
func (rec *recording) judge(c writelog.Crash[node.Sight]) error {
	first, last := rec.positions(c.From, c.To)
	for p := first; p <= last; p++ {
		if _, err := c.Seen.Compare(rec.Expect(model.Exactly(p))); err != nil {
			return errors.New(rec.explain(fmt.Errorf("at position %d of the journal: %w", p, err), c.From, c.To))
		}
	}
	return nil
}

// explain returns an error with the log of the disk, the steps of the driver, and the stories of the
// objects that the error names.
func (rec *recording) explain(err error, from, to int) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%v\nthe log of the disk (the last call begins at %d):\n%s", err, rec.begin, writelog.Excerpt(rec.log, min(from-5, rec.begin), to+10))
	fmt.Fprintf(&b, "the steps of the last call, each after so many requests to the disk:\n%s\n", strings.Join(rec.trace, "\n"))
	for _, story := range rec.Stories(err.Error()) {
		b.WriteString(story + "\n")
	}
	fmt.Fprintf(&b, "positions of the journal are at these lengths of the log: %v", slices.Clone(rec.marks))
	return b.String()
}

// boot mounts a state, starts a driver on it, and returns the state of the node.
func (r *recorder) boot(ctx context.Context, rec *recording, state writelog.State) (s node.Sight, reads []int64, err error) {
	disk, err := rec.disk.Restore(state)
	if err != nil {
		return s, nil, err
	}
	n := r.node(disk.Path())
	if s, err = r.bootNode(ctx, n); err != nil {
		err = fmt.Errorf("%w; last words of the driver: %s", err, n.LastWords())
	}
	if gone := n.Clear(); gone != nil {
		return s, nil, errors.Join(err, gone)
	}
	reads, readErr := disk.Reads()
	return s, reads, errors.Join(err, readErr, disk.Drop())
}

func (r *recorder) bootNode(ctx context.Context, n *node.Node) (s node.Sight, err error) {
	if err := n.Open(ctx); err != nil {
		return s, err
	}
	r.booted++
	if r.binary != "" && r.booted%oneInProcess == 0 {
		r.processes++
		err = n.Serve(ctx)
	} else {
		err = n.ServeInside(ctx, undisturbedStep)
	}
	if err != nil {
		return s, err
	}
	if s, err = n.See(ctx); err != nil {
		return s, err
	}
	return s, errors.Join(n.Stop(), n.ReadLog())
}

// explore mounts all states that a power cut leaves during the last call of a recording and after it,
// and compares each with the journal.
func (r *recorder) explore(ctx context.Context, rec *recording, random *rand.Rand, most, samples int) (writelog.Counts, error) {
	x := &writelog.Explorer[node.Sight]{Most: most, Samples: samples, Random: random}
	x.Run = func(s writelog.State) (node.Sight, []int64, error) {
		if err := ctx.Err(); err != nil {
			return node.Sight{}, nil, err
		}
		return r.boot(ctx, rec, s)
	}
	err := x.Explore(rec.log, rec.begin, rec.judge)
	if err != nil {
		err = fmt.Errorf("%s: %w", rec.name(), err)
	}
	return x.Counts, errors.Join(err, rec.disk.Drop())
}
