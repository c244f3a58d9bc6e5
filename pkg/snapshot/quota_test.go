package snapshot_test

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs"
	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs/btrfstest"
	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
	"github.com/btrfs-csi/btrfs-csi/pkg/pool"
	"github.com/btrfs-csi/btrfs-csi/pkg/snapshot"
)

// These tests show what the size of a volume means.

// eachLimit runs a test in both quota modes that have limits.
func eachLimit(t *testing.T, test func(t *testing.T, mode btrfs.QuotaMode)) {
	t.Parallel()
	for _, mode := range []btrfs.QuotaMode{btrfs.QuotaFull, btrfs.QuotaSimple} {
		t.Run(string(mode), func(t *testing.T) {
			t.Parallel()
			test(t, mode)
		})
	}
}

// writers are ways to fill a file until the kernel refuses.
var writers = map[string]func(f *os.File, offset int64) (int64, error){
	"4k": writing(4 << 10),
	"1m": writing(1 << 20),
	"fallocate": func(f *os.File, offset int64) (int64, error) {
		return 256 << 10, unix.Fallocate(int(f.Fd()), 0, offset, 256<<10)
	},
	"direct": func(f *os.File, offset int64) (int64, error) {
		flags, err := unix.FcntlInt(f.Fd(), unix.F_GETFL, 0)
		if err == nil {
			_, err = unix.FcntlInt(f.Fd(), unix.F_SETFL, flags|unix.O_DIRECT)
		}
		if err != nil {
			return 0, err
		}
		n, err := f.WriteAt(alignedPage, offset)
		return int64(n), err
	},
}

func writing(size int) func(f *os.File, offset int64) (int64, error) {
	data := make([]byte, size)
	return func(f *os.File, offset int64) (int64, error) {
		n, err := f.WriteAt(data, offset)
		return int64(n), err
	}
}

// alignedPage is a buffer for direct writes.
var alignedPage = func() []byte {
	page, err := unix.Mmap(-1, 0, 64<<10, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		panic(err)
	}
	return page
}()

// overrun writes files until the kernel refuses, and returns their total size.
func overrun(dir string, write func(f *os.File, offset int64) (int64, error)) (total int64, err error) {
	for i := 0; ; i++ {
		f, err := os.Create(fmt.Sprintf("%s/file-%d", dir, i))
		if err != nil {
			return total, err
		}
		offset := int64(0)
		for offset < 8<<20 && err == nil {
			var n int64
			n, err = write(f, offset)
			offset += n
		}
		err = errors.Join(err, f.Sync(), f.Close())
		if info, failed := os.Stat(f.Name()); failed == nil {
			total += info.Size()
		}
		if err != nil {
			return total, err
		}
	}
}

// TestOverrun: a volume takes data up to its size and no more, however it is written. It may take
// less, by the documented tolerance.
func TestOverrun(t *testing.T) {
	const size, short = 64 * mib, 1 * mib
	eachLimit(t, func(t *testing.T, mode btrfs.QuotaMode) {
		n := newNode(t, mode)
		e := n.start(t)
		ctx := t.Context()
		for name, write := range writers {
			must(t, second(e.Prepare(ctx, sized(name, size), meta.Ref{})))
			mount, err := e.Mounts(ctx, name)
			must(t, err)
			total, err := overrun(mount.Source, write)
			wants(t, err, unix.EDQUOT)
			n.Pool("default").PeriodicCommit()
			usage, err := e.Usage(ctx, meta.Volume(name))
			must(t, err)
			if total > size || size-total > short || usage.Used > size {
				t.Errorf("%s: contains %d bytes of data, counted %d, of %d", name, total, usage.Used, size)
			}
			// At the limit, files can be removed, but not always truncated.
			must(t, os.Remove(filepath.Join(mount.Source, "file-0")))
			n.Pool("default").PeriodicCommit()
			f, err := os.Create(filepath.Join(mount.Source, "again"))
			must(t, err)
			_, err = f.Write(make([]byte, mib))
			must(t, errors.Join(err, f.Sync(), f.Close()))
			_, err = overrun(mount.Source, write)
			wants(t, err, unix.EDQUOT)
			must(t, e.Remove(ctx, meta.Volume(name)))
		}
	})
}

