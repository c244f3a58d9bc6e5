package snapshot

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs/btrfstest"
	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
)

func TestSmoke(t *testing.T) {
	dir := btrfstest.Mount(t)
	host, err := NewHost(dir, QuotaAuto)
	if err != nil {
		t.Fatal(err)
	}
	index, _, err := meta.OpenIndex(filepath.Join(dir, "index.db"))
	if err != nil {
		t.Fatal(err)
	}
	ctx := context.Background()
	e, err := Open(ctx, host, index)
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	v, err := e.Prepare(ctx, Spec{Name: "pvc-1", Size: Range{Required: 5 << 20}, Parameters: meta.Parameters{Compression: "zstd:3"}}, meta.Ref{})
	t.Logf("%+v %v", v, err)
	m, err := e.Mounts(ctx, "pvc-1")
	t.Log(m, err, os.WriteFile(m.Source+"/f", []byte("hello"), 0o644))
	s, err := e.Commit(ctx, Spec{Name: "snap-1"}, "pvc-1")
	t.Logf("%+v %v", s, err)
	c, err := e.Prepare(ctx, Spec{Name: "snämé", Size: Range{Required: 10 << 20}}, meta.Snapshot("snap-1"))
	t.Logf("%+v %v", c, err)
	w, err := e.View(ctx, Spec{Name: "view"}, meta.Snapshot("snap-1"))
	t.Logf("%+v %v", w, err)
	r, err := e.Resize(ctx, "pvc-1", Range{Required: 6 << 20})
	t.Logf("%+v %v", r, err)
	f, err := e.Plan(ctx)
	t.Log(f, err)
	u, err := e.Usage(ctx, meta.Volume("pvc-1"))
	t.Log(u, err)
	t.Log(e.Remove(ctx, meta.Volume("pvc-1")), e.Remove(ctx, meta.Volume("pvc-1")))
	t.Log(e.Walk(ctx, meta.Volumes, "", func(e meta.Entry) bool { t.Log(e.ID, e.Source); return true }))
	f, err = e.Plan(ctx)
	t.Log(f, err, e.index.Check())
	t.Logf("%+v", e.Pools(ctx))
}
