package node_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs"
	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs/btrfstest"
	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
	"github.com/btrfs-csi/btrfs-csi/test/reliability/files"
	"github.com/btrfs-csi/btrfs-csi/test/reliability/load"
	"github.com/btrfs-csi/btrfs-csi/test/reliability/model"
	"github.com/btrfs-csi/btrfs-csi/test/reliability/node"
	"github.com/btrfs-csi/btrfs-csi/test/reliability/node/nodetest"
	"github.com/btrfs-csi/btrfs-csi/test/testkit"
)

const mib = 1 << 20

func TestMain(m *testing.M) {
	os.Exit(btrfstest.Main(m.Run))
}

// TestChecksFindDamage damages a node by hand. The checks must find each damage.
func TestChecksFindDamage(t *testing.T) {
	w, ctx := newWorker(t, btrfs.QuotaFull), t.Context()
	check := func() error {
		_, err := w.Node.Check(ctx, w.Expect(w.Instant()))
		return errors.Join(err, w.Node.CheckMounts(w.Model))
	}
	for _, test := range []struct {
		name   string
		damage func(o *model.Object, subvolume string) error
		want   string
	}{
		{"nothing", func(*model.Object, string) error { return nil }, ""},
		{"a file is lost", func(_ *model.Object, subvolume string) error {
			return os.Remove(filepath.Join(subvolume, "known"))
		}, "contains []"},
		{"a file is another", func(_ *model.Object, subvolume string) error {
			return os.WriteFile(filepath.Join(subvolume, "known"), []byte("other"), 0o600)
		}, "contains [known:5/"},
		{"a volume is lost", func(_ *model.Object, subvolume string) error { return btrfs.Destroy(subvolume) }, "Lost"},
		{"a volume and its slot are lost", func(_ *model.Object, subvolume string) error {
			return errors.Join(btrfs.Destroy(subvolume), os.Remove(filepath.Dir(subvolume)))
		}, "is lost"},
		{"a limit is lost", func(_ *model.Object, subvolume string) error {
			info, err := btrfs.Info(subvolume)
			return errors.Join(err, btrfs.LimitQgroup(w.Node.Pool(), btrfs.NewQgroupID(0, info.ID), btrfs.NoLimit))
		}, "WrongLimit"},
		{"a class is lost from a record", func(_ *model.Object, subvolume string) error {
			return changeRecord(filepath.Dir(subvolume), func(r *meta.Record) { r.Parameters.Compression += "lzo" })
		}, "has the record"},
		{"a class is lost on disk", func(o *model.Object, subvolume string) error {
			if o.Properties().NoDataCow {
				return btrfs.SetNoDataCow(subvolume, false)
			}
			return btrfs.SetCompression(subvolume, "lzo")
		}, "has the properties"},
		{"an expansion is lost", func(o *model.Object, _ string) error {
			o.Sizes = model.Timeline[int64]{{Span: o.Created, Value: 1 << 40}}
			return nil
		}, "bytes, wanted is one of [1099511627776]"},
		{"a removed volume is back", func(o *model.Object, _ string) error {
			w.Ask(o, &o.Removed, "remove")
			w.Gone(o)
			return nil
		}, "should not be there"},
		{"a mount is lost", func(o *model.Object, _ string) error { return btrfstest.Unmount(w.Node.TargetOf(o)) }, "is not mounted"},
		{"a mount is there twice", func(o *model.Object, subvolume string) error {
			return unix.Mount(subvolume, w.Node.TargetOf(o), "", unix.MS_BIND, "")
		}, " and /active/"},
		{"a mount for the kubelet is a stray", func(o *model.Object, subvolume string) error {
			stray := filepath.Join(w.Node.Kubelet, "stray")
			return errors.Join(os.Mkdir(stray, 0o700), unix.Mount(subvolume, stray, "", unix.MS_BIND, ""))
		}, "stray mount"},
		{"a stray mount", func(_ *model.Object, subvolume string) error { // not in the model
			stray := filepath.Join(w.Node.Dir, "stray")
			return errors.Join(os.Mkdir(stray, 0o700), unix.Mount(subvolume, stray, "", unix.MS_BIND, ""))
		}, "stray mount of"},
		{"a second loop device on the pool", func(*model.Object, string) error { return attachLoop(t, w.Node.Image) },
			fmt.Sprintf("%q %q", w.Node.Image, w.Node.Image)},
		{"a stray loop device", func(*model.Object, string) error {
			file := filepath.Join(w.Node.State, "stray.img")
			return errors.Join(testkit.Sparse(file, mib), attachLoop(t, file))
		}, "stray.img"},
		{"a subvolume is a stray", func(*model.Object, string) error {
			return btrfs.Create(filepath.Join(w.Node.Pool(), "stray"))
		}, "are in no slot"},
		{"the log has a race", func(*model.Object, string) error {
			return appendTo(w.Node.Log, "\nWARNING: DATA RACE\n")
		}, "driver: WARNING: DATA RACE"},
	} {
		t.Run(test.name, func(t *testing.T) {
			o := mountedVolume(ctx, t, w)
			if err := test.damage(o, w.Node.SubvolumeOf(o)); err != nil {
				t.Fatal(err)
			}
			err := check()
			switch {
			case test.want == "" && err != nil:
				t.Error(err)
			case test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)):
				t.Errorf("found %v, want %q", err, test.want)
			}
		})
	}
}