// TestLimitsSurvive: limits survive a restart of the driver, a later restart of the machine
// without driver, and quota that was turned off meanwhile.
func TestLimitsSurvive(t *testing.T) {
	eachLimit(t, func(t *testing.T, mode btrfs.QuotaMode) {
		n := newNode(t, mode)
		index := filepath.Join(t.TempDir(), "index.db")
		e := open(t, n.host, index)
		ctx := t.Context()
		limited := func() {
			t.Helper()
			for _, volume := range []string{"pvc", "restored"} {
				wants(t, n.fill(volume, 6*mib), unix.EDQUOT)
				must(t, os.Remove(filepath.Join(n.path("default"), "active", volume, "fs/data")))
				eventually(t, func() bool { // the space is free after a commit
					n.Pool("default").PeriodicCommit()
					return n.fill(volume, mib) == nil
				})
			}
		}
		must(t, second(e.Prepare(ctx, sized("pvc", 4*mib), meta.Ref{})))
		must(t, n.fill("pvc", mib)) // the snapshot contains the data, and simple quota charges it to pvc
		must(t, second(e.Commit(ctx, snapshot.Spec{Name: "snap"}, "pvc")))
		must(t, second(e.Prepare(ctx, snapshot.Spec{Name: "restored"}, meta.Snapshot("snap"))))
		must(t, os.Remove(filepath.Join(n.path("default"), "active/restored/fs/data")))
		limited()
		must(t, e.Close())
		limited()
		btrfstest.Remount(t, n.state)
		limited()
		e = open(t, n.host, index)
		limited()
		findings, err := e.Plan(ctx)
		if must(t, err); len(findings) > 0 {
			t.Errorf("found %v", findings)
		}
		must(t, e.Close())
		must(t, btrfs.DisableQuota(n.state))
		must(t, n.fill("pvc", 6*mib))
		must(t, os.Remove(filepath.Join(n.path("default"), "active/pvc/fs/data")))
		open(t, n.host, index)
		if mode == btrfs.QuotaFull {
			must(t, btrfs.WaitRescan(n.state))
		}
		limited()
	})
}

// TestInconsistentQuotaIsRescanned: an inconsistent quota is rescanned once, and limits work
// again, whatever the cause.
func TestInconsistentQuotaIsRescanned(t *testing.T) {
	t.Parallel()
	for name, spoil := range map[string]func(t *testing.T, n *node, e *snapshot.Engine){
		"group": func(t *testing.T, n *node, e *snapshot.Engine) {
			btrfstest.GroupIsVoid.Need(t)
			entry, err := e.Stat(t.Context(), meta.Volume("pvc"))
			must(t, err)
			group := btrfs.NewQgroupID(1, 77)
			must(t, btrfs.CreateQgroup(n.state, group))
			must(t, second(btrfs.AssignQgroup(n.state, btrfs.NewQgroupID(0, entry.SubvolumeID), group)))
			mount, err := e.Mounts(t.Context(), "pvc")
			must(t, err)
			must(t, btrfs.Snapshot(filepath.Join(n.state, "foreign"), mount.Source, true))
		},
		// When the kernel drops a snapshot, it does not count a shared subtree from some height
		// on. That is three levels by default, which needs many files; here any.
		"large snapshot removed": func(t *testing.T, n *node, e *snapshot.Engine) {
			info, err := btrfs.Filesystem(n.state)
			must(t, err)
			must(t, os.WriteFile(filepath.Join("/sys/fs/btrfs", info.FSID.String(), "qgroups/drop_subtree_threshold"), []byte("0"), 0))
			mount, err := e.Mounts(t.Context(), "large")
			must(t, err)
			for i := range 2000 {
				must(t, os.WriteFile(fmt.Sprintf("%s/%d", mount.Source, i), make([]byte, 1000), 0o600))
			}
			must(t, second(e.Commit(t.Context(), snapshot.Spec{Name: "snap"}, "large")))
			must(t, e.Remove(t.Context(), meta.Snapshot("snap")))
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := newNode(t, btrfs.QuotaFull)
			e := n.start(t, often)
			ctx := t.Context()
			must(t, second(e.Prepare(ctx, sized("pvc", 8*mib), meta.Ref{})))
			must(t, n.fill("pvc", 4*mib))
			must(t, second(e.Prepare(ctx, sized("large", 64*mib), meta.Ref{})))
			must(t, btrfs.WaitRescan(n.state))
			reported := make(chan struct{}, 1000)
			e.OnChange(func(ref meta.Ref) {
				if ref.IsZero() {
					reported <- struct{}{}
				}
			})
			spoil(t, n, e)
			eventually(t, func() bool {
				n.settle(t)
				return e.Pools(ctx)[0].Quota.Inconsistent
			})
			must(t, btrfstest.Settle(ctx, n.state, btrfs.DyingIDs)) // a drop after the rescan would need another rescan
			must(t, n.fill("pvc", 8*mib))                           // limits have no effect
			go e.Run(ctx)
			eventually(t, func() bool { return !e.Pools(ctx)[0].Quota.Inconsistent })
			if rescans := e.Pools(ctx)[0].Rescans; rescans != 1 || len(reported) == 0 {
				t.Errorf("%d rescans reported, %d times", rescans, len(reported))
			}
			wants(t, n.fill("pvc", mib), unix.EDQUOT)
			must(t, os.Remove(filepath.Join(n.path("default"), "active/pvc/fs/data")))
			eventually(t, func() bool { // the space is free after the kernel has dropped the file and committed
				n.Pool("default").PeriodicCommit()
				return n.fill("pvc", 4*mib) == nil
			})
			wants(t, n.fill("pvc", 8*mib), unix.EDQUOT)
		})
	}
}

