package fsyncs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs"
	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs/btrfstest"
	"github.com/btrfs-csi/btrfs-csi/test/reliability/files"
	"github.com/btrfs-csi/btrfs-csi/test/reliability/writelog"
	"github.com/btrfs-csi/btrfs-csi/test/testkit"
)

const (
	// smallPool is the size of the filesystem.
	smallPool = 256 << 20
	// mostRuns is the largest number of states to mount between two flushes.
	mostRuns = 256
)

// Options say how many fsyncs to test.
type Options struct {
	Dir     string // an empty directory
	Writers int    // at the same time
	Rounds  int    // fsyncs of each writer
	Seed    uint64

	forget bool // the first writer syncs nothing
}

// Report says which fsyncs of a btrfs returned too early.
type Report struct {
	Seed   uint64   `json:"seed"`
	Fsyncs int      `json:"fsyncs"`
	States int      `json:"states"` // mounted
	Early  []string `json:"early"`  // each fsync that returned too early, with the log of the disk
}

// Run starts writers on a btrfs, while others commit, and mounts every state that a power cut leaves.
// Each writer has a directory. It writes the next number, and syncs the directory before it goes on.
// The first writes an attribute of the directory. The second makes a subvolume in it, as the driver
// makes a volume. The third and the fourth write an attribute and commit, as the driver writes a
// record. The others rename a file over the last one, as pods do. All directories but the second are
// subvolumes, because the fsyncs of one subvolume wait for each other.
func Run(ctx context.Context, o Options) (r Report, err error) {
	f := &fsyncs{Options: o, mnt: filepath.Join(o.Dir, "mnt")}
	r.Seed = o.Seed
	image, disks := filepath.Join(o.Dir, "image"), filepath.Join(o.Dir, "writelog")
	if err := errors.Join(os.Mkdir(f.mnt, 0o700), os.Mkdir(disks, 0o700), testkit.Loop{File: image}.Make(ctx, smallPool, "-m", "single")); err != nil {
		return r, err
	}
	server, err := writelog.Start(disks)
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, server.Stop()) }()
	if f.disk, err = server.Open(image); err != nil {
		return r, err
	}
	if err := f.record(ctx); err != nil {
		return r, err
	}
	r.Early, err = f.explore(ctx, &r)
	return r, err
}

// numbered is the directory of a writer, with a number in it.
type numbered struct {
	dir   string
	asked []int // for each number from 0 on, the length of the log before it was written
	done  []int // the same after its fsync had returned
	write func(dir, number string) error
	read  func(dir string) (string, error)
}

// make makes the directory of writer i.
func (w *numbered) make(i int, forget bool) error {
	switch i {
	case 0:
		w.write, w.read = writeAttribute, readAttribute
		if forget {
			w.write = forgetAttribute
		}
		return btrfs.Create(w.dir)
	case 1:
		w.write, w.read = writeSubvolume, readSubvolume
		return os.Mkdir(w.dir, 0o700)
	case 2, 3:
		w.write, w.read = commitAttribute, readAttribute
		return btrfs.Create(w.dir)
	default:
		w.write, w.read = writeRenamed, readRenamed
		return btrfs.Create(w.dir)
	}
}

func writeAttribute(dir, number string) error {
	return errors.Join(unix.Setxattr(dir, "trusted.number", []byte(number), 0), files.SyncDir(dir))
}

func readAttribute(dir string) (string, error) {
	var data [20]byte
	n, err := unix.Getxattr(dir, "trusted.number", data[:])
	if errors.Is(err, unix.ENODATA) {
		return "0", nil
	}
	return string(data[:max(n, 0)]), err
}

func commitAttribute(dir, number string) error {
	return errors.Join(unix.Setxattr(dir, "trusted.number", []byte(number), 0), btrfs.Commit(dir))
}

func forgetAttribute(dir, number string) error {
	return unix.Setxattr(dir, "trusted.number", []byte(number), 0)
}

func writeSubvolume(dir, number string) error {
	return errors.Join(btrfs.Create(filepath.Join(dir, number)), files.SyncDir(dir))
}

func readSubvolume(dir string) (string, error) {
	entries, err := os.ReadDir(dir)
	return strconv.Itoa(len(entries)), err
}

func writeRenamed(dir, number string) error {
	return files.Change{Name: "number", Data: []byte(number)}.Make(dir)
}

func readRenamed(dir string) (string, error) {
	data, err := os.ReadFile(filepath.Join(dir, "number"))
	if errors.Is(err, fs.ErrNotExist) {
		return "0", nil
	}
	return string(data), err
}

// fsyncs is a run in progress.
type fsyncs struct {
	Options
	mnt     string
	disk    *writelog.Disk
	log     []writelog.Entry
	begin   int
	writers []*numbered

	mu    sync.Mutex // protects what follows
	trace []string
}

