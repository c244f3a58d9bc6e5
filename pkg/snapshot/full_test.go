package snapshot_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs"
	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs/btrfstest"
	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
	"github.com/btrfs-csi/btrfs-csi/pkg/meta/index"
	"github.com/btrfs-csi/btrfs-csi/pkg/pool"
	"github.com/btrfs-csi/btrfs-csi/pkg/pool/pooltest"
	"github.com/btrfs-csi/btrfs-csi/pkg/snapshot"
)

// These tests fill pools on real disks, which are small enough for it.

// newSmallNode is newNode with a pool of 256 MiB.
func newSmallNode(t *testing.T, mode btrfs.QuotaMode, mkfs ...string) *node {
	t.Helper()
	n := &node{state: btrfstest.Mount(t, btrfstest.Size(256*mib), btrfstest.MkfsArgs(mkfs...)), mode: mode, disks: map[string]string{}}
	var err error
	n.host, err = pool.NewHost(n.state, mode)
	must(t, err)
	return n
}

// fillData takes all space for data, and all space that is in no chunk yet. With giveBack it then
// frees the first 64 MiB.
func fillData(dir string, giveBack bool) error {
	for i, size := 0, int64(64*mib); size >= 4096; i++ {
		f, err := os.Create(fmt.Sprintf("%s/data-%d", dir, i))
		if errors.Is(err, unix.ENOSPC) {
			break
		}
		if err != nil {
			return err
		}
		err = unix.Fallocate(int(f.Fd()), 0, 0, size)
		if errors.Is(err, unix.ENOSPC) {
			size /= 2
		} else if err != nil {
			return errors.Join(err, f.Close())
		}
		if err := f.Close(); err != nil {
			return err
		}
	}
	if giveBack {
		return os.Remove(dir + "/data-0")
	}
	return nil
}