// TestVanished: somebody else removes the subvolume of a volume. Its qgroups are removed, its
// record stays.
func TestVanished(t *testing.T) {
	eachLimit(t, func(t *testing.T, mode btrfs.QuotaMode) {
		n := newNode(t, mode)
		e := n.start(t, often)
		ctx := t.Context()
		lost, err := e.Prepare(ctx, sized("lost", mib), meta.Ref{})
		must(t, err)
		must(t, second(e.Prepare(ctx, sized("pvc", mib), meta.Ref{})))
		planned := btrfs.NewQgroupID(1, 100000) // somebody's, for a later subvolume
		must(t, btrfs.CreateQgroup(n.state, planned))
		must(t, btrfs.LimitQgroup(n.state, planned, mib))
		unlimited := btrfs.NewQgroupID(1, 100001)
		must(t, btrfs.CreateQgroup(n.state, unlimited))
		must(t, n.Pool("default").Vanish(active("lost")))
		running, stop := context.WithCancel(ctx)
		defer stop()
		go e.Run(running)
		eventually(t, func() bool {
			n.settle(t)
			left := false
			must(t, btrfs.WalkQgroups(n.state, func(q btrfs.Qgroup) error {
				left = left || q.ID.Subvolume() == lost.SubvolumeID
				return nil
			}))
			return !left
		})
		wants(t, second(e.Stat(ctx, meta.Volume("lost"))), snapshot.ErrLost)
		usage, err := e.Usage(ctx, meta.Volume("pvc"))
		if must(t, err); usage.Limit != mib {
			t.Errorf("another volume has %+v", usage)
		}
		must(t, second(btrfs.QgroupOf(n.state, planned)))
		must(t, second(btrfs.QgroupOf(n.state, unlimited)))
		stop()
		must(t, e.Close())
		n.start(t, often) // the start looks at qgroups from before
		must(t, second(btrfs.QgroupOf(n.state, unlimited)))
	})
}

