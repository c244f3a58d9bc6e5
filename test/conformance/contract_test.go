package conformance

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	containerd "github.com/containerd/containerd/v2/plugins/snapshots/btrfs"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs"
)

// refusals are calls that must fail, with the class of error of containerd's own snapshotter. The
// committed c has the children a (active) and v (view), the committed d has the committed child e, and r
// is an active.
var refusals = []struct {
	name string
	call func(*testing.T, snapshots.Snapshotter) error
	want error
}{
	{"stat of nothing", func(t *testing.T, s snapshots.Snapshotter) error {
		_, err := s.Stat(t.Context(), "missing")
		return err
	}, errdefs.ErrNotFound},
	{"update of nothing", func(t *testing.T, s snapshots.Snapshotter) error {
		_, err := s.Update(t.Context(), snapshots.Info{Name: "missing"})
		return err
	}, errdefs.ErrNotFound},
	{"update of the parent", func(t *testing.T, s snapshots.Snapshotter) error {
		_, err := s.Update(t.Context(), snapshots.Info{Name: "a", Parent: "d"}, "labels.l", "parent")
		return err
	}, errdefs.ErrInvalidArgument},
	{"usage of nothing", func(t *testing.T, s snapshots.Snapshotter) error {
		_, err := s.Usage(t.Context(), "missing")
		return err
	}, errdefs.ErrNotFound},
	{"mounts of nothing", func(t *testing.T, s snapshots.Snapshotter) error {
		_, err := s.Mounts(t.Context(), "missing")
		return err
	}, errdefs.ErrNotFound},
	{"mounts of a committed", func(t *testing.T, s snapshots.Snapshotter) error {
		_, err := s.Mounts(t.Context(), "c")
		return err
	}, errdefs.ErrFailedPrecondition},
	{"prepare on nothing", func(t *testing.T, s snapshots.Snapshotter) error {
		_, err := s.Prepare(t.Context(), "new", "missing")
		return err
	}, errdefs.ErrNotFound},
	{"prepare on an active", prepare("new", "a"), errdefs.ErrInvalidArgument},
	{"view of a view", func(t *testing.T, s snapshots.Snapshotter) error {
		_, err := s.View(t.Context(), "new", "v")
		return err
	}, errdefs.ErrInvalidArgument},
	{"prepare again", prepare("a", "c"), errdefs.ErrAlreadyExists},
	{"prepare again, on another", prepare("a", "d"), errdefs.ErrAlreadyExists},
	{"prepare with the key of a view", prepare("v", "c"), errdefs.ErrAlreadyExists},
	{"prepare with the name of a committed", prepare("d", ""), errdefs.ErrAlreadyExists},
	{"view with the key of an active", func(t *testing.T, s snapshots.Snapshotter) error {
		_, err := s.View(t.Context(), "a", "c")
		return err
	}, errdefs.ErrAlreadyExists},
	{"commit of nothing", commit("new", "missing"), errdefs.ErrNotFound},
	{"commit of a view", commit("new", "v"), errdefs.ErrFailedPrecondition},
	{"commit of a committed", commit("new", "e"), errdefs.ErrFailedPrecondition},
	{"commit as one that is there", commit("d", "a"), errdefs.ErrAlreadyExists},
	{"commit with the key of another active", commit("r", "a"), errdefs.ErrAlreadyExists},
	{"commit with its own key", commit("a", "a"), errdefs.ErrAlreadyExists},
	{"commit onto another parent", func(t *testing.T, s snapshots.Snapshotter) error {
		return s.Commit(t.Context(), "new", "a", snapshots.WithParent("d"))
	}, errdefs.ErrInvalidArgument},
	{"remove of nothing", remove("missing"), errdefs.ErrNotFound},
	{"remove of an active's parent", remove("c"), errdefs.ErrFailedPrecondition},
	{"remove of a committed's parent", remove("d"), errdefs.ErrFailedPrecondition},
	{"an option that fails", func(t *testing.T, s snapshots.Snapshotter) error {
		_, err := s.Prepare(t.Context(), "new", "", func(*snapshots.Info) error { return errOption })
		return err
	}, errOption},
}

var errOption = errors.New("refused by the caller")