// fillMetadata writes extended attributes until there is no room for an empty directory. An
// attribute of 3,000 bytes takes metadata only.
func fillMetadata(dir string) error {
	for i, value := 0, make([]byte, 3000); ; i++ {
		file := fmt.Sprintf("%s/metadata-%d", dir, i)
		err := os.Mkdir(file, 0o700)
		for j := 0; err == nil && j < 1000; j++ {
			err = unix.Setxattr(file, fmt.Sprintf("user.%d", j), value, 0)
		}
		if errors.Is(err, unix.ENOSPC) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// blind returns a host whose pools always seem to have room, so that the kernel refuses steps.
func blind(host pool.Host) pool.Host {
	return pooltest.Wrap(host, func(_ string, d pool.Directory) pool.Directory { return blindPool{d} })
}

type blindPool struct{ pool.Directory }

func (p blindPool) Room() (btrfs.Room, error) {
	const plenty = 1 << 40
	return btrfs.Room{Size: plenty, Available: plenty, Metadata: plenty}, nil
}

// traces returns the slots and qgroups that exist.
func (n *node) traces(t *testing.T) string {
	t.Helper()
	var found []string
	for _, area := range []string{"active", "committed", "view", "removing"} {
		slots, err := os.ReadDir(filepath.Join(n.path("default"), area))
		must(t, err)
		for _, slot := range slots {
			found = append(found, area+"/"+slot.Name())
		}
	}
	must(t, btrfs.WalkQgroups(n.state, func(q btrfs.Qgroup) error {
		found = append(found, fmt.Sprintf("%s %d", q.ID, q.MaxReferenced))
		return nil
	}))
	return strings.Join(found, "\n")
}

// settle makes the kernel drop removed trees with their qgroups, which it does by itself within
// 30 s.
func (n *node) settle(t *testing.T) {
	t.Helper()
	must(t, btrfstest.Sync(n.state))
}

// TestFull fills a pool from outside of its volumes. Creating then fails and leaves nothing
// behind; everything that frees space works. The kernel does not stop the filesystem.
func TestFull(t *testing.T) {
	t.Parallel()
	kinds := map[string]func(dir string) error{
		"data": func(dir string) error { return fillData(dir, false) },
		"metadata": func(dir string) error {
			return errors.Join(fillData(dir, true), fillMetadata(dir)) // data has space
		},
		"both": func(dir string) error { return errors.Join(fillData(dir, false), fillMetadata(dir)) },
	}
	for _, mode := range []btrfs.QuotaMode{btrfs.QuotaNone, btrfs.QuotaFull, btrfs.QuotaSimple} {
		for kind, fill := range kinds {
			t.Run(fmt.Sprintf("%s/%s", kind, mode), func(t *testing.T) {
				t.Parallel()
				testFull(t, newSmallNode(t, mode), kind, fill)
			})
		}
	}
	t.Run("mixed", func(t *testing.T) {
		t.Parallel()
		testFull(t, newSmallNode(t, btrfs.QuotaFull, "--mixed"), "both", kinds["both"])
	})
	t.Run("single", func(t *testing.T) {
		t.Parallel()
		testFull(t, newSmallNode(t, btrfs.QuotaFull, "-m", "single"), "metadata", kinds["metadata"])
	})
}

func testFull(t *testing.T, n *node, kind string, fill func(dir string) error) {
	ctx := t.Context()
	e := open(t, n.host, filepath.Join(t.TempDir(), "index.db"))
	for _, name := range []string{"pvc", "other", "snapshotted"} {
		must(t, second(e.Prepare(ctx, sized(name, 16*mib), meta.Ref{})))
		must(t, n.fill(name, mib))
	}
	must(t, second(e.Commit(ctx, snapshot.Spec{Name: "snap"}, "snapshotted")))
	must(t, second(e.View(ctx, snapshot.Spec{Name: "view"}, meta.Snapshot("snap"))))
	foreign := filepath.Join(n.state, "foreign")
	must(t, os.Mkdir(foreign, 0o700))
	must(t, fill(foreign))
	n.Pool("default").PeriodicCommit()

	before := n.traces(t)
	capacity, err := e.Capacity(ctx, "")
	if must(t, err); capacity.Available != 0 || capacity.MaximumSize != 0 {
		t.Errorf("promises %+v", capacity)
	}
	if state, message := e.Pools(ctx)[0].State(); (state == "MetadataFull") != (kind != "data") {
		t.Errorf("the pool is %s: %s", state, message)
	}
	refuses := func(e *snapshot.Engine, words ...string) {
		t.Helper()
		for what, err := range map[string]error{
			"create":   second(e.Prepare(ctx, sized("new", mib), meta.Ref{})),
			"clone":    second(e.Prepare(ctx, snapshot.Spec{Name: "new"}, meta.Volume("pvc"))),
			"restore":  second(e.Prepare(ctx, snapshot.Spec{Name: "new"}, meta.Snapshot("snap"))),
			"view":     second(e.View(ctx, snapshot.Spec{Name: "new"}, meta.Snapshot("snap"))),
			"snapshot": second(e.Commit(ctx, snapshot.Spec{Name: "new"}, "pvc")),
		} {
			if !errors.Is(err, pool.ErrNoSpace) || errors.Is(err, snapshot.ErrUnfinished) {
				t.Errorf("%s: %v", what, err)
				continue
			}
			for _, word := range words {
				if !strings.Contains(err.Error(), word) {
					t.Errorf("%s: want %q in %v", what, word, err)
				}
			}
		}
		wants(t, second(e.Resize(ctx, "pvc", snapshot.Range{Required: 64 * mib})), pool.ErrNoSpace)
	}
	refuses(e, `pool "default"`, "free", "delete")
	must(t, second(e.Prepare(ctx, sized("pvc", 16*mib), meta.Ref{}))) // again
	must(t, second(e.Commit(ctx, snapshot.Spec{Name: "snap"}, "snapshotted")))
	must(t, e.Close())

	if kind != "data" { // an empty volume needs no data
		eyeless := open(t, blind(n.host), filepath.Join(t.TempDir(), "index.db"))
		for what, err := range map[string]error{
			"create":   second(eyeless.Prepare(ctx, sized("new", mib), meta.Ref{})),
			"clone":    second(eyeless.Prepare(ctx, snapshot.Spec{Name: "new"}, meta.Volume("pvc"))),
			"snapshot": second(eyeless.Commit(ctx, snapshot.Spec{Name: "new"}, "pvc")),
		} {
			if !errors.Is(err, pool.ErrNoSpace) || errors.Is(err, snapshot.ErrUnfinished) {
				t.Errorf("%s, by the kernel: %v", what, err)
			}
		}
		must(t, eyeless.Close())
	}
	var got string
	if !btrfstest.Comes(func() bool { n.settle(t); got = n.traces(t); return got == before }) {
		t.Errorf("left behind:\n%s\nthere was:\n%s", got, before)
	}

	e = open(t, n.host, filepath.Join(t.TempDir(), "index.db")) // a restart
	must(t, second(e.Mounts(ctx, "other")))
	must(t, os.Remove(filepath.Join(n.path("default"), "active/snapshotted/fs/data")))
	// The kernel has a reserve for deletions, but not for truncation.
	if err := os.Truncate(filepath.Join(n.path("default"), "active/other/fs/data"), 4096); err != nil && (kind == "data" || !errors.Is(err, unix.ENOSPC)) {
		t.Error(err)
	}
	must(t, e.Remove(ctx, meta.Snapshot("snap")))
	must(t, e.Remove(ctx, meta.Volume("view")))
	must(t, e.Remove(ctx, meta.Volume("pvc")))
	must(t, e.Remove(ctx, meta.Volume("pvc")))
	wants(t, second(e.Stat(ctx, meta.Volume("pvc"))), snapshot.ErrNotFound)
	must(t, second(e.Stat(ctx, meta.Volume("other"))))
	findings, err := e.Plan(ctx)
	findings = slices.DeleteFunc(findings, func(f snapshot.Finding) bool { return f.Problem == pool.MetadataFull && kind != "data" })
	if err != nil || len(findings) > 0 {
		t.Errorf("found %v, %v", findings, err)
	}
	room, err := btrfs.RoomOf(n.state)
	if must(t, err); room.ReadOnly {
		t.Error("the kernel has stopped the filesystem")
	}
	must(t, os.RemoveAll(foreign))
	eventually(t, func() bool {
		n.settle(t)
		return second(e.Prepare(ctx, sized("new", 16*mib), meta.Ref{})) == nil
	})
	must(t, os.Truncate(filepath.Join(n.path("default"), "active/other/fs/data"), 4096))
}

// TestFillingUp fills a pool from pods while volumes are made and removed, so that the kernel
// refuses any step. A retry completes an interrupted removal although no room was made.
func TestFillingUp(t *testing.T) {
	t.Parallel()
	for _, mode := range []btrfs.QuotaMode{btrfs.QuotaNone, btrfs.QuotaFull, btrfs.QuotaSimple} {
		t.Run(string(mode), func(t *testing.T) {
			t.Parallel()
			n := newSmallNode(t, mode)
			e := open(t, blind(n.host), filepath.Join(t.TempDir(), "index.db"))
			ctx := t.Context()
			must(t, second(e.Prepare(ctx, sized("base", 16*mib), meta.Ref{})))
			must(t, n.fill("base", mib))
			n.Pool("default").PeriodicCommit()
			before := n.traces(t)
			foreign := filepath.Join(n.state, "foreign")
			must(t, os.Mkdir(foreign, 0o700))
			must(t, fillData(foreign, true))

			ctx, cancel := context.WithCancel(ctx)
			defer cancel()
			var workers sync.WaitGroup
			var made, refused atomic.Int64
			for i := range 8 {
				workers.Go(func() {
					for ctx.Err() == nil {
						id := fmt.Sprintf("pvc-%d", i)
						err := second(e.Prepare(t.Context(), sized(id, mib), meta.Ref{}))
						if i%2 == 0 {
							err = second(e.Prepare(t.Context(), snapshot.Spec{Name: id + "c"}, meta.Volume("base")))
						}
						switch {
						case err == nil:
							made.Add(1)
						case errors.Is(err, pool.ErrNoSpace):
							refused.Add(1)
						default:
							t.Error(err)
						}
						for _, id := range []string{id, id + "c"} {
							if !btrfstest.Comes(func() bool { err = e.Remove(t.Context(), meta.Volume(id)); return err == nil }) {
								t.Errorf("remove: %v", err)
							}
						}
					}
				})
			}
			rounds := 0
			btrfstest.Comes(func() bool { // until the kernel has refused a step, too
				pod := fmt.Sprintf("%s/%d", foreign, rounds)
				if err := os.Mkdir(pod, 0o700); err == nil {
					err = fillMetadata(pod)
					must(t, errors.Join(err, os.RemoveAll(pod)))
				}
				rounds++
				return rounds >= 3 && made.Load() > 0 && refused.Load() > 0
			})
			cancel()
			workers.Wait()
			if made.Load() == 0 || refused.Load() == 0 {
				t.Errorf("%d were made, %d refused: nothing was shown", made.Load(), refused.Load())
			}
			room, err := btrfs.RoomOf(n.state)
			if must(t, err); room.ReadOnly {
				t.Error("the kernel has stopped the filesystem")
			}
			must(t, e.Close())
			// If there was no room to lift a limit, a later subvolume shows whose limit it was.
			later := filepath.Join(n.state, "later")
			must(t, btrfs.Create(later))
			info, err := btrfs.Info(later)
			must(t, err)
			var got string
			if !btrfstest.Comes(func() bool {
				n.settle(t)
				e := open(t, n.host, filepath.Join(t.TempDir(), "index.db")) // removes the qgroups
				must(t, e.Close())
				got = strings.Replace(n.traces(t), fmt.Sprintf("\n0/%d %d", info.ID, btrfs.NoLimit), "", 1)
				return got == before
			}) {
				t.Errorf("left behind:\n%s\nthere was:\n%s", got, before)
			}
		})
	}
}

// TestIndexOnFullDisk fills the disk of the index. No request fails, no listing is wrong, and the
// index is right again once there is room.
func TestIndexOnFullDisk(t *testing.T) {
	t.Parallel()
	for name, mount := range map[string]func(t *testing.T) string{"tmpfs": mountTmpfs, "ext4": mountExt4} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := newNode(t, btrfs.QuotaNone)
			dir := mount(t)
			path, ballast := filepath.Join(dir, "index.db"), filepath.Join(dir, "ballast")
			ctx := t.Context()
			made, volumes, snapshots := 0, 0, 0
			// These entries do not fit into the free pages of the file.
			labels := map[string]string{"label": strings.Repeat("x", 2000)}
			create := func(e *snapshot.Engine) (id string) {
				t.Helper()
				id = fmt.Sprintf("pvc-%d", made)
				must(t, second(e.Prepare(ctx, snapshot.Spec{Name: id, Labels: labels}, meta.Ref{})))
				made++
				volumes++
				return id
			}
			work := func(e *snapshot.Engine, rounds int) {
				t.Helper()
				for round := range rounds {
					id := create(e)
					must(t, second(e.Commit(ctx, snapshot.Spec{Name: id}, id)))
					must(t, second(e.Resize(ctx, id, snapshot.Range{Required: 2 << 30})))
					snapshots++
					if round%2 == 0 {
						must(t, e.Remove(ctx, meta.Volume(id)))
						volumes--
					}
				}
			}
			lists := func(e *snapshot.Engine) {
				t.Helper()
				v, s := 0, 0
				must(t, e.Walk(ctx, meta.Volumes, "", func(meta.Entry) bool { v++; return true }))
				must(t, e.Walk(ctx, meta.Snapshots, "", func(meta.Entry) bool { s++; return true }))
				if v != volumes || s != snapshots {
					t.Errorf("lists %d volumes and %d snapshots, %d and %d are there", v, s, volumes, snapshots)
				}
			}
			e := open(t, n.host, path)
			work(e, 4)
			must(t, btrfstest.FillFile(ballast))
			for range 20 {
				create(e)
				time.Sleep(20 * time.Millisecond) // the writer may fail meanwhile, without a report
				lists(e)
			}
			work(e, 20)
			lists(e)
			must(t, os.Remove(ballast))
			lists(e)
			must(t, e.Close())
			verifyIndex := func() {
				t.Helper()
				index, renewed, err := index.Open(path)
				must(t, err)
				entries := 0
				must(t, errors.Join(index.Check(), index.Walk(meta.Snapshots, "", func(meta.Entry) bool { entries++; return true }), index.Close()))
				if entries != snapshots || renewed != "" {
					t.Errorf("the file has %d snapshots of %d; %s", entries, snapshots, renewed)
				}
			}
			verifyIndex()

			must(t, btrfstest.FillFile(ballast))
			for range 2 {
				e = open(t, n.host, path) // a start without room, then without a file and room for one
				lists(e)
				work(e, 6)
				lists(e)
				_ = e.Close()
				must(t, errors.Join(os.Remove(path), os.Remove(path+".seal"), btrfstest.FillFile(ballast)))
				must(t, os.WriteFile(path, nil, 0o600))
				must(t, os.WriteFile(path+".seal", nil, 0o600))
			}
			must(t, os.Remove(ballast))
			e = open(t, n.host, path)
			lists(e)
			must(t, e.Close())
			verifyIndex()
		})
	}
}

func mountTmpfs(t *testing.T) string {
	dir := t.TempDir()
	must(t, unix.Mount("none", dir, "tmpfs", 0, "size=512k"))
	t.Cleanup(func() { must(t, btrfstest.Unmount(dir)) })
	return dir
}

func mountExt4(t *testing.T) string {
	dir, device := t.TempDir(), btrfstest.Loop(t, 4*mib)
	if out, err := exec.Command("mkfs.ext4", "-q", "-m", "0", "-O", "^has_journal", device).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	must(t, unix.Mount(device, dir, "ext4", 0, ""))
	t.Cleanup(func() { must(t, btrfstest.Unmount(dir)) })
	return dir
}
