package snapshot_test

import (
	"bufio"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs"
	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs/btrfstest"
	"github.com/btrfs-csi/btrfs-csi/pkg/diskfile"
	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
	"github.com/btrfs-csi/btrfs-csi/pkg/pool"
	"github.com/btrfs-csi/btrfs-csi/pkg/pool/pooltest"
	"github.com/btrfs-csi/btrfs-csi/pkg/slot"
	"github.com/btrfs-csi/btrfs-csi/pkg/snapshot"
)

// These tests need a real disk.

// fill writes size bytes of data into a volume, and syncs them.
func (n *node) fill(id string, size int) error {
	f, err := os.OpenFile(filepath.Join(n.path("default"), "active", id, "fs", "data"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	_, err = f.Write([]byte(strings.Repeat("x", size)))
	return errors.Join(err, f.Sync(), f.Close())
}

// TestNeverOnTheWrongFilesystem exchanges the disk of a pool before the engine notices.
func TestNeverOnTheWrongFilesystem(t *testing.T) {
	t.Parallel()
	n := newNode(t, btrfs.QuotaNone)
	n.AddPool(t, "fast")
	e := n.start(t)
	ctx := t.Context()
	spec := snapshot.Spec{Name: "pvc", Pool: "fast", Size: snapshot.Range{Required: mib}}
	must(t, second(e.Prepare(ctx, spec, meta.Ref{})))
	everything := func(why string) {
		t.Helper()
		if err := second(e.Stat(ctx, meta.Volume("pvc"))); err == nil || !strings.Contains(err.Error(), why) {
			t.Errorf("got %v, wanted %q in it", err, why)
		}
		other := spec
		other.Name = "other"
		wants(t, second(e.Prepare(ctx, other, meta.Ref{})), pool.ErrAway)
		wants(t, second(e.Prepare(ctx, spec, meta.Ref{})), pool.ErrAway)
		wants(t, second(e.Commit(ctx, snapshot.Spec{Name: "snap"}, "pvc")), pool.ErrAway)
		wants(t, second(e.Resize(ctx, "pvc", snapshot.Range{Required: 9 * mib})), pool.ErrAway)
		wants(t, e.Remove(ctx, meta.Volume("pvc")), pool.ErrAway)
		wants(t, second(e.Mounts(ctx, "pvc")), pool.ErrAway)
	}
	empty := func() {
		t.Helper()
		names, err := os.ReadDir(n.path("fast"))
		if err != nil || len(names) > 0 {
			t.Errorf("written on another filesystem: %v, %v", names, err)
		}
	}
	n.Detach(t, "fast")
	everything("its filesystem is not mounted there any more")
	empty()
	disk := n.disks["fast"]
	n.disks["fast"] = btrfstest.Mount(t)
	n.Attach(t, "fast")
	everything("another filesystem is mounted there")
	empty()

	must(t, e.Close()) // a new engine notices
	e = n.start(t)
	wants(t, second(e.Prepare(ctx, spec, meta.Ref{})), pool.ErrAway)
	wants(t, e.Remove(ctx, meta.Volume("pvc")), pool.ErrAway)
	spec.Name = "new"
	must(t, second(e.Prepare(ctx, spec, meta.Ref{})))

	n.Detach(t, "fast")
	n.disks["fast"] = disk
	n.Attach(t, "fast")
	must(t, e.Close())
	e = n.start(t)
	must(t, second(e.Stat(ctx, meta.Volume("pvc"))))
	wants(t, second(e.Stat(ctx, meta.Volume("new"))), pool.ErrAway)
}

// TestExchangedDisk exchanges a disk, before the engine notices, for one that gets its device
// number: the kernel gives the number to the next filesystem.
func TestExchangedDisk(t *testing.T) { // not parallel: another test might get the number
	n := newNode(t, btrfs.QuotaNone)
	must(t, os.Mkdir(n.path("fast"), 0o700))
	devices := []string{newDevice(t), newDevice(t)}
	mount := func(device string) (number uint64) {
		t.Helper()
		must(t, unix.Mount(device, n.path("fast"), "btrfs", 0, ""))
		var st unix.Stat_t
		must(t, unix.Lstat(n.path("fast"), &st))
		return st.Dev
	}
	t.Cleanup(func() { _ = unix.Unmount(n.path("fast"), unix.MNT_DETACH) })
	ctx := t.Context()
	spec := snapshot.Spec{Name: "pvc", Pool: "fast", Size: snapshot.Range{Required: mib}}
	var e *snapshot.Engine
	eventually(t, func() bool { // another process may take and keep the number in between
		if e != nil {
			must(t, e.Close())
			n.Detach(t, "fast")
		}
		first := mount(devices[0])
		e = n.start(t)
		must(t, second(e.Prepare(ctx, spec, meta.Ref{})))
		n.Detach(t, "fast")
		return mount(devices[1]) == first
	})
	other := spec
	other.Name = "other"
	wants(t, second(e.Prepare(ctx, other, meta.Ref{})), pool.ErrAway)
	wants(t, second(e.Prepare(ctx, spec, meta.Ref{})), pool.ErrAway)
	wants(t, second(e.Commit(ctx, snapshot.Spec{Name: "snap"}, "pvc")), pool.ErrAway)
	wants(t, second(e.Resize(ctx, "pvc", snapshot.Range{Required: 9 * mib})), pool.ErrAway)
	wants(t, second(e.Mounts(ctx, "pvc")), pool.ErrAway)
	wants(t, e.Remove(ctx, meta.Volume("pvc")), pool.ErrAway)
	names, err := os.ReadDir(n.path("fast"))
	if err != nil || len(names) > 0 {
		t.Errorf("written on the other disk: %v, %v", names, err)
	}
	go e.Run(ctx) // Run notices
	other.Pool = "fast"
	eventually(t, func() bool { return second(e.Prepare(ctx, other, meta.Ref{})) == nil })
	wants(t, second(e.Mounts(ctx, "pvc")), pool.ErrAway)
}

// TestPoolDirectoryGone: a pool whose directory is absent, or another one, is away, also before
// the engine notices. Its volumes are not absent.
func TestPoolDirectoryGone(t *testing.T) {
	t.Parallel()
	n := newNode(t, btrfs.QuotaNone)
	n.AddPool(t, "fast")
	e := n.start(t)
	ctx := t.Context()
	must(t, second(e.Prepare(ctx, sized("pvc", mib), meta.Ref{})))
	must(t, second(e.Prepare(ctx, snapshot.Spec{Name: "pvc-fast", Pool: "fast"}, meta.Ref{})))
	away := func(volume string) {
		t.Helper()
		wants(t, second(e.Stat(ctx, meta.Volume(volume))), pool.ErrAway)
		wants(t, second(e.Mounts(ctx, volume)), pool.ErrAway)
		wants(t, e.Remove(ctx, meta.Volume(volume)), pool.ErrAway)
		wants(t, second(e.Prepare(ctx, snapshot.Spec{Name: volume}, meta.Ref{})), pool.ErrAway)
	}
	n.Detach(t, "fast")
	must(t, os.Remove(n.path("fast")))
	away("pvc-fast")
	must(t, second(e.Stat(ctx, meta.Volume("pvc"))))

	must(t, os.Rename(n.path("default"), n.path("default")+".old"))
	away("pvc")
	must(t, os.Mkdir(n.path("default"), 0o700))
	away("pvc")
	must(t, os.Remove(n.path("default")))
	must(t, os.Rename(n.path("default")+".old", n.path("default")))
	must(t, e.Remove(ctx, meta.Volume("pvc")))
}

// TestStrangeStateDirectory: the mount table escapes some characters of names.
func TestStrangeStateDirectory(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"with blank", "a\tb", "a\nb", `a\b`, `a\040b`, "a\vb", "ü#"} {
		n := &node{state: filepath.Join(t.TempDir(), name), mode: btrfs.QuotaNone, disks: map[string]string{}}
		n.AddPool(t, "fast")
		var err error
		n.host, err = pool.NewHost(n.state, n.mode)
		must(t, err)
		e := open(t, n.host, filepath.Join(n.state, "index.db"))
		if err := second(e.Prepare(t.Context(), snapshot.Spec{Name: "pvc", Pool: "fast"}, meta.Ref{})); err != nil {
			t.Errorf("%q: %v", name, err)
		}
	}
}

// newDevice returns a device with an empty btrfs that is not mounted.
func newDevice(t *testing.T) string {
	t.Helper()
	device := btrfstest.Loop(t, 256*mib)
	if out, err := exec.Command("mkfs.btrfs", "-q", "-f", "-K", device).CombinedOutput(); err != nil {
		t.Fatalf("mkfs.btrfs: %v: %s", err, out)
	}
	return device
}

// TestPoolsComeAndGo: a running engine notices mounts at once, because the kernel reports them.
func TestPoolsComeAndGo(t *testing.T) {
	t.Parallel()
	n := newNode(t, btrfs.QuotaNone)
	e := n.start(t)
	go e.Run(t.Context())
	for range 3 {
		if n.disks["fast"] == "" {
			n.AddPool(t, "fast")
		} else {
			n.Attach(t, "fast")
		}
		eventually(t, func() bool { return e.PoolIDs()["fast"] != "" })
		n.Detach(t, "fast")
		eventually(t, func() bool { return e.PoolIDs()["fast"] == "" })
	}
}

// TestDisplacedDefault: if the disk of the pool "default" is missing, no other pool takes its
// place, neither on the filesystem below nor under another name.
func TestDisplacedDefault(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	n := &node{state: btrfstest.Mount(t), mode: btrfs.QuotaFull, disks: map[string]string{}}
	for _, name := range []string{"default", "fast"} {
		n.AddPool(t, name)
	}
	var err error
	n.host, err = pool.NewHost(n.state, n.mode)
	must(t, err)
	e := n.start(t)
	id := e.PoolIDs()["default"]
	must(t, second(e.Prepare(ctx, sized("pvc", mib), meta.Ref{})))
	must(t, e.Close())
	n.Detach(t, "default")

	e = n.start(t)
	running, stop := context.WithCancel(ctx)
	go e.Run(running)
	for _, pool := range []string{"", "default"} {
		_, err := e.Prepare(ctx, snapshot.Spec{Name: "new", Pool: pool}, meta.Ref{})
		wants(t, err, snapshot.ErrNoPool)
		wants(t, second(e.Capacity(ctx, pool)), snapshot.ErrNoPool)
		for _, word := range []string{"nothing is mounted", id} {
			if !strings.Contains(fmt.Sprint(err), word) {
				t.Errorf("want %q in %v", word, err)
			}
		}
	}
	must(t, second(e.Prepare(ctx, snapshot.Spec{Name: "elsewhere", Pool: "fast"}, meta.Ref{})))
	if made, err := os.ReadDir(n.path("default")); err != nil || len(made) > 0 {
		t.Errorf("made below: %v, %v", made, err)
	}
	if status, err := btrfs.Quota(n.state); err != nil || status.Enabled {
		t.Errorf("quota below is %+v, %v", status, err)
	}
	n.Attach(t, "default")
	eventually(t, func() bool { return e.PoolIDs()["default"] == id })
	must(t, second(e.Prepare(ctx, snapshot.Spec{Name: "new"}, meta.Ref{})))
	n.Detach(t, "default")
	eventually(t, func() bool { return e.PoolIDs()["default"] == "" })
	must(t, os.Remove(filepath.Join(n.state, "known", id))) // the disk is gone for good
	eventually(t, func() bool { return e.PoolIDs()["default"] != "" })
	stop()
}

// TestReadOnlyWithoutQuota: a read-only filesystem without quota is served, although quota cannot
// be turned on.
func TestReadOnlyWithoutQuota(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	n := newNode(t, btrfs.QuotaNone)
	e := n.start(t)
	must(t, second(e.Prepare(ctx, sized("pvc", mib), meta.Ref{})))
	must(t, e.Close())
	host, err := pool.NewHost(n.state, btrfs.QuotaFull)
	must(t, err)
	n.Pool("default").SetReadOnly(true)
	e = open(t, host, filepath.Join(t.TempDir(), "index.db"))
	wants(t, second(e.Usage(ctx, meta.Volume("pvc"))), pool.ErrNoQuota)
	must(t, second(e.Mounts(ctx, "pvc")))
}

func eventually(t *testing.T, is func() bool) {
	t.Helper()
	btrfstest.Eventually(t, "what is waited for", is)
}

// TestRefusedPools: a directory that is no pool is reported with the reason, and stays as it is.
func TestRefusedPools(t *testing.T) {
	t.Parallel()
	n := newNode(t, btrfs.QuotaNone)
	must(t, os.Mkdir(n.path("plain"), 0o700))
	must(t, os.Mkdir(n.path("Bad_Name"), 0o700))
	must(t, os.WriteFile(n.path("file"), nil, 0o600))
	must(t, os.Symlink(n.path("default"), n.path("link")))
	must(t, os.Mkdir(n.path("tmp"), 0o700))
	must(t, unix.Mount("tmpfs", n.path("tmp"), "tmpfs", 0, ""))
	defer func() { must(t, btrfstest.Unmount(n.path("tmp"))) }()
	e := n.start(t)
	for name, reason := range map[string]string{
		"plain": "nothing is mounted", "Bad_Name": "lower-case", "file": "no directory", "link": "no directory", "tmp": "not on btrfs",
	} {
		_, err := e.Prepare(t.Context(), snapshot.Spec{Name: "pvc", Pool: name}, meta.Ref{})
		wants(t, err, snapshot.ErrNoPool)
		if err != nil && (!strings.Contains(err.Error(), reason) || !strings.Contains(err.Error(), name)) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, name := range []string{"plain", "Bad_Name", "tmp"} {
		names, err := os.ReadDir(n.path(name))
		if err != nil || len(names) > 0 {
			t.Errorf("%s: %v, %v", name, names, err)
		}
	}
	must(t, second(e.Prepare(t.Context(), sized("pvc", mib), meta.Ref{})))
}

// TestUnmountedWhileOpened: a filesystem may be unmounted between the look at the mounts and
// Open. The directory below becomes no pool, and its filesystem gets no quota.
func TestUnmountedWhileOpened(t *testing.T) {
	t.Parallel()
	n := newNode(t, btrfs.QuotaNone)
	host, err := pool.NewHost(n.state, btrfs.QuotaFull)
	must(t, err)
	n.AddPool(t, "fast")
	must(t, second(host.Open(t.Context(), "fast")))
	n.Detach(t, "fast")
	if _, err := host.Open(t.Context(), "fast"); err == nil || !strings.Contains(err.Error(), "nothing is mounted") {
		t.Errorf("got %v", err)
	}
	if left, err := os.ReadDir(n.path("fast")); err != nil || len(left) > 0 {
		t.Errorf("it contains %v, %v", left, err)
	}
	if status, err := btrfs.Quota(n.state); err != nil || status.Mode != btrfs.QuotaNone {
		t.Errorf("quota is %+v, %v", status, err)
	}
}

// TestPoolIdentity damages pool.json. The pool is not used, and nothing in it is changed.
func TestPoolIdentity(t *testing.T) {
	t.Parallel()
	n := newNode(t, btrfs.QuotaNone)
	e := n.start(t)
	must(t, second(e.Prepare(t.Context(), sized("pvc", mib), meta.Ref{})))
	id := e.PoolIDs()["default"]
	file := filepath.Join(n.path("default"), "pool.json")
	good, err := os.ReadFile(file)
	must(t, err)
	for name, content := range map[string]string{
		"lost": "", "noise": "noise", "no ID": `{"version":1}`, "a path": `{"version":1,"id":"../x"}`,
		"newer": strings.Replace(string(good), `"version":1`, `"version":2`, 1),
	} {
		must(t, e.Close())
		if must(t, os.WriteFile(file, []byte(content), 0o600)); content == "" {
			must(t, os.Remove(file))
		}
		e = n.start(t)
		if len(e.PoolIDs()) > 0 {
			t.Errorf("%s: in use: %v", name, e.PoolIDs())
		}
		wants(t, second(e.Stat(t.Context(), meta.Volume("pvc"))), pool.ErrAway)
		wants(t, e.Remove(t.Context(), meta.Volume("pvc")), pool.ErrAway)
		wants(t, second(e.Prepare(t.Context(), sized("new", mib), meta.Ref{})), snapshot.ErrNoPool)
		if now, _ := os.ReadFile(file); string(now) != content {
			t.Errorf("%s: pool.json was changed to %q", name, now)
		}
	}
	must(t, e.Close())
	must(t, os.WriteFile(file, good, 0o600))
	e = n.start(t)
	must(t, second(e.Stat(t.Context(), meta.Volume("pvc"))))
	if e.PoolIDs()["default"] != id {
		t.Errorf("ID is %v, was %s", e.PoolIDs(), id)
	}
}

// TestKnownPools: a pool is remembered in a file below known/, which people remove when the pool
// is gone for good.
func TestKnownPools(t *testing.T) {
	t.Parallel()
	n := newNode(t, btrfs.QuotaNone)
	n.AddPool(t, "fast")
	e := n.start(t)
	fast := filepath.Join(n.state, "known", e.PoolIDs()["fast"])
	if name, err := os.ReadFile(fast); err != nil || string(name) != "fast\n" {
		t.Errorf("remembered %q, %v", name, err)
	}
	must(t, e.Close())
	n.Detach(t, "fast")
	must(t, os.Mkdir(n.path("faster"), 0o700))
	must(t, unix.Mount(n.disks["fast"], n.path("faster"), "", unix.MS_BIND, ""))
	must(t, os.WriteFile(fast+".123", nil, 0o600)) // as a crash leaves it
	e = n.start(t)
	if name, err := os.ReadFile(fast); err != nil || string(name) != "faster\n" {
		t.Errorf("remembered %q, %v", name, err)
	}
	must(t, e.Close())
	n.Detach(t, "faster")
	e = open(t, n.host, filepath.Join(t.TempDir(), "index.db"))
	wants(t, e.Remove(t.Context(), meta.Volume("missing")), pool.ErrAway)
	must(t, os.Remove(fast))
	must(t, e.Remove(t.Context(), meta.Volume("missing")))
}

// trapped is a pool that calls a function once, at the next look at a volume.
type trapped struct {
	pool.Directory
	trap *atomic.Pointer[func()]
}

func (p trapped) Find(slots ...pool.Slot) ([]pool.Contents, error) {
	if slots[0].Area != pool.AreaRemoving {
		if spring := p.trap.Swap(nil); spring != nil {
			(*spring)()
		}
	}
	return p.Directory.Find(slots...)
}

// TestErasedInPlace: a volume that was erased in place, but not durably, is not reported as gone,
// not even by a driver that was restarted. Other pools are not affected.
func TestErasedInPlace(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	n := newNode(t, btrfs.QuotaNone)
	n.AddPool(t, "fast")
	var stuck atomic.Bool // nothing is committed
	var committed atomic.Int32
	host := pooltest.Around(n.host, func(s pooltest.Step, do func() error) error {
		switch {
		case s.Pool != pool.Default:
		case s.Method == "Move":
			return unix.ENOSPC // as if metadata were full
		case s.Method == "Commit":
			if stuck.Load() {
				return unix.EIO
			}
			committed.Add(1)
		}
		return do()
	})
	index := filepath.Join(t.TempDir(), "index.db")
	e := open(t, host, index)
	for pool, name := range map[string]string{"default": "erased", "fast": "other"} {
		must(t, second(e.Prepare(ctx, snapshot.Spec{Name: name, Pool: pool}, meta.Ref{})))
	}
	stuck.Store(true)
	for range 2 {
		wants(t, e.Remove(ctx, meta.Volume("erased")), snapshot.ErrUnfinished)
	}
	must(t, e.Remove(ctx, meta.Volume("other")))
	must(t, e.Close())
	stuck.Store(false)
	committed.Store(0)
	e = open(t, host, index)
	if committed.Load() == 0 {
		t.Error("not made durable at the start")
	}
	must(t, e.Remove(ctx, meta.Volume("erased")))
}

// TestPoolComesMeanwhile: a volume that was not found may be in a pool that came during the
// look-up, and must not be reported as gone.
func TestPoolComesMeanwhile(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	n := newNode(t, btrfs.QuotaNone)
	n.AddPool(t, "late")
	var trap atomic.Pointer[func()]
	host := pooltest.Wrap(n.host, func(_ string, d pool.Directory) pool.Directory { return trapped{d, &trap} })
	e := open(t, host, filepath.Join(t.TempDir(), "index.db"))
	go e.Run(ctx)
	spec := snapshot.Spec{Name: "pvc", Pool: "late"}
	must(t, second(e.Prepare(ctx, spec, meta.Ref{})))
	pools := func(want int) {
		t.Helper()
		eventually(t, func() bool { return len(e.PoolIDs()) == want })
	}
	for what, do := range map[string]func() error{
		"stat":   func() error { return second(e.Stat(ctx, meta.Volume("pvc"))) },
		"delete": func() error { return e.Remove(ctx, meta.Volume("pvc")) },
		"create": func() error { return second(e.Prepare(ctx, spec, meta.Ref{})) },
	} {
		n.Detach(t, "late")
		pools(1)
		comes := func() { n.Attach(t, "late"); pools(2) }
		trap.Store(&comes)
		if err := do(); !errors.Is(err, snapshot.ErrBusy) {
			t.Errorf("%s: %v", what, err)
		}
	}
	must(t, second(e.Stat(ctx, meta.Volume("pvc"))))
}

// TestLimitIsEnforced: a limit works, and works again after somebody lifted it.
func TestLimitIsEnforced(t *testing.T) {
	t.Parallel()
	for _, mode := range []btrfs.QuotaMode{btrfs.QuotaFull, btrfs.QuotaSimple} {
		t.Run(string(mode), func(t *testing.T) {
			t.Parallel()
			n := newNode(t, mode)
			e := n.start(t)
			ctx := t.Context()
			entry, err := e.Prepare(ctx, sized("pvc", 4*mib), meta.Ref{})
			must(t, err)
			must(t, n.fill("pvc", 3*mib))
			wants(t, n.fill("pvc", 2*mib), unix.EDQUOT)
			must(t, second(e.Resize(ctx, "pvc", snapshot.Range{Required: 16 * mib})))
			must(t, n.fill("pvc", 2*mib))

			level := map[btrfs.QuotaMode]uint16{btrfs.QuotaSimple: 1}[mode]
			must(t, btrfs.LimitQgroup(n.state, btrfs.NewQgroupID(level, entry.SubvolumeID), btrfs.NoLimit))
			findings, err := e.Plan(ctx)
			must(t, err)
			if len(findings) != 1 || findings[0].Problem != slot.WrongLimit {
				t.Errorf("planned %v", findings)
			}
			must(t, e.Close())
			e = n.start(t)
			wants(t, n.fill("pvc", 30*mib), unix.EDQUOT)
			must(t, e.Remove(ctx, meta.Volume("pvc"))) // at its limit
		})
	}
}

// commits returns how many transactions a filesystem has committed.
func commits(t *testing.T, mountPoint string) int {
	t.Helper()
	info, err := btrfs.Filesystem(mountPoint)
	must(t, err)
	f, err := os.Open(filepath.Join("/sys/fs/btrfs", info.FSID.String(), "commit_stats"))
	must(t, err)
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if text, ok := strings.CutPrefix(lines.Text(), "commits "); ok {
			count, err := strconv.Atoi(text)
			must(t, err)
			return count
		}
	}
	t.Fatal("no commits in commit_stats")
	return 0
}

// TestCost counts the commits of each operation, which are its cost. Dropping a removed tree may
// take more, later.
func TestCost(t *testing.T) {
	for _, mode := range []btrfs.QuotaMode{btrfs.QuotaNone, btrfs.QuotaFull, btrfs.QuotaSimple} {
		t.Run(string(mode), func(t *testing.T) {
			n := newNode(t, mode, noCommits)
			index := filepath.Join(t.TempDir(), "index.db")
			e := open(t, n.host, index)
			ctx := t.Context()
			must(t, second(e.Prepare(ctx, sized("source", 5*mib), meta.Ref{})))
			must(t, second(e.Commit(ctx, snapshot.Spec{Name: "source"}, "source")))
			step := func(name string, want int, do func(id string) error) {
				t.Helper()
				for i := range 5 {
					n.Pool("default").PeriodicCommit()
					before := commits(t, n.state)
					must(t, do(fmt.Sprintf("pvc-%d", i)))
					if got := commits(t, n.state) - before; got != want {
						t.Errorf("%s took %d commits, wanted %d", name, got, want)
					}
				}
			}
			step("create", 1, func(id string) error { return second(e.Prepare(ctx, sized(id, mib), meta.Ref{})) })
			class := func(id string) snapshot.Spec {
				return snapshot.Spec{Name: "class-" + id, Parameters: meta.Parameters{Compression: "zstd"}}
			}
			step("create, of a class", 1, func(id string) error { return second(e.Prepare(ctx, class(id), meta.Ref{})) })
			step("create again, of a class", 1, func(id string) error { return second(e.Prepare(ctx, class(id), meta.Ref{})) })
			step("expand, of a class", 1, func(id string) error {
				return second(e.Resize(ctx, "class-"+id, snapshot.Range{Required: 2 * snapshot.DefaultSize}))
			})
			step("clone, of a class", 1, func(id string) error {
				spec := class(id)
				spec.Name = "clone-" + spec.Name
				return second(e.Prepare(ctx, spec, meta.Volume("source")))
			})
			step("create again", 1, func(id string) error { return second(e.Prepare(ctx, sized(id, mib), meta.Ref{})) })
			step("snapshot", 1, func(id string) error { return second(e.Commit(ctx, snapshot.Spec{Name: id}, id)) })
			step("snapshot again", 1, func(id string) error { return second(e.Commit(ctx, snapshot.Spec{Name: id}, id)) })
			step("restore", 1, func(id string) error {
				return second(e.Prepare(ctx, snapshot.Spec{Name: "restored-" + id}, meta.Snapshot("source")))
			})
			step("clone", 1, func(id string) error {
				return second(e.Prepare(ctx, snapshot.Spec{Name: "clone-" + id}, meta.Volume("source")))
			})
			step("view", 1, func(id string) error {
				return second(e.View(ctx, snapshot.Spec{Name: "view-" + id}, meta.Snapshot("source")))
			})
			step("stat and usage", 0, func(id string) error {
				_, err := e.Usage(ctx, meta.Volume(id))
				if errors.Is(err, pool.ErrNoQuota) {
					err = nil
				}
				return errors.Join(err, second(e.Stat(ctx, meta.Volume(id))), second(e.Capacity(ctx, "")))
			})
			step("remove", 1, func(id string) error { return e.Remove(ctx, meta.Volume(id)) })
			step("remove again", 0, func(id string) error { return e.Remove(ctx, meta.Volume(id)) })
		})
	}
}

// TestPowerCut cuts the power right after each answer. Some operations run alone. During others
// somebody else commits, so that a later fsync does not cover all trees. The foreign commit comes
// before a different step for each operation, and before the properties are set. RELIABILITY_CUTS
// puts it before every step.
func TestPowerCut(t *testing.T) {
	t.Parallel()
	for _, mode := range modes {
		t.Run(string(mode), func(t *testing.T) {
			t.Parallel()
			n := newNode(t, mode)
			steps, foreign := 0, 0
			e := open(t, pooltest.Around(n.host, func(_ pooltest.Step, do func() error) error {
				if steps++; steps == foreign {
					n.Pool("default").PeriodicCommit()
				}
				return do()
			}), filepath.Join(n.state, "index.db"))
			ctx := t.Context()
			all := os.Getenv("RELIABILITY_CUTS") != ""
			for i, o := range operations {
				for foreign = 0; foreign == 0 || foreign <= steps; foreign++ { // 0: nobody else
					configures := strings.HasSuffix(o.name, "class") && foreign == 4 || o.name == "create with a disk file" && mode == btrfs.QuotaFull && foreign >= 4
					if !all && foreign != 0 && !configures && (mode != btrfs.QuotaFull || foreign != 1+i%steps) {
						continue
					}
					n.populate(t, e)
					steps = 0
					must(t, o.run(ctx, e))
					t.Run(fmt.Sprintf("%s, foreign %d", o.name, foreign), func(t *testing.T) { n.afterPowerCut(t, e) })
					n.clear(t, e, o)
				}
			}
		})
	}
}

// populate makes what the operations need, if it is absent.
func (n *node) populate(t *testing.T, e *snapshot.Engine) {
	t.Helper()
	ctx := t.Context()
	must(t, second(e.Prepare(ctx, sized("base", 5*mib), meta.Ref{})))
	must(t, second(e.Prepare(ctx, sized("other", 5*mib), meta.Ref{})))
	must(t, second(e.Prepare(ctx, snapshot.Spec{Name: "disk", Size: snapshot.Range{Required: 16 * mib}, Content: meta.Ext4}, meta.Ref{})))
	must(t, n.Pool("default").Write(active("base"), "data")) // not synced: the snapshot commits it
	must(t, second(e.Commit(ctx, snapshot.Spec{Name: "snap"}, "base")))
	must(t, second(e.View(ctx, snapshot.Spec{Name: "view"}, meta.Snapshot("snap"))))
	if _, err := e.Prepare(ctx, sized("lost", mib), meta.Ref{}); !errors.Is(err, snapshot.ErrLost) {
		must(t, err)
		must(t, n.Pool("default").Vanish(active("lost")))
	}
	n.Pool("default").PeriodicCommit()
}

// clear removes what an operation made or changed.
func (n *node) clear(t *testing.T, e *snapshot.Engine, o operation) {
	t.Helper()
	names := []string{"new", "new-1", "new-0"}
	if o.name == "resize" || o.name == "remove volume" {
		names = append(names, "base", "snap", "view")
	}
	for _, name := range names {
		must(t, e.Remove(t.Context(), meta.Volume(name)))
		must(t, e.Remove(t.Context(), meta.Snapshot(name)))
	}
}

// afterPowerCut compares the state after a power cut with what has been answered.
func (n *node) afterPowerCut(t *testing.T, e *snapshot.Engine) {
	t.Helper()
	host, err := pool.NewHost(btrfstest.PowerCut(t, n.state), n.mode)
	must(t, err)
	cut := open(t, host, filepath.Join(t.TempDir(), "index.db"))
	want, got := contents(t, e), contents(t, cut)
	if got != want {
		t.Errorf("after a power cut:\n%s\nwanted:\n%s", got, want)
	}
	findings, err := cut.Plan(t.Context())
	must(t, err)
	for _, f := range findings {
		if f.Repair != "" && f.Problem != slot.StaleQuota && f.Problem != pool.QuotaInconsistent {
			t.Errorf("after a power cut: planned %v", f)
		}
	}
}

// contents returns all items with their data, as an engine sees them.
func contents(t *testing.T, e *snapshot.Engine) string {
	t.Helper()
	items, err := e.Inventory(t.Context())
	must(t, err)
	var lines []string
	for _, item := range items {
		limit := int64(0)
		if item.Usage != nil {
			limit = item.Usage.Limit
		}
		data, has, disk := []byte("none"), meta.Parameters{}, ""
		if item.Kind == meta.Active && item.Status == "Ready" {
			mount, err := e.Mounts(t.Context(), item.ID)
			must(t, err)
			data, _ = os.ReadFile(filepath.Join(mount.Source, "data"))
			has = properties(t, mount.Source)
			if item.Content.IsDisk() {
				file, err := os.ReadFile(filepath.Join(mount.Source, diskfile.Name))
				must(t, err)
				disk = fmt.Sprintf(", a disk file of %d bytes, %x", len(file), sha256.Sum256(file))
			}
		}
		lines = append(lines, fmt.Sprintf("%s %s %d %d %s %q %+v%s", item.Path, item.Status, item.Size, limit, item.UUID, data, has, disk))
	}
	return strings.Join(lines, "\n")
}

// properties returns the properties of the root of a subvolume.
func properties(t *testing.T, path string) (p meta.Parameters) {
	t.Helper()
	var err error
	p.Compression, err = btrfs.Compression(path)
	must(t, err)
	p.NoDataCow, err = btrfs.NoDataCow(path)
	must(t, err)
	return p
}

// TestFullPool: volumes and snapshots can still be removed from a full pool.
func TestFullPool(t *testing.T) {
	t.Parallel()
	n := &node{state: btrfstest.Mount(t, btrfstest.Size(256*mib)), mode: btrfs.QuotaNone, disks: map[string]string{}}
	var err error
	n.host, err = pool.NewHost(n.state, n.mode)
	must(t, err)
	e := open(t, n.host, filepath.Join(t.TempDir(), "index.db"))
	ctx := t.Context()
	for _, name := range []string{"small", "large"} {
		capacity, err := e.Capacity(ctx, "")
		must(t, err)
		must(t, second(e.Prepare(ctx, sized(name, capacity.MaximumSize), meta.Ref{})))
	}
	must(t, second(e.Commit(ctx, snapshot.Spec{Name: "snap"}, "small")))
	for err = nil; err == nil; {
		err = n.fill("large", mib)
	}
	wants(t, err, unix.ENOSPC)
	n.Pool("default").PeriodicCommit()
	_, err = e.Prepare(ctx, sized("new", 64*mib), meta.Ref{})
	wants(t, err, pool.ErrNoSpace)
	wants(t, second(e.Stat(ctx, meta.Volume("new"))), snapshot.ErrNotFound)
	must(t, e.Remove(ctx, meta.Snapshot("snap")))
	must(t, e.Remove(ctx, meta.Volume("large")))
	eventually(t, func() bool {
		n.settle(t)
		return second(e.Prepare(ctx, sized("new", 64*mib), meta.Ref{})) == nil
	})
}

// TestInspect: Inspect beside a running driver changes nothing and finds no fault.
func TestInspect(t *testing.T) {
	t.Parallel()
	for _, mode := range []btrfs.QuotaMode{btrfs.QuotaFull, btrfs.QuotaSimple} {
		t.Run(string(mode), func(t *testing.T) {
			t.Parallel()
			n := newNode(t, mode)
			e := n.start(t)
			ctx := t.Context()
			for i := range 5 {
				name := fmt.Sprintf("pvc-%d", i)
				must(t, second(e.Prepare(ctx, sized(name, 5*mib), meta.Ref{})))
				must(t, n.fill(name, mib))
				must(t, second(e.Commit(ctx, snapshot.Spec{Name: name}, name)))
			}
			half := pool.Slot{Area: "active", Name: "half"}
			record, err := meta.Record{ID: "half", Name: "half", Kind: meta.Active, State: meta.Creating, Size: mib}.Encode()
			must(t, err)
			must(t, n.Pool("default").PlantSlot(half, record))
			for i := range 5 {
				must(t, e.Remove(ctx, meta.Volume(fmt.Sprintf("pvc-%d", i))))
			}
			n.Pool("default").PeriodicCommit()
			inspect, err := snapshot.Inspect(ctx, n.state)
			must(t, err)
			for range 20 {
				findings, err := inspect.Plan(ctx)
				must(t, err)
				if len(findings) != 1 || findings[0].Path != half.String() {
					t.Errorf("planned %v", findings)
				}
				time.Sleep(5 * time.Millisecond)
			}
			if _, err := os.Stat(filepath.Join(n.path("default"), half.String())); err != nil {
				t.Errorf("repaired: %v", err)
			}
			must(t, inspect.Close())
		})
	}
}

// TestPlainDirectoryInSlot: an entry fs that is no subvolume is foreign.
func TestPlainDirectoryInSlot(t *testing.T) {
	t.Parallel()
	n := newNode(t, btrfs.QuotaNone)
	e := n.start(t)
	slot := filepath.Join(n.path("default"), "active", "pvc")
	for name, plant := range map[string]func(string) error{
		"directory": func(path string) error { return os.Mkdir(path, 0o700) },
		"file":      func(path string) error { return os.WriteFile(path, nil, 0o600) },
		"link":      func(path string) error { return os.Symlink(n.state, path) },
	} {
		must(t, os.Mkdir(slot, 0o700))
		must(t, plant(filepath.Join(slot, "fs")))
		wants(t, second(e.Prepare(t.Context(), sized("pvc", mib), meta.Ref{})), pool.ErrForeign)
		wants(t, second(e.Stat(t.Context(), meta.Volume("pvc"))), snapshot.ErrNotFound)
		_, err := e.Reconcile(t.Context())
		must(t, err)
		if _, err := os.Lstat(filepath.Join(slot, "fs")); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		must(t, os.RemoveAll(slot))
	}
}

// TestDamagedSubvolume overwrites the root of one subvolume on the disk. The subvolume is
// reported and stays listed; the others are served.
func TestDamagedSubvolume(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	n := newSmallNode(t, btrfs.QuotaFull, "-m", "single")
	e := n.start(t)
	damaged, err := e.Prepare(ctx, sized("damaged", mib), meta.Ref{})
	must(t, err)
	must(t, second(e.Prepare(ctx, sized("other", mib), meta.Ref{})))
	must(t, e.Close())
	n.Pool("default").PeriodicCommit()
	n.damageRoot(t, damaged.SubvolumeID)

	e = n.start(t)
	for range 2 {
		findings, err := e.Reconcile(ctx)
		must(t, err)
		if len(findings) != 1 || findings[0].Problem != slot.Damaged || findings[0].Path != "active/damaged" {
			t.Errorf("found %v", findings)
		}
		listed := map[string]int64{}
		must(t, e.Walk(ctx, meta.Volumes, "", func(e meta.Entry) bool { listed[e.ID] = e.Size; return true }))
		if !maps.Equal(listed, map[string]int64{"damaged": mib, "other": mib}) {
			t.Errorf("listed %v", listed)
		}
	}
	for what, err := range map[string]error{
		"stat":     second(e.Stat(ctx, meta.Volume("damaged"))),
		"mounts":   second(e.Mounts(ctx, "damaged")),
		"create":   second(e.Prepare(ctx, sized("damaged", mib), meta.Ref{})),
		"expand":   second(e.Resize(ctx, "damaged", snapshot.Range{Required: 2 * mib})),
		"snapshot": second(e.Commit(ctx, snapshot.Spec{Name: "snap"}, "damaged")),
		"delete":   e.Remove(ctx, meta.Volume("damaged")),
	} {
		if !errors.Is(err, unix.EIO) {
			t.Errorf("%s: %v", what, err)
		}
	}
	must(t, second(e.Commit(ctx, snapshot.Spec{Name: "snap"}, "other")))
	must(t, e.Remove(ctx, meta.Volume("other")))
}

// damageRoot overwrites the root block of a subvolume, and mounts the filesystem again, because
// the block is cached.
func (n *node) damageRoot(t *testing.T, subvolume uint64) {
	t.Helper()
	image := btrfstest.Image(t, n.state)
	find := func(pattern, tool string, args ...string) int64 {
		t.Helper()
		out, err := exec.Command(tool, args...).CombinedOutput()
		must(t, err)
		found := regexp.MustCompile(pattern).FindSubmatch(out)
		if found == nil {
			t.Fatalf("no %s in what %s says: %s", pattern, tool, out)
		}
		at, err := strconv.ParseInt(string(found[1]), 10, 64)
		must(t, err)
		return at
	}
	root := find(fmt.Sprintf(`key \(%d ROOT_ITEM \d+\)[^\n]*\n[^\n]*bytenr (\d+)`, subvolume), "btrfs", "inspect-internal", "dump-tree", "-t", "root", image)
	block := find(`physical (\d+)`, "btrfs-map-logical", "-l", strconv.FormatInt(root, 10), image)
	f, err := os.OpenFile(image, os.O_WRONLY, 0)
	must(t, err)
	_, err = f.WriteAt(make([]byte, 4096), block)
	must(t, errors.Join(err, f.Close()))
	btrfstest.Remount(t, n.state)
}

// TestReadOnlyAtStart: a pool whose quota could not be turned on because it was read-only gets
// its limits once it can be written.
func TestReadOnlyAtStart(t *testing.T) {
	t.Parallel()
	n := newNode(t, btrfs.QuotaFull)
	n.AddPool(t, "fast")
	e := open(t, n.host, filepath.Join(t.TempDir(), "index.db"))
	must(t, e.Close())
	must(t, btrfs.DisableQuota(n.path("fast")))
	n.Pool("fast").SetReadOnly(true)
	e = open(t, n.host, filepath.Join(t.TempDir(), "index.db"))
	go e.Run(t.Context())
	spec := snapshot.Spec{Name: "pvc", Pool: "fast", Size: snapshot.Range{Required: mib}}
	wants(t, second(e.Prepare(t.Context(), spec, meta.Ref{})), pool.ErrReadOnly)
	n.Pool("fast").SetReadOnly(false)
	eventually(t, func() bool { return second(e.Prepare(t.Context(), spec, meta.Ref{})) == nil })
	usage, err := e.Usage(t.Context(), meta.Volume("pvc"))
	must(t, err)
	if usage.Limit != mib {
		t.Errorf("qgroup limit %d, want %d", usage.Limit, mib)
	}
}

// TestPropertiesOfCopies makes copies of every class from sources of every class. btrfs refuses
// some combinations of properties, and a retry would never end.
func TestPropertiesOfCopies(t *testing.T) {
	t.Parallel()
	n := newNode(t, btrfs.QuotaNone)
	e := n.start(t)
	classes := map[string]meta.Parameters{
		"plain": {}, "zstd": {Compression: "zstd"}, "lzo": {Compression: "lzo"}, "none": {Compression: "none"},
		"nodatacow": {NoDataCow: true}, "nodatacow-none": {NoDataCow: true, Compression: "none"},
	}
	for source, of := range classes {
		_, err := e.Prepare(t.Context(), snapshot.Spec{Name: source, Parameters: of}, meta.Ref{})
		must(t, err)
		for class, want := range classes {
			name := source + "." + class
			_, err := e.Prepare(t.Context(), snapshot.Spec{Name: name, Parameters: want}, meta.Volume(source))
			must(t, err)
			if class == "plain" {
				want = of // as the source
			}
			mount, err := e.Mounts(t.Context(), name)
			must(t, err)
			compression, err := btrfs.Compression(mount.Source)
			must(t, err)
			inPlace, err := btrfs.NoDataCow(mount.Source)
			must(t, err)
			if want.NoDataCow {
				want.Compression = ""
			}
			if compression != want.Compression || inPlace != want.NoDataCow {
				t.Errorf("%s: has compression %q, nodatacow %v; want %+v", name, compression, inPlace, want)
			}
		}
	}
}

// TestPropertiesSurvivePowerCut: the fsync of an expansion or of a repeated request may make
// ready durable in the log. The properties of the copy are durable before.
func TestPropertiesSurvivePowerCut(t *testing.T) {
	t.Parallel()
	for name, then := range map[string]func(ctx context.Context, e *snapshot.Engine, copied snapshot.Spec) error{
		"repeated": func(ctx context.Context, e *snapshot.Engine, copied snapshot.Spec) error {
			return second(e.Prepare(ctx, copied, meta.Volume("pvc")))
		},
		"expanded": func(ctx context.Context, e *snapshot.Engine, copied snapshot.Spec) error {
			return second(e.Resize(ctx, copied.Name, snapshot.Range{Required: 2 * mib}))
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := newNode(t, btrfs.QuotaFull)
			e := n.start(t)
			must(t, second(e.Prepare(t.Context(), sized("pvc", mib), meta.Ref{})))
			for _, want := range []meta.Parameters{{NoDataCow: true}, {Compression: "zstd"}} {
				copied := snapshot.Spec{Name: fmt.Sprintf("copy-%v", want.NoDataCow), Parameters: want}
				must(t, second(e.Prepare(t.Context(), copied, meta.Volume("pvc"))))
				must(t, then(t.Context(), e, copied))
				host, err := pool.NewHost(btrfstest.PowerCut(t, n.state), n.mode)
				must(t, err)
				after := open(t, host, filepath.Join(t.TempDir(), "index.db"))
				mount, err := after.Mounts(t.Context(), copied.Name)
				must(t, err)
				if has := properties(t, mount.Source); has != want {
					t.Errorf("after a power cut it has %+v, want %+v", has, want)
				}
			}
		})
	}
}

