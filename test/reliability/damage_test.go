package reliability

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
	"github.com/btrfs-csi/btrfs-csi/test/testkit"
)

// TestChecksFindDamage does by hand what a driver must never do. The checks must find it.
func TestChecksFindDamage(t *testing.T) {
	w, ctx := newWorker(t, btrfs.QuotaFull), t.Context()
	check := func() error {
		_, err := w.node.check(ctx, w.expect(w.instant()))
		return errors.Join(err, w.node.checkMounts(w.model))
	}
	for _, test := range []struct {
		name   string
		damage func(o *object, subvolume string) error
		want   string
	}{
		{"nothing", func(*object, string) error { return nil }, ""},
		{"a file is lost", func(_ *object, subvolume string) error {
			return os.Remove(filepath.Join(subvolume, "known"))
		}, "contains []"},
		{"a file is another", func(_ *object, subvolume string) error {
			return os.WriteFile(filepath.Join(subvolume, "known"), []byte("other"), 0o600)
		}, "contains [known:5/"},
		{"a volume is lost", func(_ *object, subvolume string) error { return btrfs.Destroy(subvolume) }, "Lost"},
		{"a volume and its slot are lost", func(_ *object, subvolume string) error {
			return errors.Join(btrfs.Destroy(subvolume), os.Remove(filepath.Dir(subvolume)))
		}, "is lost"},
		{"a limit is lost", func(_ *object, subvolume string) error {
			info, err := btrfs.Info(subvolume)
			return errors.Join(err, btrfs.LimitQgroup(w.node.Pool(), btrfs.NewQgroupID(0, info.ID), btrfs.NoLimit))
		}, "WrongLimit"},
		{"a class is lost from a record", func(_ *object, subvolume string) error {
			return changeRecord(filepath.Dir(subvolume), func(r *meta.Record) { r.Parameters.Compression += "lzo" })
		}, "has the record"},
		{"a class is lost on disk", func(o *object, subvolume string) error {
			if o.properties().NoDataCow {
				return btrfs.SetNoDataCow(subvolume, false)
			}
			return btrfs.SetCompression(subvolume, "lzo")
		}, "has the properties"},
		{"an expansion is lost", func(o *object, _ string) error {
			o.sizes = timeline[int64]{{span: o.created, value: 1 << 40}}
			return nil
		}, "bytes, wanted is one of [1099511627776]"},
		{"a removed volume is back", func(o *object, _ string) error {
			w.ask(o, &o.removed, "remove")
			w.gone(o)
			return nil
		}, "should not be there"},
		{"a mount is lost", func(o *object, _ string) error { return btrfstest.Unmount(w.node.target(o)) }, "is not mounted"},
		{"a mount is there twice", func(o *object, subvolume string) error {
			return unix.Mount(subvolume, w.node.target(o), "", unix.MS_BIND, "")
		}, " and /active/"},
		{"a mount for the kubelet is a stray", func(o *object, subvolume string) error {
			stray := filepath.Join(w.node.Kubelet, "stray")
			return errors.Join(os.Mkdir(stray, 0o700), unix.Mount(subvolume, stray, "", unix.MS_BIND, ""))
		}, "stray mount"},
		{"a stray mount", func(_ *object, subvolume string) error { // not in the model
			stray := filepath.Join(w.node.dir, "stray")
			return errors.Join(os.Mkdir(stray, 0o700), unix.Mount(subvolume, stray, "", unix.MS_BIND, ""))
		}, "stray mount of"},
		{"a second loop device on the pool", func(*object, string) error { return attachLoop(t, w.node.image) },
			fmt.Sprintf("%q %q", w.node.image, w.node.image)},
		{"a stray loop device", func(*object, string) error {
			file := filepath.Join(w.node.State, "stray.img")
			return errors.Join(testkit.Sparse(file, mib), attachLoop(t, file))
		}, "stray.img"},
		{"a subvolume is a stray", func(*object, string) error {
			return btrfs.Create(filepath.Join(w.node.Pool(), "stray"))
		}, "are in no slot"},
		{"the log has a race", func(*object, string) error {
			return appendTo(w.node.Log, "\nWARNING: DATA RACE\n")
		}, "driver: WARNING: DATA RACE"},
	} {
		t.Run(test.name, func(t *testing.T) {
			o := mountedVolume(ctx, t, w)
			if err := test.damage(o, w.node.subvolume(o)); err != nil {
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
	record, err := recordOf(slot)
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
			if err := w.node.checkQuota(t.Context()); err != nil {
				t.Fatal(err)
			}
			if err := btrfs.CreateQgroup(w.node.Pool(), btrfs.NewQgroupID(1, 4711)); err != nil {
				t.Fatal(err)
			}
			if err := w.node.staleQuota(); err == nil || !strings.Contains(err.Error(), "1/4711") {
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
				if err := errors.Join(w.unmount(ctx, o), w.remove(ctx, o)); err != nil {
					t.Fatal(err)
				}
			}
			if err := errors.Join(w.node.kill(), w.node.serve(ctx), w.node.settle(ctx)); err != nil {
				t.Fatal(err)
			}
			if _, err := w.node.check(ctx, nil); err != nil {
				t.Error(err)
			}
			if err := w.node.checkQuota(ctx); err != nil {
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
func newWorker(t *testing.T, quota btrfs.QuotaMode) *worker {
	if quota == btrfs.QuotaSimple {
		btrfstest.SimpleQuota.Need(t)
	}
	btrfstest.RequireRoot(t)
	dir := t.TempDir()
	n := newNode(builtDriver(t), filepath.Join(dir, "node"), filepath.Join(dir, "pool.img"), quota)
	g := newGate()
	g.open(1)
	t.Cleanup(func() {
		if err := n.close(); err != nil {
			t.Error(err)
		}
	})
	ctx := t.Context()
	if err := errors.Join(newPool(ctx, n.image), n.open(ctx), n.serve(ctx)); err != nil {
		t.Fatal(err)
	}
	return (&load{model: newModel(), gate: g, node: n, seed: 1, counts: newCounts()}).worker(1)
}

// mountedVolume creates and mounts a volume with one file.
func mountedVolume(ctx context.Context, t *testing.T, w *worker) *object {
	t.Helper()
	if err := w.create(ctx, nil); err != nil {
		t.Fatal(err)
	}
	o := w.living[len(w.living)-1]
	if err := w.mount(ctx, o); err != nil {
		t.Fatal(err)
	}
	known := change{name: "known", data: []byte("known")}
	if err := known.make(w.node.target(o)); err != nil {
		t.Fatal(err)
	}
	o.contents = append(o.contents, &event[content]{span: span{asked: w.here(), answered: w.here()}, value: known.after("")})
	return o
}