// TestStaleQuota: the next start removes all kinds of qgroups that a crash leaves behind a
// removal, also 0/<id> that is still a member of the limit 1/<id>.
func TestStaleQuota(t *testing.T) {
	eachLimit(t, func(t *testing.T, mode btrfs.QuotaMode) {
		n := newNode(t, mode)
		index := filepath.Join(t.TempDir(), "index.db")
		e := open(t, n.host, index)
		ctx := t.Context()
		dead := map[uint64]string{}
		groups := func() (left []string) {
			must(t, btrfs.WalkQgroups(n.state, func(q btrfs.Qgroup) error {
				if name := dead[q.ID.Subvolume()]; name != "" {
					left = append(left, fmt.Sprintf("%d %s", q.ID.Level(), name))
				}
				return nil
			}))
			slices.Sort(left)
			return left
		}
		for _, name := range []string{"both", "limit"} {
			entry, err := e.Prepare(ctx, sized(name, mib), meta.Ref{})
			must(t, err)
			dead[entry.SubvolumeID] = name
		}
		foreign := filepath.Join(n.state, "foreign") // without limit
		must(t, btrfs.Create(foreign))
		info, err := btrfs.Info(foreign)
		must(t, err)
		dead[info.ID] = "own"
		must(t, second(e.Prepare(ctx, sized("pvc", mib), meta.Ref{})))

		// While a snapshot contains data that the subvolumes wrote, the kernel keeps their
		// qgroups.
		must(t, n.fill("both", mib/4))
		must(t, os.WriteFile(foreign+"/data", make([]byte, mib/4), 0o600))
		must(t, second(e.Commit(ctx, snapshot.Spec{Name: "snap"}, "both")))
		must(t, btrfs.Snapshot(foreign+"-snap", foreign, true))
		must(t, e.Remove(ctx, meta.Volume("both")))
		must(t, e.Remove(ctx, meta.Volume("limit")))
		must(t, btrfs.Destroy(foreign))
		eventually(t, func() bool {
			n.settle(t)
			gone := true
			for id := range dead {
				there, err := btrfs.TreeExists(n.state, id)
				gone = gone && err == nil && !there
			}
			return gone
		})
		must(t, e.Remove(ctx, meta.Snapshot("snap")))
		must(t, btrfs.Destroy(foreign+"-snap"))
		must(t, e.Close()) // the engine forgets the qgroups
		n.settle(t)
		eventually(t, func() bool {
			n.settle(t)
			charged := false
			must(t, btrfs.WalkQgroups(n.state, func(q btrfs.Qgroup) error {
				charged = charged || dead[q.ID.Subvolume()] != "" && q.Referenced > 0
				return nil
			}))
			return !charged
		})
		want := []string{"0 both", "0 own", "1 both", "1 limit"}
		switch {
		case mode == btrfs.QuotaFull && btrfstest.QgroupGoes.Holds():
			want = nil // the kernel's cleaner removes them
		case mode == btrfs.QuotaFull:
			want = []string{"0 both", "0 limit", "0 own"}
		}
		eventually(t, func() bool {
			n.settle(t)
			return slices.Equal(groups(), want)
		})
		e = open(t, n.host, index)
		if left := groups(); len(left) > 0 {
			t.Errorf("the start left %q", left)
		}
		usage, err := e.Usage(ctx, meta.Volume("pvc"))
		if must(t, err); usage.Limit != mib {
			t.Errorf("another volume has %+v", usage)
		}
		must(t, e.Close())
	})
}