// TestRefusals compares our refusals, and the snapshots after them, with containerd's.
func TestRefusals(t *testing.T) {
	ours := newRig(t, btrfs.QuotaNone)
	theirs := theirSnapshotter(t, mount(t, btrfs.QuotaNone))
	for name, s := range map[string]snapshots.Snapshotter{"btrfs-csi": ours, "containerd": theirs} {
		t.Run(name, func(t *testing.T) {
			populate(t, s)
			before := walk(t, s)
			for _, refusal := range refusals {
				if err := refusal.call(t, s); !errors.Is(err, refusal.want) {
					t.Errorf("%s: got %v, want %v", refusal.name, err, refusal.want)
				}
			}
			equal(t, walk(t, s), before)
		})
	}
}

func theirSnapshotter(t *testing.T, filesystem string) snapshots.Snapshotter {
	s, err := containerd.NewSnapshotter(filepath.Join(filesystem, "root"))
	check(t, err)
	t.Cleanup(func() { check(t, s.Close()) })
	return s
}

func populate(t *testing.T, s snapshots.Snapshotter) {
	t.Helper()
	for _, step := range []func(*testing.T, snapshots.Snapshotter) error{
		prepare("c-active", ""), commit("c", "c-active"), prepare("a", "c"),
		prepare("d-active", ""), commit("d", "d-active"),
		prepare("e-active", "d"), commit("e", "e-active"), prepare("r", ""),
	} {
		check(t, step(t, s))
	}
	_, err := s.View(t.Context(), "v", "c")
	check(t, err)
}

func prepare(key, parent string) func(*testing.T, snapshots.Snapshotter) error {
	return func(t *testing.T, s snapshots.Snapshotter) error {
		_, err := s.Prepare(t.Context(), key, parent)
		return err
	}
}

func commit(name, key string) func(*testing.T, snapshots.Snapshotter) error {
	return func(t *testing.T, s snapshots.Snapshotter) error { return s.Commit(t.Context(), name, key) }
}

func remove(key string) func(*testing.T, snapshots.Snapshotter) error {
	return func(t *testing.T, s snapshots.Snapshotter) error { return s.Remove(t.Context(), key) }
}

// TestUsage writes to an active, commits it, and writes to a child.
func TestUsage(t *testing.T) {
	for _, mode := range modes {
		t.Run(string(mode), func(t *testing.T) {
			r := newRig(t, mode)
			check(t, prepare("c-active", "")(t, r))
			write(t, r, "c-active", 8<<20)
			wantUsage(t, r, "c-active", 8<<20)
			check(t, commit("c", "c-active")(t, r))
			wantUsage(t, r, "c", 8<<20)
			check(t, prepare("a", "c")(t, r))
			wantUsage(t, r, "a", 0)
			wantUsage(t, r, "c", 8<<20) // although all data is shared now
			write(t, r, "a", 2<<20)
			wantUsage(t, r, "a", 2<<20)
			_, err := r.View(t.Context(), "v", "c")
			check(t, err)
			wantUsage(t, r, "v", 0)
			check(t, commit("child", "a")(t, r))
			wantUsage(t, r, "child", 2<<20)
		})
	}
}

// slack is the space that a subvolume uses besides the data of its files.
const slack = 256 << 10

func wantUsage(t *testing.T, s snapshots.Snapshotter, key string, want int64) {
	t.Helper()
	usage, err := s.Usage(t.Context(), key)
	check(t, err)
	if usage.Size < want || usage.Size > want+slack {
		t.Errorf("%s: got %d bytes, want %d", key, usage.Size, want)
	}
}

// write replaces the only file of an active, and waits until the quota has counted it.
func write(t *testing.T, s snapshots.Snapshotter, key string, size int) {
	t.Helper()
	mounts, err := s.Mounts(t.Context(), key)
	check(t, err)
	f, err := os.Create(filepath.Join(mounts[0].Source, "file"))
	check(t, err)
	defer f.Close()
	data := make([]byte, size)
	for i := range data { // incompressible
		data[i] = byte(i * 7 >> 3)
	}
	_, err = f.Write(data)
	check(t, errors.Join(err, unix.Syncfs(int(f.Fd())))) // the counters are updated by a commit
}
