package pooltest

import (
	"context"

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs"
	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
	"github.com/btrfs-csi/btrfs-csi/pkg/pool"
)

// Step is a call that changes a pool or makes it durable.
type Step struct {
	Pool   string
	Method string    // of pool.Directory
	Slot   pool.Slot // zero for calls by subvolume ID; the destination of a Move
}

// Wrap returns a host whose pools, whenever they are opened, are what wrap returns for their name
// and directory.
func Wrap(host pool.Host, wrap func(name string, d pool.Directory) pool.Directory) pool.Host {
	return &wrapHost{host, wrap}
}

type wrapHost struct {
	pool.Host
	wrap func(string, pool.Directory) pool.Directory
}

func (h *wrapHost) Open(ctx context.Context, name string) (pool.Filesystem, error) {
	filesystem, err := h.Host.Open(ctx, name)
	if err != nil {
		return nil, err
	}
	return &wrapFilesystem{filesystem, name, h.wrap}, nil
}

type wrapFilesystem struct {
	pool.Filesystem
	name string
	wrap func(string, pool.Directory) pool.Directory
}

func (f *wrapFilesystem) Open() (pool.Directory, error) {
	d, err := f.Filesystem.Open()
	if err != nil {
		return nil, err
	}
	return f.wrap(f.name, d), nil
}

// Around returns a host whose pools call around instead of each step. do runs the step itself.
// around may act before or after it, wait, fail, or end the process. It may be called
// concurrently.
func Around(host pool.Host, around func(s Step, do func() error) error) pool.Host {
	return Wrap(host, func(name string, d pool.Directory) pool.Directory { return &aroundPool{d, name, around} })
}

type aroundPool struct {
	pool.Directory
	name   string
	around func(Step, func() error) error
}

func (p *aroundPool) step(method string, at pool.Slot, do func() error) error {
	return p.around(Step{p.name, method, at}, do)
}

func (p *aroundPool) Mkdir(s pool.Slot) error {
	return p.step("Mkdir", s, func() error { return p.Directory.Mkdir(s) })
}

func (p *aroundPool) Rmdir(s pool.Slot) error {
	return p.step("Rmdir", s, func() error { return p.Directory.Rmdir(s) })
}

func (p *aroundPool) Move(from, to pool.Slot) error {
	return p.step("Move", to, func() error { return p.Directory.Move(from, to) })
}

func (p *aroundPool) SetRecord(s pool.Slot, record []byte) error {
	return p.step("SetRecord", s, func() error { return p.Directory.SetRecord(s, record) })
}

func (p *aroundPool) Sync(s pool.Slot) error {
	return p.step("Sync", s, func() error { return p.Directory.Sync(s) })
}

func (p *aroundPool) Commit() error {
	return p.step("Commit", pool.Slot{}, p.Directory.Commit)
}

func (p *aroundPool) Create(s pool.Slot) (info btrfs.SubvolumeInfo, err error) {
	err = p.step("Create", s, func() error { info, err = p.Directory.Create(s); return err })
	return info, err
}

func (p *aroundPool) Snapshot(from, to pool.Slot, readOnly bool) (info btrfs.SubvolumeInfo, err error) {
	err = p.step("Snapshot", to, func() error { info, err = p.Directory.Snapshot(from, to, readOnly); return err })
	return info, err
}

func (p *aroundPool) SnapshotTogether(copies ...pool.Copy) (infos []btrfs.SubvolumeInfo, err error) {
	err = p.step("SnapshotTogether", copies[0].To, func() error { infos, err = p.Directory.SnapshotTogether(copies...); return err })
	return infos, err
}

func (p *aroundPool) Destroy(s pool.Slot) error {
	return p.step("Destroy", s, func() error { return p.Directory.Destroy(s) })
}

func (p *aroundPool) MakeDisk(s pool.Slot, content meta.Content, size int64) error {
	return p.step("MakeDisk", s, func() error { return p.Directory.MakeDisk(s, content, size) })
}

func (p *aroundPool) GrowDisk(s pool.Slot, size int64) error {
	return p.step("GrowDisk", s, func() error { return p.Directory.GrowDisk(s, size) })
}

func (p *aroundPool) Freeze(s pool.Slot) (frozen bool, err error) {
	err = p.step("Freeze", s, func() error { frozen, err = p.Directory.Freeze(s); return err })
	return frozen, err
}

func (p *aroundPool) Thaw(s pool.Slot) error {
	return p.step("Thaw", s, func() error { return p.Directory.Thaw(s) })
}

func (p *aroundPool) SyncRoot(s pool.Slot) error {
	return p.step("SyncRoot", s, func() error { return p.Directory.SyncRoot(s) })
}

func (p *aroundPool) Apply(s pool.Slot, parameters meta.Parameters) error {
	return p.step("Apply", s, func() error { return p.Directory.Apply(s, parameters) })
}

func (p *aroundPool) SetLimit(subvolume uint64, bytes int64) error {
	return p.step("SetLimit", pool.Slot{}, func() error { return p.Directory.SetLimit(subvolume, bytes) })
}

func (p *aroundPool) Bound(volume uint64, size int64, nested []uint64) (inside pool.Usage, err error) {
	err = p.step("Bound", pool.Slot{}, func() error { inside, err = p.Directory.Bound(volume, size, nested); return err })
	return inside, err
}

func (p *aroundPool) LiftLimit(subvolume uint64) error {
	return p.step("LiftLimit", pool.Slot{}, func() error { return p.Directory.LiftLimit(subvolume) })
}

func (p *aroundPool) ForgetQuota(subvolume uint64) error {
	return p.step("ForgetQuota", pool.Slot{}, func() error { return p.Directory.ForgetQuota(subvolume) })
}

func (p *aroundPool) Rescan() error {
	return p.step("Rescan", pool.Slot{}, p.Directory.Rescan)
}