// TestKilledBeforeItSynced: a driver that was killed before its fsync may leave changes that are
// not durable. The next driver makes the pool's ID, its known/ file and the index's state "in
// use" durable before it relies on them.
func TestKilledBeforeItSynced(t *testing.T) {
	t.Parallel()
	n := newNode(t, btrfs.QuotaNone)
	e := n.start(t)
	id := e.PoolIDs()["default"]
	must(t, e.Close())
	identity := filepath.Join(n.path("default"), "pool.json")
	known := filepath.Join(n.state, "known", id)
	for _, path := range []string{identity, known} {
		must(t, os.Rename(path, path+".away"))
	}
	n.Pool("default").PeriodicCommit()
	for _, path := range []string{identity, known} {
		must(t, os.Rename(path+".away", path))
	}
	n.start(t)
	cut := btrfstest.PowerCut(t, n.state)
	for _, path := range []string{identity, known} {
		relative, err := filepath.Rel(n.state, path)
		must(t, err)
		if _, err := os.Lstat(filepath.Join(cut, relative)); err != nil {
			t.Errorf("after a power cut: %v", err)
		}
	}
	seal, err := os.ReadFile(filepath.Join(cut, "index.db.seal"))
	if err != nil || !strings.Contains(string(seal), "boot") {
		t.Errorf("after a power cut the index is sealed with %q, %v", seal, err)
	}
}
