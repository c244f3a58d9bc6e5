package conformance

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs"
	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
	"github.com/btrfs-csi/btrfs-csi/pkg/snapshot"
)

func TestReopen(t *testing.T) {
	r := newRig(t, btrfs.QuotaNone)
	populate(t, r)
	labelled, err := r.Prepare(t.Context(), "path/with labels: 1", "c", snapshots.WithLabels(map[string]string{"a": "1", "b": "2"}))
	check(t, err)
	_, err = r.View(t.Context(), "empty", "")
	check(t, err)
	for _, key := range []string{"c", "path/with labels: 1"} {
		_, err = r.Update(t.Context(), snapshots.Info{Name: key, Labels: map[string]string{"a": "new"}}, "labels.a", "labels.b")
		check(t, err)
	}
	before := walk(t, r)
	if got := before["path/with labels: 1"]; !maps.Equal(got.Labels, map[string]string{"a": "new"}) || !got.Updated.After(got.Created) {
		t.Errorf("got %+v", got)
	}

	reopen(t, r)
	equal(t, walk(t, r), before)
	again, err := r.Mounts(t.Context(), "path/with labels: 1")
	check(t, err)
	equal(t, again, labelled)
	wantClass(t, remove("c")(t, r), errdefs.ErrFailedPrecondition)
	wantClass(t, remove("d")(t, r), errdefs.ErrFailedPrecondition)
	wantClass(t, commit("new", "empty")(t, r), errdefs.ErrFailedPrecondition)
	mounts, err := r.Mounts(t.Context(), "empty")
	check(t, err)
	equal(t, mounts[0].Options, []string{"bind", "ro"})
	for _, key := range []string{"empty", "path/with labels: 1", "v", "a", "c", "e", "d"} {
		check(t, remove(key)(t, r))
	}
}

// TestLabelsGoWithTheSnapshot: a new snapshot with the same key has its own labels.
func TestLabelsGoWithTheSnapshot(t *testing.T) {
	r := newRig(t, btrfs.QuotaNone)
	update := func(value string) {
		_, err := r.Update(t.Context(), snapshots.Info{Name: "key", Labels: map[string]string{"l": value}})
		check(t, err)
	}
	wantLabel := func(want string) {
		t.Helper()
		info, err := r.Stat(t.Context(), "key")
		check(t, err)
		if info.Labels["l"] != want || want == "" && info.Updated != info.Created {
			t.Errorf("got %+v, want %q", info, want)
		}
	}
	check(t, prepare("key", "")(t, r))
	update("old")
	wantLabel("old")
	check(t, remove("key")(t, r))
	check(t, prepare("key", "")(t, r))
	wantLabel("")
	reopen(t, r) // the row of the first is still in the file
	wantLabel("")
	update("new")
	reopen(t, r)
	wantLabel("new")
	// Removed without the adapter, as by a crash between the two.
	check(t, r.engine.Remove(t.Context(), meta.Volume("key")))
	reopen(t, r)
	check(t, prepare("key", "")(t, r))
	wantLabel("")
	reopen(t, r)
	wantLabel("")
}

// TestHalfACommit: the process dies after the engine has made the snapshot.
func TestHalfACommit(t *testing.T) {
	r := newRig(t, btrfs.QuotaNone)
	check(t, prepare("c-active", "")(t, r))
	check(t, commit("c", "c-active")(t, r))
	check(t, prepare("a", "c")(t, r))
	entry, err := r.engine.Stat(t.Context(), meta.Snapshot("c"))
	check(t, err)
	labels := maps.Clone(entry.Labels)
	labels["containerd/parent"] = "c"
	_, err = r.engine.Commit(t.Context(), snapshot.Spec{Name: "child", Labels: labels}, "a")
	check(t, err)
	reopen(t, r)
	equal(t, keys(walk(t, r)), []string{"a", "c", "child"})
	check(t, remove("a")(t, r))
	wantClass(t, remove("c")(t, r), errdefs.ErrFailedPrecondition)
	check(t, remove("child")(t, r))
	check(t, remove("c")(t, r))
}

// TestForeign: volumes of another user of the engine are not listed, and their names are not used.
func TestForeign(t *testing.T) {
	r := newRig(t, btrfs.QuotaNone)
	entry, err := r.engine.Prepare(t.Context(), snapshot.Spec{Name: "theirs"}, meta.Ref{})
	check(t, err)
	for range 2 {
		wantClass(t, prepare("theirs", "")(t, r), errdefs.ErrAlreadyExists)
		wantClass(t, remove("theirs")(t, r), errdefs.ErrNotFound)
		equal(t, len(walk(t, r)), 0)
		reopen(t, r)
	}
	now, err := r.engine.Stat(t.Context(), entry.Ref())
	check(t, err)
	equal(t, now.Lineage, entry.Lineage)
}

