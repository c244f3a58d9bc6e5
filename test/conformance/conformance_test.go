package conformance

import (
	"context"
	"errors"
	"flag"
	"io"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/testsuite"
	containerd "github.com/containerd/containerd/v2/plugins/snapshots/btrfs"
	"k8s.io/klog/v2"

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs"
	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs/btrfstest"
	"github.com/btrfs-csi/btrfs-csi/pkg/meta/index"
	"github.com/btrfs-csi/btrfs-csi/pkg/pool"
	"github.com/btrfs-csi/btrfs-csi/pkg/snapshot"
	"github.com/btrfs-csi/btrfs-csi/test/conformance/snapshotter"
)

// poolSize is the size of a sparse file. Each volume has the engine's DefaultSize, and no volume can be
// larger than the free space of its pool.
const poolSize = 8 << 30

var modes = []btrfs.QuotaMode{btrfs.QuotaNone, btrfs.QuotaFull, btrfs.QuotaSimple}

// TestMain also silences the log of the engine.
func TestMain(m *testing.M) {
	flags := flag.NewFlagSet("klog", flag.ExitOnError)
	klog.InitFlags(flags)
	_ = flags.Set("logtostderr", "false")
	_ = flags.Set("stderrthreshold", "FATAL")
	klog.SetOutput(io.Discard)
	os.Exit(btrfstest.Main(m.Run))
}

// TestSuite runs containerd's suite on the engine, on one filesystem for each quota mode. Each case has
// its own state directory and engine.
func TestSuite(t *testing.T) {
	for _, mode := range modes {
		t.Run(string(mode), func(t *testing.T) {
			filesystem := mount(t, mode)
			testsuite.SnapshotterSuite(t, "btrfs-csi", func(ctx context.Context, _ string) (snapshots.Snapshotter, func() error, error) {
				state, err := os.MkdirTemp(filesystem, "case-")
				if err != nil {
					return nil, nil, err
				}
				r := &rig{state: state, mode: mode}
				if err := r.open(ctx); err != nil {
					return nil, nil, err
				}
				return r.Snapshotter, r.close, nil
			})
		})
	}
}

// TestSuiteOnContainerd runs the same suite on containerd's own btrfs snapshotter. If a case fails
// there, too, the engine is not the cause.
func TestSuiteOnContainerd(t *testing.T) {
	filesystem := mount(t, btrfs.QuotaNone)
	testsuite.SnapshotterSuite(t, "btrfs", func(context.Context, string) (snapshots.Snapshotter, func() error, error) {
		root, err := os.MkdirTemp(filesystem, "case-")
		if err != nil {
			return nil, nil, err
		}
		s, err := containerd.NewSnapshotter(root)
		if err != nil {
			return nil, nil, err
		}
		return s, s.Close, nil
	})
}

// mount makes a filesystem with its quota already enabled, because the engines of several cases may open
// it concurrently.
func mount(t *testing.T, mode btrfs.QuotaMode) string {
	if mode == btrfs.QuotaSimple {
		btrfstest.SimpleQuota.Need(t)
	}
	// Keep the kernel from committing by itself while commits are counted.
	filesystem := btrfstest.Mount(t, btrfstest.Size(poolSize), btrfstest.MountOptions("commit=86400"))
	if mode != btrfs.QuotaNone {
		if err := btrfs.EnableQuota(filesystem, mode); err != nil {
			t.Fatal(err)
		}
	}
	return filesystem
}

// rig is a snapshotter with its own engine. Both can be reopened.
type rig struct {
	snapshots.Snapshotter
	engine *snapshot.Engine
	state  string
	mode   btrfs.QuotaMode
}

func newRig(t *testing.T, mode btrfs.QuotaMode) *rig {
	r := &rig{state: mount(t, mode), mode: mode}
	if err := r.open(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

func (r *rig) open(ctx context.Context) error {
	host, err := pool.NewHost(r.state, r.mode)
	if err != nil {
		return err
	}
	index, _, err := index.Open(filepath.Join(r.state, "index.db"))
	if err != nil {
		return err
	}
	if r.engine, err = snapshot.Open(ctx, host, index); err != nil {
		return err
	}
	r.Snapshotter, err = snapshotter.New(ctx, r.engine, r.state)
	return err
}

func (r *rig) close() error { return errors.Join(r.Snapshotter.Close(), r.engine.Close()) }

// reopen closes the snapshotter and the engine, and opens new ones.
func reopen(t *testing.T, r *rig) {
	t.Helper()
	check(t, r.close())
	check(t, r.open(t.Context()))
}

// walk returns all snapshots, by key.
func walk(t *testing.T, s snapshots.Snapshotter) map[string]snapshots.Info {
	t.Helper()
	found := map[string]snapshots.Info{}
	check(t, s.Walk(t.Context(), func(_ context.Context, info snapshots.Info) error {
		found[info.Name] = info
		return nil
	}))
	return found
}

func keys(infos map[string]snapshots.Info) []string { return slices.Sorted(maps.Keys(infos)) }

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantClass(t *testing.T, err, class error) {
	t.Helper()
	if !errors.Is(err, class) {
		t.Errorf("got %v, want %v", err, class)
	}
}

func equal[T any](t *testing.T, got, want T) {
	t.Helper()
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
}