// record runs all writers at the same time.
func (f *fsyncs) record(ctx context.Context) (err error) {
	if err := (testkit.Loop{File: f.disk.Path()}).Mount(ctx, f.mnt); err != nil {
		return err
	}
	defer func() {
		if err = errors.Join(err, btrfstest.Unmount(f.mnt)); err == nil {
			f.log, err = f.disk.Log()
		}
	}()
	for i := range f.Writers {
		w := &numbered{dir: filepath.Join(f.mnt, fmt.Sprintf("writer%d", i)), asked: []int{0}, done: []int{0}}
		if err := w.make(i, f.forget); err != nil {
			return err
		}
		f.writers = append(f.writers, w)
	}
	if err := btrfstest.Sync(f.mnt); err != nil {
		return err
	}
	if f.begin, err = f.disk.Length(); err != nil {
		return err
	}
	others, stop := context.WithCancel(ctx)
	var all, committing errgroup.Group
	for _, w := range f.writers {
		all.Go(func() error { return f.writeAll(w) })
	}
	committing.Go(func() error { return f.commit(others) })
	err = all.Wait()
	stop()
	return errors.Join(err, committing.Wait())
}

func (f *fsyncs) writeAll(w *numbered) error {
	for n := 1; n <= f.Rounds; n++ {
		asked, err := f.disk.Length()
		if err != nil {
			return err
		}
		w.asked = append(w.asked, asked)
		if err := w.write(w.dir, strconv.Itoa(n)); err != nil {
			return err
		}
		done, err := f.disk.Length()
		if err != nil {
			return err
		}
		w.done = append(w.done, done)
		f.note(asked, done, fmt.Sprintf("%s writes %d and syncs it", filepath.Base(w.dir), n))
	}
	return nil
}

func (f *fsyncs) note(from, to int, what string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.trace = append(f.trace, fmt.Sprintf("%6d to %d %s", from, to, what))
}

// commit commits again and again, until ctx ends.
func (f *fsyncs) commit(ctx context.Context) error {
	random := rand.New(rand.NewPCG(f.Seed, 0))
	for n := 0; ; n++ {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(time.Duration(random.IntN(20)) * time.Millisecond):
		}
		from, err := f.disk.Length()
		if err != nil {
			return err
		}
		what := "somebody commits"
		if random.IntN(2) == 0 {
			err = btrfstest.Sync(f.mnt)
		} else {
			what = "somebody makes a subvolume and syncs the directory"
			err = errors.Join(btrfs.Create(filepath.Join(f.mnt, fmt.Sprintf("other%d", n))), files.SyncDir(f.mnt))
		}
		to, lengthErr := f.disk.Length()
		if err := errors.Join(err, lengthErr); err != nil {
			return err
		}
		f.note(from, to, what)
	}
}

// explore mounts all states, and returns the story of each fsync that returned too early.
func (f *fsyncs) explore(ctx context.Context, r *Report) ([]string, error) {
	early := map[string]bool{}
	var stories []string
	x := &writelog.Explorer[[]string]{Most: mostRuns, Random: rand.New(rand.NewPCG(f.Seed, 0))}
	x.Run = func(s writelog.State) ([]string, []int64, error) { return f.boot(ctx, s) }
	err := x.Explore(f.log, f.begin, func(c writelog.Crash[[]string]) error {
		for i, w := range f.writers {
			last := 0 // the last number whose fsync had returned
			for n, done := range w.done {
				if done <= c.To {
					last = n
				}
			}
			found, err := strconv.Atoi(c.Seen[i])
			if err != nil {
				return err
			}
			which := fmt.Sprintf("%s %d", w.dir, last)
			if found >= last || early[which] {
				continue
			}
			early[which] = true
			stories = append(stories, f.story(w, last, fmt.Sprintf("%s\n%s holds %d, wanted is %d", x.Describe(c), filepath.Base(w.dir), found, last)))
		}
		return nil
	})
	r.States = x.Counts.Runs
	for _, w := range f.writers {
		r.Fsyncs += len(w.done) - 1
	}
	return stories, err
}

// boot mounts a state, and returns the numbers.
func (f *fsyncs) boot(ctx context.Context, s writelog.State) (seen []string, reads []int64, err error) {
	if err := ctx.Err(); err != nil {
		return nil, nil, err
	}
	disk, err := f.disk.Restore(s)
	if err != nil {
		return nil, nil, err
	}
	if err := (testkit.Loop{File: disk.Path()}).Mount(ctx, f.mnt); err != nil {
		return nil, nil, err
	}
	var errs []error
	for _, w := range f.writers {
		number, err := w.read(w.dir)
		seen, errs = append(seen, number), append(errs, err)
	}
	errs = append(errs, btrfstest.Unmount(f.mnt))
	reads, err = disk.Reads()
	return seen, reads, errors.Join(append(errs, err, disk.Drop())...)
}

// story returns what happened around an fsync, with the log.
func (f *fsyncs) story(w *numbered, number int, what string) string {
	from, to := w.asked[number], w.done[number]
	var around []string
	for _, line := range f.trace {
		var a, b int
		if _, err := fmt.Sscanf(line, "%d to %d", &a, &b); err == nil && b >= from && a <= to {
			around = append(around, line)
		}
	}
	slices.Sort(around)
	return fmt.Sprintf("%s\nat the same time, by the length of the log:\n%s\nthe log of the disk:\n%s",
		what, strings.Join(around, "\n"), writelog.Excerpt(f.log, from-6, to+8))
}
