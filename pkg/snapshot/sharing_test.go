package snapshot_test

import (
	"context"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs"
	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs/btrfstest"
	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
	"github.com/btrfs-csi/btrfs-csi/pkg/pool"
	"github.com/btrfs-csi/btrfs-csi/pkg/pool/pooltest"
	"github.com/btrfs-csi/btrfs-csi/pkg/snapshot"
)

// TestExpansionWaitsForNobody: a create is on its way to its commit. An expansion, which commits
// by itself, does not wait for it.
func TestExpansionWaitsForNobody(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		goOn := make(chan struct{})
		slow := pooltest.Around(pooltest.NewHost(btrfs.QuotaFull), func(s pooltest.Step, do func() error) error {
			switch {
			case s.Method == "Create" && s.Slot.Name == meta.ID("held"):
				<-goOn
			case s.Method == "Sync" && s.Slot.Name != meta.ID("pvc"): // so that others have patience
				time.Sleep(5 * time.Millisecond)
			}
			return do()
		})
		e := open(t, slow, filepath.Join(t.TempDir(), "index.db"))
		must(t, second(e.Prepare(t.Context(), sized("pvc", mib), meta.Ref{})))
		must(t, second(e.Prepare(t.Context(), sized("other", mib), meta.Ref{})))
		var held sync.WaitGroup
		held.Go(func() { must(t, second(e.Prepare(t.Context(), sized("held", mib), meta.Ref{}))) })
		synctest.Wait()

		began := time.Now()
		must(t, second(e.Resize(t.Context(), "pvc", snapshot.Range{Required: 2 * mib})))
		if waited := time.Since(began); waited != 0 {
			t.Errorf("the expansion waited for %s", waited)
		}
		close(goOn)
		held.Wait()
	})
}

// TestCommitsShared counts the commits of the kernel: one for each operation that runs alone, one
// for many concurrent operations.
func TestCommitsShared(t *testing.T) {
	t.Parallel()
	btrfstest.CreateWithoutSync.Need(t)
	state := btrfstest.Mount(t, noCommits)
	host, err := pool.NewHost(state, btrfs.QuotaNone)
	must(t, err)
	e := open(t, host, filepath.Join(t.TempDir(), "index.db"))
	ctx := t.Context()
	must(t, second(e.Prepare(ctx, sized("source", mib), meta.Ref{})))
	const alone, workers, each = 10, 64, 4
	// A group of 64 takes one commit; without groups each operation takes a quarter of one. How
	// many snapshots share a commit depends on how fast they come. On a busy machine some come
	// late, so the best of several rounds counts.
	const grouped, some = workers * each / 6, workers*each - 1
	const rounds = 5
	for _, operation := range []struct {
		name string
		most int // commits for workers*each
		run  func(ctx context.Context, name string) error
	}{
		{"create", grouped, func(ctx context.Context, name string) error {
			return second(e.Prepare(ctx, sized(name, mib), meta.Ref{}))
		}},
		{"create, of a class", grouped, func(ctx context.Context, name string) error {
			return second(e.Prepare(ctx, snapshot.Spec{Name: "class-" + name, Parameters: meta.Parameters{Compression: "zstd"}}, meta.Ref{}))
		}},
		{"snapshot", some, func(ctx context.Context, name string) error {
			return second(e.Commit(ctx, snapshot.Spec{Name: name}, "source"))
		}},
		{"clone", some, func(ctx context.Context, name string) error {
			return second(e.Prepare(ctx, sized("clone-"+name, mib), meta.Volume("source")))
		}},
		{"remove", grouped, func(ctx context.Context, name string) error { return e.Remove(ctx, meta.Volume(name)) }},
	} {
		before := commitsOf(t, state)
		for i := range alone {
			must(t, operation.run(ctx, fmt.Sprintf("alone-%d", i)))
		}
		if n := commitsOf(t, state) - before; n != alone {
			t.Errorf("%s: %d commits for %d operations, one after the other", operation.name, n, alone)
		}
		n := math.MaxInt
		for round := 0; round < rounds && n > operation.most; round++ {
			before = commitsOf(t, state)
			var all sync.WaitGroup
			for w := range workers {
				all.Go(func() {
					for i := range each {
						if err := operation.run(ctx, fmt.Sprintf("together-%d-%d-%d", round, w, i)); err != nil {
							t.Error(err)
						}
					}
				})
			}
			all.Wait()
			n = commitsOf(t, state) - before
			t.Logf("%s: %d commits for %d operations", operation.name, n, workers*each)
		}
		if n > operation.most {
			t.Errorf("%s: %d commits for %d operations of %d workers", operation.name, n, workers*each, workers)
		}
	}
}

// commitsOf returns how often the filesystem has committed since it was mounted.
func commitsOf(t *testing.T, dir string) int {
	t.Helper()
	filesystem, err := btrfs.Filesystem(dir)
	must(t, err)
	data, err := os.ReadFile("/sys/fs/btrfs/" + filesystem.FSID.String() + "/commit_stats")
	must(t, err)
	var n int
	for line := range strings.Lines(string(data)) {
		if _, err := fmt.Sscanf(line, "commits %d", &n); err == nil {
			return n
		}
	}
	t.Fatalf("no commits in %q", data)
	return 0
}
