package pooltest

import (
	"context"

	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
	"github.com/btrfs-csi/btrfs-csi/pkg/pool"
)

// Step is a call that changes a pool or makes it durable.
type Step struct {
	Pool   string
	Method string    // of pool.Filesystem
	Slot   pool.Slot // zero for calls by subvolume ID; the destination of a Move
}

// Around returns a host whose pools call around instead of each step. do runs the step itself.
// around may act before or after it, wait, fail, or end the process. It may be called
// concurrently.
func Around(host pool.Host, around func(s Step, do func() error) error) pool.Host {
	return &aroundHost{host, around}
}

type aroundHost struct {
	pool.Host
	around func(Step, func() error) error
}

func (h *aroundHost) Open(ctx context.Context, name string) (pool.Filesystem, error) {
	filesystem, err := h.Host.Open(ctx, name)
	if err != nil {
		return nil, err
	}
	return &aroundPool{filesystem, name, h.around}, nil
}

type aroundPool struct {
	pool.Filesystem
	name   string
	around func(Step, func() error) error
}

func (p *aroundPool) step(method string, at pool.Slot, do func() error) error {
	return p.around(Step{p.name, method, at}, do)
}

func (p *aroundPool) Mkdir(s pool.Slot) error {
	return p.step("Mkdir", s, func() error { return p.Filesystem.Mkdir(s) })
}

func (p *aroundPool) Rmdir(s pool.Slot) error {
	return p.step("Rmdir", s, func() error { return p.Filesystem.Rmdir(s) })
}

func (p *aroundPool) Move(from, to pool.Slot) error {
	return p.step("Move", to, func() error { return p.Filesystem.Move(from, to) })
}

func (p *aroundPool) SetRecord(s pool.Slot, record []byte) error {
	return p.step("SetRecord", s, func() error { return p.Filesystem.SetRecord(s, record) })
}

func (p *aroundPool) Sync(s pool.Slot) error {
	return p.step("Sync", s, func() error { return p.Filesystem.Sync(s) })
}

func (p *aroundPool) Create(s pool.Slot) error {
	return p.step("Create", s, func() error { return p.Filesystem.Create(s) })
}

func (p *aroundPool) Snapshot(from, to pool.Slot, readOnly bool) error {
	return p.step("Snapshot", to, func() error { return p.Filesystem.Snapshot(from, to, readOnly) })
}

func (p *aroundPool) Destroy(s pool.Slot) error {
	return p.step("Destroy", s, func() error { return p.Filesystem.Destroy(s) })
}

func (p *aroundPool) SyncRoot(s pool.Slot) error {
	return p.step("SyncRoot", s, func() error { return p.Filesystem.SyncRoot(s) })
}

func (p *aroundPool) Apply(s pool.Slot, parameters meta.Parameters) error {
	return p.step("Apply", s, func() error { return p.Filesystem.Apply(s, parameters) })
}

func (p *aroundPool) SetLimit(subvolume uint64, bytes int64) error {
	return p.step("SetLimit", pool.Slot{}, func() error { return p.Filesystem.SetLimit(subvolume, bytes) })
}

func (p *aroundPool) Bound(volume uint64, size int64, nested []uint64) (inside pool.Usage, err error) {
	err = p.step("Bound", pool.Slot{}, func() error { inside, err = p.Filesystem.Bound(volume, size, nested); return err })
	return inside, err
}

func (p *aroundPool) LiftLimit(subvolume uint64) error {
	return p.step("LiftLimit", pool.Slot{}, func() error { return p.Filesystem.LiftLimit(subvolume) })
}

func (p *aroundPool) ForgetQuota(subvolume uint64) error {
	return p.step("ForgetQuota", pool.Slot{}, func() error { return p.Filesystem.ForgetQuota(subvolume) })
}

func (p *aroundPool) Rescan() error {
	return p.step("Rescan", pool.Slot{}, p.Filesystem.Rescan)
}