// TestKilledBeforeTheMark: a kill leaves the group of a volume without the driver's mark. The
// group counts as the volume's limit, and is removed with the volume.
func TestKilledBeforeTheMark(t *testing.T) {
	t.Parallel()
	n := newNode(t, btrfs.QuotaSimple)
	index := filepath.Join(t.TempDir(), "index.db")
	e := open(t, n.host, index)
	ctx := t.Context()
	must(t, second(e.Prepare(ctx, sized("base", mib), meta.Ref{})))
	must(t, n.Pool("default").Nest(active("base"), "nested"))
	must(t, e.Close())
	killed := func(name string, source meta.Ref, subvolume func(path string) error) (id uint64) {
		path := filepath.Join(n.path("default"), "active", name, "fs")
		record, err := meta.Record{ID: name, Name: name, Kind: meta.Active, State: meta.Creating, Size: mib, Source: source}.Encode()
		must(t, err)
		must(t, n.Pool("default").PlantSlot(active(name), record))
		must(t, subvolume(path))
		info, err := btrfs.Info(path)
		must(t, err)
		must(t, btrfs.CreateQgroup(n.state, btrfs.NewQgroupID(1, info.ID)))
		return info.ID
	}
	undone := killed("copy", meta.Volume("base"), func(path string) error {
		return btrfs.Snapshot(path, filepath.Join(n.path("default"), "active/base/fs"), false)
	})
	completed := killed("completed", meta.Ref{}, btrfs.Create)
	e = open(t, n.host, index, often)
	deleted := killed("deleted", meta.Ref{}, btrfs.Create)
	must(t, e.Remove(ctx, meta.Volume("deleted")))
	usage, err := e.Usage(ctx, meta.Volume("completed"))
	if must(t, err); usage.Limit != mib {
		t.Errorf("completed with %+v", usage)
	}
	must(t, e.Remove(ctx, meta.Volume("completed")))
	wants(t, second(e.Stat(ctx, meta.Volume("copy"))), snapshot.ErrNotFound)
	running, stop := context.WithCancel(ctx)
	defer stop()
	go e.Run(running)
	eventually(t, func() bool {
		n.settle(t)
		left := 0
		must(t, btrfs.WalkQgroups(n.state, func(q btrfs.Qgroup) error {
			if slices.Contains([]uint64{undone, completed, deleted}, q.ID.Subvolume()) {
				left++
			}
			return nil
		}))
		return left == 0
	})
}

// TestPinnedQuota: qgroups of a removed volume that a snapshot pins are remembered across a
// restart. After the snapshot is gone too, they are no finding.
func TestPinnedQuota(t *testing.T) {
	eachLimit(t, func(t *testing.T, mode btrfs.QuotaMode) {
		n := newNode(t, mode)
		index := filepath.Join(t.TempDir(), "index.db")
		e := open(t, n.host, index)
		ctx := t.Context()
		entry, err := e.Prepare(ctx, sized("pvc", mib), meta.Ref{})
		must(t, err)
		must(t, n.fill("pvc", mib/4))
		must(t, second(e.Commit(ctx, snapshot.Spec{Name: "snap"}, "pvc")))
		must(t, e.Remove(ctx, meta.Volume("pvc")))
		gone := func() bool {
			n.settle(t)
			there, err := btrfs.TreeExists(n.state, entry.SubvolumeID)
			must(t, err)
			return !there
		}
		eventually(t, gone)
		must(t, e.Close())
		e = open(t, n.host, index)
		must(t, e.Remove(ctx, meta.Snapshot("snap")))
		eventually(t, func() bool {
			n.settle(t)
			group, err := btrfs.QgroupOf(n.state, btrfs.NewQgroupID(0, entry.SubvolumeID))
			return errors.Is(err, fs.ErrNotExist) || err == nil && group.Referenced == 0
		})
		findings, err := e.Plan(ctx)
		if must(t, err); len(findings) > 0 {
			t.Errorf("found %v", findings)
		}
		must(t, e.Close())
	})
}