func changeRecord(slot string, change func(*meta.Record)) error {
	record, err := node.RecordOf(slot)
	if err != nil {
		return err
	}
	change(&record)
	data, err := record.Encode()
	if err != nil {
		return err
	}
	return unix.Lsetxattr(slot, meta.LedgerXattr, data, 0)
}

// attachLoop sets up a loop device on a file until the test ends.
func attachLoop(t *testing.T, file string) error {
	out, err := exec.Command("losetup", "--find", "--show", file).Output()
	if err == nil {
		t.Cleanup(func() {
			if err := testkit.Run(context.Background(), "losetup", "--detach", strings.TrimSpace(string(out))); err != nil {
				t.Error(err)
			}
		})
	}
	return err
}

func TestStaleQuotaIsFound(t *testing.T) {
	for _, quota := range []btrfs.QuotaMode{btrfs.QuotaFull, btrfs.QuotaSimple} {
		t.Run(string(quota), func(t *testing.T) {
			w := newWorker(t, quota)
			if err := w.Node.CheckQuota(t.Context()); err != nil {
				t.Fatal(err)
			}
			if err := btrfs.CreateQgroup(w.Node.Pool(), btrfs.NewQgroupID(1, 4711)); err != nil {
				t.Fatal(err)
			}
			if err := w.Node.StaleQuota(); err == nil || !strings.Contains(err.Error(), "1/4711") {
				t.Errorf("found %v, want 1/4711", err)
			}
		})
	}
}

// TestQuotaAfterAKill: after a kill, the next driver knows the qgroups of subvolumes that the kernel has not
// dropped yet. So check does not report them, and the driver removes them.
func TestQuotaAfterAKill(t *testing.T) {
	for _, quota := range []btrfs.QuotaMode{btrfs.QuotaFull, btrfs.QuotaSimple} {
		t.Run(string(quota), func(t *testing.T) {
			w, ctx := newWorker(t, quota), t.Context()
			for range 20 {
				o := mountedVolume(ctx, t, w)
				if err := errors.Join(w.Unmount(ctx, o), w.Remove(ctx, o)); err != nil {
					t.Fatal(err)
				}
			}
			if err := errors.Join(w.Node.Kill(), w.Node.Serve(ctx), w.Node.Settle(ctx)); err != nil {
				t.Fatal(err)
			}
			if _, err := w.Node.Check(ctx, nil); err != nil {
				t.Error(err)
			}
			if err := w.Node.CheckQuota(ctx); err != nil {
				t.Error(err)
			}
		})
	}
}

func appendTo(file, text string) error {
	f, err := os.OpenFile(file, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Close())
}

// newWorker returns the only worker of a node with a driver.
func newWorker(t *testing.T, quota btrfs.QuotaMode) *load.Worker {
	if quota == btrfs.QuotaSimple {
		btrfstest.SimpleQuota.Need(t)
	}
	btrfstest.RequireRoot(t)
	dir := t.TempDir()
	n := node.New(nodetest.Driver(t), filepath.Join(dir, "node"), filepath.Join(dir, "pool.img"), quota)
	g := load.NewGate()
	g.Open(1)
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	ctx := t.Context()
	if err := errors.Join(node.NewPool(ctx, n.Image), n.Open(ctx), n.Serve(ctx)); err != nil {
		t.Fatal(err)
	}
	return (&load.Load{Model: model.New(), Gate: g, Node: n, Seed: 1, Counts: load.NewCounts()}).Worker(1)
}

// mountedVolume creates and mounts a volume with one file.
func mountedVolume(ctx context.Context, t *testing.T, w *load.Worker) *model.Object {
	t.Helper()
	if err := w.Create(ctx, nil); err != nil {
		t.Fatal(err)
	}
	o := w.Living[len(w.Living)-1]
	if err := w.Mount(ctx, o); err != nil {
		t.Fatal(err)
	}
	known := files.Change{Name: "known", Data: []byte("known")}
	if err := known.Make(w.Node.TargetOf(o)); err != nil {
		t.Fatal(err)
	}
	o.Contents = append(o.Contents, &model.Event[files.Content]{Span: model.Span{Asked: w.Here(), Answered: w.Here()}, Value: known.After("")})
	return o
}
