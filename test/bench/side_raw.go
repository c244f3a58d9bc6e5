package main

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs"
)

// raw is the ioctls alone, without records, limits and locks. It is as durable as the driver: if an
// ioctl does not commit, an fsync of its directory follows.
type raw struct {
	root     string
	separate bool // each subvolume in a new directory
}

func openRaw(separate bool) opener {
	return func(_ context.Context, r *rig) (side, error) {
		root := filepath.Join(r.Pool(), "raw")
		return raw{root, separate}, os.MkdirAll(root, 0o700)
	}
}

func (w raw) close() error { return nil }

func (w raw) operations() map[string]operation {
	snapshot := func(name, source func(int) string, readOnly bool) operation {
		return func(_ context.Context, i int) error { return w.snapshot(name(i), source(i), readOnly) }
	}
	remove := func(name func(int) string) operation {
		return func(_ context.Context, i int) error { return w.remove(name(i)) }
	}
	return map[string]operation{
		opCreate:         func(_ context.Context, i int) error { return w.create(volumeName(i)) },
		opSnapshot:       snapshot(snapshotName, volumeName, true),
		opSnapshotAgain:  snapshot(snapshotName, func(int) string { return volumeName(0) }, true),
		opClone:          snapshot(cloneName, volumeName, false),
		opRestore:        snapshot(restoredName, snapshotName, false),
		opView:           snapshot(viewName, snapshotName, true),
		opDelete:         remove(cloneName),
		opDeleteSnapshot: remove(snapshotName),
		opExisting:       func(_ context.Context, i int) error { return w.create(existingName(i)) },
		opTidy:           func(_ context.Context, i int) error { return w.removeAll(copyNames(i)) },
		opClear: func(_ context.Context, i int) error {
			return w.removeAll(append(copyNames(i), volumeName(i), snapshotName(i)))
		},
	}
}

// place returns the path of a subvolume and its directory.
func (w raw) place(name string) (dir, path string) {
	if w.separate {
		dir = filepath.Join(w.root, name)
		return dir, filepath.Join(dir, "fs")
	}
	return w.root, filepath.Join(w.root, name)
}

func (w raw) makePlace(name string) (dir, path string, err error) {
	dir, path = w.place(name)
	if w.separate {
		err = os.Mkdir(dir, 0o700)
	}
	return dir, path, err
}

func (w raw) create(name string) error {
	dir, path, err := w.makePlace(name)
	if err != nil {
		return err
	}
	return errors.Join(btrfs.Create(path), btrfs.Sync(dir))
}

func (w raw) snapshot(name, source string, readOnly bool) error {
	_, path, err := w.makePlace(name)
	if err != nil {
		return err
	}
	_, from := w.place(source)
	return btrfs.Snapshot(path, from, readOnly)
}

func (w raw) remove(name string) error {
	dir, path := w.place(name)
	if err := errors.Join(btrfs.Destroy(path), btrfs.Sync(dir)); err != nil || !w.separate {
		return err
	}
	return unix.Rmdir(dir)
}

func (w raw) removeAll(names []string) error {
	for _, name := range names {
		if err := w.remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}