// TestNestedIsBounded: a nested subvolume gets the rest of its volume's size, is reported, and is
// removed with the volume.
func TestNestedIsBounded(t *testing.T) {
	eachLimit(t, func(t *testing.T, mode btrfs.QuotaMode) {
		n := newNode(t, mode)
		e := n.start(t)
		ctx := t.Context()
		const size = 64 * mib
		pvc, err := e.Prepare(ctx, sized("pvc", size), meta.Ref{})
		must(t, err)
		must(t, second(e.Prepare(ctx, sized("other", mib), meta.Ref{})))
		must(t, n.fill("pvc", 16*mib))
		mount, err := e.Mounts(ctx, "pvc")
		must(t, err)
		nested := filepath.Join(mount.Source, "dir", "nested")
		must(t, os.Mkdir(filepath.Dir(nested), 0o755))
		must(t, btrfs.Create(nested))
		must(t, btrfs.Create(nested+"/deeper"))
		must(t, btrfs.Create(filepath.Join(n.state, "foreign")))
		must(t, btrfs.Create(filepath.Join(n.state, "foreign/nested")))
		must(t, os.WriteFile(nested+"/deeper/early", make([]byte, 8*mib), 0o600))
		n.Pool("default").PeriodicCommit()
		go e.Run(ctx)
		eventually(t, func() bool { return e.Pools(ctx)[0].Nesting == 1 })
		if paths, err := e.Nested(ctx, "pvc"); err != nil || len(paths) != 1 || paths[0] != "dir/nested" {
			t.Errorf("nested %q, %v", paths, err)
		}
		wants(t, second(e.Commit(ctx, snapshot.Spec{Name: "snap"}, "pvc")), snapshot.ErrNested)
		total, err := overrun(nested, writers["1m"])
		wants(t, err, unix.EDQUOT)
		if total > size-24*mib || total < size-26*mib {
			t.Errorf("took %d, the volume had %d left", total, size-24*mib)
		}
		wants(t, second(overrun(nested+"/deeper", writers["4k"])), unix.EDQUOT)
		must(t, os.Remove(nested+"/deeper/early"))
		foreign, err := btrfs.Info(filepath.Join(n.state, "foreign/nested"))
		must(t, err)
		if q, err := btrfs.QgroupOf(n.state, btrfs.NewQgroupID(0, foreign.ID)); err != nil || q.MaxReferenced != btrfs.NoLimit {
			t.Errorf("of somebody else's: %+v, %v", q, err)
		}
		_ = fillMetadataTo(nested) // to the last node, so that nested subvolumes cannot be destroyed
		must(t, e.Remove(ctx, meta.Volume("pvc")))
		eventually(t, func() bool {
			n.settle(t)
			there, err := btrfs.TreeExists(n.state, pvc.SubvolumeID)
			return err == nil && !there
		})
	})
}

// fillMetadataTo fills a subvolume with metadata up to its limit.
func fillMetadataTo(dir string) (err error) {
	for i := 0; err == nil; i++ {
		err = os.Mkdir(fmt.Sprintf("%s/metadata-%d", dir, i), 0o700)
	}
	return err
}

// TestAtTheLimit: a volume full of data and metadata can be snapshotted, cloned and expanded,
// also after a pod changed the properties of its root.
func TestAtTheLimit(t *testing.T) {
	eachLimit(t, func(t *testing.T, mode btrfs.QuotaMode) {
		n := newNode(t, mode)
		e := n.start(t)
		ctx := t.Context()
		spec := sized("pvc", 16*mib)
		spec.Parameters.Compression = "zstd"
		must(t, second(e.Prepare(ctx, spec, meta.Ref{})))
		mount, err := e.Mounts(ctx, "pvc")
		must(t, err)
		must(t, btrfs.SetCompression(mount.Source, "lzo")) // as a pod may
		random := make([]byte, mib)
		_, _ = rand.Read(random)
		_, err = overrun(mount.Source, func(f *os.File, offset int64) (int64, error) {
			n, err := f.WriteAt(random, offset)
			return int64(n), err
		})
		wants(t, err, unix.EDQUOT)
		wants(t, fillMetadataTo(mount.Source), unix.EDQUOT)

		must(t, second(e.Commit(ctx, snapshot.Spec{Name: "snap"}, "pvc")))
		for _, copied := range []string{"clone", "restored"} {
			source := map[string]meta.Ref{"clone": meta.Volume("pvc"), "restored": meta.Snapshot("snap")}[copied]
			must(t, second(e.Prepare(ctx, snapshot.Spec{Name: copied, Parameters: spec.Parameters}, source)))
		}
		must(t, second(e.Resize(ctx, "pvc", snapshot.Range{Required: 32 * mib})))
		n.Pool("default").PeriodicCommit()
		must(t, n.fill("pvc", 8*mib))
		usage, err := e.Usage(ctx, meta.Volume("pvc"))
		if must(t, err); usage.Limit != 32*mib {
			t.Errorf("has %+v", usage)
		}
		for _, id := range []string{"clone", "restored", "pvc"} {
			must(t, e.Remove(ctx, meta.Volume(id)))
		}
	})
}

