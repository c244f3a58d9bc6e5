package snapshot_test

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs"
	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs/btrfstest"
	"github.com/btrfs-csi/btrfs-csi/pkg/diskfile"
	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
	"github.com/btrfs-csi/btrfs-csi/pkg/meta/index"
	"github.com/btrfs-csi/btrfs-csi/pkg/pool"
	"github.com/btrfs-csi/btrfs-csi/pkg/snapshot"
	"github.com/btrfs-csi/btrfs-csi/pkg/snapshot/snaptest"
)

// TestBtrfs runs the suite on real filesystems.
func TestBtrfs(t *testing.T) {
	t.Parallel()
	for _, mode := range []btrfs.QuotaMode{btrfs.QuotaNone, pool.QuotaAuto, btrfs.QuotaSimple} {
		t.Run(string(mode), func(t *testing.T) {
			t.Parallel()
			snaptest.Run(t, func(t testing.TB) snaptest.Env { return newNode(t, mode) })
		})
	}
}

// node is the Env on real filesystems. Its state directory is the root of a btrfs.
type node struct {
	state string // directory
	mode  btrfs.QuotaMode
	host  pool.Host
	disks map[string]string // mounts of the filesystems of other pools, which Detach keeps
}

// noCommits keeps the kernel from committing by itself while a test counts commits.
var noCommits = btrfstest.MountOptions("commit=86400")

// often shortens the time between two rounds of maintenance.
var often = snapshot.MaintainEvery(time.Second)

func newNode(t testing.TB, mode btrfs.QuotaMode, options ...btrfstest.Option) *node {
	t.Helper()
	if mode == btrfs.QuotaSimple {
		btrfstest.SimpleQuota.Need(t)
	}
	n := &node{state: btrfstest.Mount(t, options...), mode: mode, disks: map[string]string{}}
	var err error
	n.host, err = pool.NewHost(n.state, mode)
	must(t, err)
	return n
}

// start opens an engine over the node, with an index beside the pools.
func (n *node) start(t testing.TB, options ...snapshot.Option) *snapshot.Engine {
	t.Helper()
	return open(t, n.host, filepath.Join(n.state, "index.db"), options...)
}

// open returns an engine that is closed when the test ends, if not before.
func open(t testing.TB, host pool.Host, path string, options ...snapshot.Option) *snapshot.Engine {
	t.Helper()
	index, _, err := index.Open(path)
	must(t, err)
	e, err := snapshot.Open(t.Context(), host, index, append([]snapshot.Option{snapshot.Patience(hang)}, options...)...)
	must(t, err)
	t.Cleanup(func() { _ = e.Close() })
	return e
}

func (n *node) Host() pool.Host { return n.host }

func (n *node) Mode() btrfs.QuotaMode {
	if n.mode == pool.QuotaAuto {
		return btrfs.QuotaFull
	}
	return n.mode
}

func (n *node) path(pool string) string { return filepath.Join(n.state, "pools", pool) }

func (n *node) Pool(name string) snaptest.Hands {
	mountPoint := n.state
	if n.disks[name] != "" {
		mountPoint = n.path(name)
	}
	return hands{n.path(name), mountPoint}
}

func (n *node) AddPool(t testing.TB, name string) {
	t.Helper()
	n.disks[name] = btrfstest.Mount(t)
	must(t, os.MkdirAll(n.path(name), 0o700))
	n.Attach(t, name)
	t.Cleanup(func() { _ = unix.Unmount(n.path(name), unix.MNT_DETACH) })
}

func (n *node) Attach(t testing.TB, name string) {
	t.Helper()
	must(t, unix.Mount(n.disks[name], n.path(name), "", unix.MS_BIND, ""))
}

// Detach waits for the engine, which may be using the pool.
func (n *node) Detach(t testing.TB, name string) {
	t.Helper()
	must(t, btrfstest.Unmount(n.path(name)))
}

// hands are the Hands in a pool on disk.
type hands struct{ pool, mountPoint string }

func (h hands) slot(at pool.Slot) string { return filepath.Join(h.pool, string(at.Area), at.Name) }
func (h hands) fs(at pool.Slot) string   { return filepath.Join(h.slot(at), "fs") }
func (h hands) data(at pool.Slot) string { return filepath.Join(h.fs(at), "data") }

func (h hands) Write(at pool.Slot, data string) error {
	return os.WriteFile(h.data(at), []byte(data), 0o644)
}

// Read returns "" for a subvolume without the file.
func (h hands) Read(at pool.Slot) (string, error) {
	if _, err := btrfs.Info(h.fs(at)); err != nil {
		return "", err
	}
	data, err := os.ReadFile(h.data(at))
	if os.IsNotExist(err) {
		return "", nil
	}
	return string(data), err
}

func (h hands) Nest(at pool.Slot, name string) error {
	return btrfs.Create(filepath.Join(h.fs(at), name))
}

func (h hands) Vanish(at pool.Slot) error { return btrfs.Destroy(h.fs(at)) }

func (h hands) PlantSlot(at pool.Slot, record []byte) error {
	if err := os.Mkdir(h.slot(at), 0o700); err != nil && !os.IsExist(err) {
		return err
	}
	if record == nil {
		return nil
	}
	return unix.Setxattr(h.slot(at), meta.LedgerXattr, record, 0)
}

func (h hands) PlantSubvolume(at pool.Slot, data string) error {
	if err := btrfs.Create(h.fs(at)); err != nil {
		return err
	}
	return h.Write(at, data)
}

func (h hands) PlantFile(at pool.Slot) error {
	f, err := os.OpenFile(filepath.Join(h.slot(at), "file"), os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	return f.Close()
}

func (h hands) RemoveFile(at pool.Slot) error {
	return os.Remove(filepath.Join(h.slot(at), "file"))
}

func (h hands) CutDisk(at pool.Slot, size int64) error {
	file := filepath.Join(h.fs(at), diskfile.Name)
	if size == 0 {
		return os.Remove(file)
	}
	return os.Truncate(file, size)
}

func (h hands) SetWritable(at pool.Slot, writable bool) error {
	return btrfs.SetReadOnly(h.fs(at), !writable)
}

func (h hands) SetReadOnly(readOnly bool) {
	err := unix.Mount("", h.mountPoint, "", unix.MS_REMOUNT, "")
	if readOnly {
		err = btrfstest.RemountReadOnly(h.mountPoint)
	}
	if err != nil {
		panic(err)
	}
}

func (h hands) PeriodicCommit() {
	dir, err := os.Open(h.pool)
	if err == nil {
		defer dir.Close()
		err = unix.Syncfs(int(dir.Fd()))
	}
	if err != nil {
		panic(err)
	}
}