func TestLabelsThatDoNotFit(t *testing.T) {
	r := newRig(t, btrfs.QuotaNone)
	check(t, prepare("a", "")(t, r))
	large := snapshots.WithLabels(map[string]string{"l": strings.Repeat("x", meta.MaxRecordSize)})
	_, err := r.Prepare(t.Context(), "large", "", large)
	wantClass(t, err, errdefs.ErrInvalidArgument)
	wantClass(t, r.Commit(t.Context(), "large", "a", large), errdefs.ErrInvalidArgument)
	equal(t, keys(walk(t, r)), []string{"a"})
	check(t, prepare("large", "")(t, r))
	check(t, commit("committed", "a")(t, r))
}

// TestConcurrent: of many equal concurrent calls one succeeds.
func TestConcurrent(t *testing.T) {
	r := newRig(t, btrfs.QuotaNone)
	check(t, prepare("c-active", "")(t, r))
	check(t, commit("c", "c-active")(t, r))
	for round := range 20 {
		key := fmt.Sprintf("key-%d", round)
		won := race(t, 8, func(int) error { return prepare(key, "c")(t, r) })
		equal(t, len(won), 1)
		won = race(t, 8, func(i int) error { return commit(fmt.Sprintf("%s-%d", key, i), key)(t, r) })
		equal(t, len(won), 1)
		parent := fmt.Sprintf("%s-%d", key, won[0])
		// Either the parent is removed, or a child is created.
		won = race(t, 8, func(i int) error {
			if i == 0 {
				return remove(parent)(t, r)
			}
			return prepare(fmt.Sprintf("%s-child-%d", parent, i), parent)(t, r)
		})
		_, err := r.Stat(t.Context(), parent)
		if gone := errdefs.IsNotFound(err); gone != (won[0] == 0) || gone && len(won) > 1 {
			t.Errorf("parent gone: %v, done: %v", gone, won)
		}
	}
	before := walk(t, r)
	reopen(t, r)
	equal(t, walk(t, r), before)
}

// race calls fn n times concurrently and returns the indices of the calls that succeeded. All others must
// be refused.
func race(t *testing.T, n int, fn func(int) error) (won []int) {
	t.Helper()
	errs := make([]error, n)
	var wait sync.WaitGroup
	for i := range n {
		wait.Go(func() { errs[i] = fn(i) })
	}
	wait.Wait()
	for i, err := range errs {
		switch {
		case err == nil:
			won = append(won, i)
		case errdefs.IsAlreadyExists(err), errdefs.IsNotFound(err), errdefs.IsUnavailable(err), errdefs.IsFailedPrecondition(err):
		default:
			t.Errorf("call %d: %v", i, err)
		}
	}
	if len(won) == 0 {
		t.Fatalf("nobody succeeded: %v", errors.Join(errs...))
	}
	return won
}

// TestCommits: the adapter causes no commits besides those of the engine.
func TestCommits(t *testing.T) {
	r := newRig(t, btrfs.QuotaNone)
	if adapter, engine := commits(t, r, throughAdapter), commits(t, r, throughEngine); adapter != engine {
		t.Errorf("%d commits through the adapter, %d without it", adapter, engine)
	}
}

func throughAdapter(t *testing.T, r *rig) error {
	for _, step := range []func(*testing.T, snapshots.Snapshotter) error{prepare("a", ""), commit("c", "a"), remove("c")} {
		check(t, step(t, r))
	}
	return nil
}

func throughEngine(t *testing.T, r *rig) error {
	ctx := t.Context()
	_, errPrepare := r.engine.Prepare(ctx, snapshot.Spec{Name: "a"}, meta.Ref{})
	_, errCommit := r.engine.Commit(ctx, snapshot.Spec{Name: "c"}, "a")
	return errors.Join(errPrepare, errCommit, r.engine.Remove(ctx, meta.Volume("a")), r.engine.Remove(ctx, meta.Snapshot("c")))
}

// commits counts the commits of the filesystem while fn runs.
func commits(t *testing.T, r *rig, fn func(*testing.T, *rig) error) int {
	t.Helper()
	before := commitsOf(t, r.state)
	check(t, fn(t, r))
	count := commitsOf(t, r.state) - before
	if count < 4 {
		t.Fatalf("%d commits of four operations: they are not counted", count)
	}
	return count
}

func commitsOf(t *testing.T, filesystem string) (count int) {
	t.Helper()
	info, err := btrfs.Filesystem(filesystem)
	check(t, err)
	text, err := os.ReadFile("/sys/fs/btrfs/" + info.FSID.String() + "/commit_stats")
	check(t, err)
	_, err = fmt.Sscanf(string(text), "commits %d", &count)
	check(t, err)
	return count
}