// TestQuotaOffAndOn: quota that is turned off and on between two looks leaves volumes without
// limits, and no other trace. The limits are set again.
func TestQuotaOffAndOn(t *testing.T) {
	eachLimit(t, func(t *testing.T, mode btrfs.QuotaMode) {
		n := newNode(t, mode)
		e := n.start(t, often)
		ctx := t.Context()
		must(t, second(e.Prepare(ctx, sized("pvc", 4*mib), meta.Ref{})))
		must(t, errors.Join(btrfs.DisableQuota(n.state), btrfs.EnableQuota(n.state, mode)))
		go e.Run(ctx)
		eventually(t, func() bool {
			usage, err := e.Usage(ctx, meta.Volume("pvc"))
			return err == nil && usage.Limit == 4*mib
		})
		if len(e.PoolIDs()) != 1 {
			t.Error("the pool was taken out of use for it")
		}
	})
}

// exchangeQuota changes the quota mode of a filesystem. The driver may turn its own mode on in
// between.
func exchangeQuota(t *testing.T, path string, mode btrfs.QuotaMode) {
	t.Helper()
	var err error
	for range 10 {
		if err = errors.Join(btrfs.DisableQuota(path), btrfs.EnableQuota(path, mode)); err == nil {
			return
		}
	}
	t.Fatal(err)
}

// TestAutoKeepsMode: with auto, quota that was turned off is turned on in its last mode. The
// driver follows a changed mode, and sets no limit on groups of the other mode.
func TestAutoKeepsMode(t *testing.T) {
	t.Parallel()
	btrfstest.SimpleQuota.Need(t)
	ctx := t.Context()
	n := newNode(t, pool.QuotaAuto)
	must(t, btrfs.EnableQuota(n.state, btrfs.QuotaSimple))
	e := n.start(t, often)
	volume, err := e.Prepare(ctx, sized("pvc", 4*mib), meta.Ref{})
	must(t, err)
	has := func(want btrfs.QuotaMode, limit int64) {
		t.Helper()
		eventually(t, func() bool {
			status, failed := btrfs.Quota(n.state)
			usage, err := e.Usage(ctx, meta.Volume("pvc"))
			return errors.Join(failed, err) == nil && status.Mode == want && usage.Limit == limit
		})
	}
	must(t, second(e.Prepare(ctx, sized("gone", mib), meta.Ref{})))
	exchangeQuota(t, n.state, btrfs.QuotaFull)
	// The driver has not noticed yet.
	must(t, e.Remove(ctx, meta.Volume("gone")))
	wants(t, second(e.Resize(ctx, "pvc", snapshot.Range{Required: 8 * mib})), pool.ErrAway)
	wants(t, second(e.Prepare(ctx, sized("new", mib), meta.Ref{})), pool.ErrAway)
	if _, err := btrfs.QgroupOf(n.state, btrfs.NewQgroupID(1, volume.SubvolumeID)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a group of simple quota under full: %v", err)
	}
	go e.Run(ctx)
	has(btrfs.QuotaFull, 4*mib)
	exchangeQuota(t, n.state, btrfs.QuotaSimple)
	has(btrfs.QuotaSimple, 4*mib)
	must(t, btrfs.DisableQuota(n.state))
	has(btrfs.QuotaSimple, 4*mib)
	must(t, second(e.Resize(ctx, "pvc", snapshot.Range{Required: 8 * mib})))
	has(btrfs.QuotaSimple, 8*mib)
}

// openDefault opens the default pool without an engine.
func (n *node) openDefault(t *testing.T) pool.Directory {
	t.Helper()
	filesystem, err := n.host.Open(t.Context(), pool.Default)
	must(t, err)
	must(t, filesystem.Prepare(t.Context()))
	opened, err := filesystem.Open()
	must(t, err)
	t.Cleanup(opened.Close)
	return opened
}

// TestNoLimitInAnotherMode: before the driver notices that the quota mode was changed, it sets no
// limit on a group of the wrong mode, where the limit would stay.
func TestNoLimitInAnotherMode(t *testing.T) {
	t.Parallel()
	btrfstest.SimpleQuota.Need(t)
	for mode, other := range map[btrfs.QuotaMode]btrfs.QuotaMode{btrfs.QuotaFull: btrfs.QuotaSimple, btrfs.QuotaSimple: btrfs.QuotaFull} {
		t.Run(string(mode), func(t *testing.T) {
			t.Parallel()
			n := newNode(t, mode)
			opened, at := n.openDefault(t), active("pvc")
			must(t, errors.Join(opened.Mkdir(at), second(opened.Create(at))))
			path := filepath.Join(n.path("default"), "active", "pvc", "fs")
			must(t, btrfs.Create(filepath.Join(path, "nested")))
			info, err := opened.Info(at)
			must(t, err)
			nested, err := btrfs.Info(filepath.Join(path, "nested"))
			must(t, err)
			exchangeQuota(t, n.state, other)
			wants(t, opened.SetLimit(info.ID, mib), pool.ErrAway)
			wants(t, second(opened.Bound(info.ID, mib, []uint64{nested.ID})), pool.ErrAway)
			must(t, btrfs.WalkQgroups(n.state, func(group btrfs.Qgroup) error {
				if group.MaxReferenced != btrfs.NoLimit || group.ID.Level() > 0 {
					t.Errorf("qgroup %s has the limit %d", group.ID, group.MaxReferenced)
				}
				return nil
			}))
		})
	}
}

// TestSweepKeepsQuotaConsistent: the group of a dropped tree keeps its counters until the next
// commit. Removing it earlier makes the quota inconsistent, and limits have no effect.
func TestSweepKeepsQuotaConsistent(t *testing.T) {
	t.Parallel()
	// Without sync the kernel commits by itself, here every second.
	n := newNode(t, btrfs.QuotaFull, btrfstest.MountOptions("commit=1"))
	pool := n.openDefault(t)
	data := make([]byte, 160<<10)
	for i := range 40 {
		path := filepath.Join(n.state, fmt.Sprint("subvolume-", i))
		must(t, btrfs.Create(path))
		info, err := btrfs.Info(path)
		must(t, err)
		must(t, os.WriteFile(filepath.Join(path, "data"), data, 0o600))
		must(t, btrfstest.Sync(n.state))
		must(t, btrfs.Destroy(path))
		must(t, btrfstest.Sync(n.state)) // makes the cleaner drop it
		// ForgetQuota is called at any moment, also between the drop and its commit.
		for end := time.Now().Add(btrfstest.Patience); pool.ForgetQuota(info.ID) != nil; {
			if time.Now().After(end) {
				t.Fatalf("the accounting of subvolume %d stays", info.ID)
			}
			if i%2 == 0 {
				_ = btrfstest.Sync(n.state)
			}
		}
		if status, err := btrfs.Quota(n.state); err != nil || status.Inconsistent {
			t.Fatalf("after %d: %+v, %v", i+1, status, err)
		}
	}
}

// TestQuotaTurnedOff: quota that is turned off or changed while the driver runs is reported and
// turned on again, and limits work.
func TestQuotaTurnedOff(t *testing.T) {
	eachLimit(t, func(t *testing.T, mode btrfs.QuotaMode) {
		n := newNode(t, mode)
		e := n.start(t)
		ctx := t.Context()
		must(t, second(e.Prepare(ctx, sized("pvc", 4*mib), meta.Ref{})))
		reported := make(chan struct{}, 1000)
		e.OnChange(func(ref meta.Ref) {
			if ref.IsZero() {
				reported <- struct{}{}
			}
		})
		go e.Run(ctx)
		must(t, btrfs.DisableQuota(n.state))
		eventually(t, func() bool {
			usage, err := e.Usage(ctx, meta.Volume("pvc"))
			return err == nil && usage.Limit == 4*mib
		})
		if len(reported) == 0 {
			t.Error("it was not reported")
		}
		if mode == btrfs.QuotaFull {
			must(t, btrfs.WaitRescan(n.state))
		}
		wants(t, n.fill("pvc", 6*mib), unix.EDQUOT)

		if !btrfstest.SimpleQuota.Holds() {
			return
		}
		// A pool whose limits have another meaning is not served.
		other := map[btrfs.QuotaMode]btrfs.QuotaMode{btrfs.QuotaFull: btrfs.QuotaSimple, btrfs.QuotaSimple: btrfs.QuotaFull}[mode]
		exchangeQuota(t, n.state, other)
		eventually(t, func() bool { return len(e.PoolIDs()) == 0 && len(e.Pools(ctx)) == 1 })
	})
}
