package driver

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"

	"github.com/btrfs-csi/btrfs-csi/pkg/diskfile"
	"github.com/btrfs-csi/btrfs-csi/pkg/loop"
	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
	"github.com/btrfs-csi/btrfs-csi/pkg/mount"
	"github.com/btrfs-csi/btrfs-csi/pkg/pool"
	"github.com/btrfs-csi/btrfs-csi/pkg/snapshot"
)

// disk is the disk file of a volume, open, and its loop device.
type disk struct {
	file   *os.File
	device *loop.Device // nil while no device has the file
}

// openDisk opens the disk file of a volume and finds its device. subvolume is the path of the
// volume's subvolume, and place what is there.
//
// The file is opened on a mount of its own, so that the device does not keep the pool's mount
// busy, and shows the file's path in the pool wherever the driver's mounts were.
func openDisk(volume, subvolume string, place mount.Place, write bool) (*disk, error) {
	root, below := pool.Split(subvolume)
	tree, err := mount.Clone(root)
	if err != nil {
		return nil, err
	}
	defer tree.Close()
	f, err := diskfile.OpenAt(tree, below, write)
	if err != nil {
		return nil, diskError(volume, subvolume, err)
	}
	d := &disk{file: f}
	if err := d.find(place); err != nil {
		d.close()
		return nil, fmt.Errorf("volume %q: %w", volume, err)
	}
	return d, nil
}

// diskError returns the error for a disk file that cannot be opened.
func diskError(volume, subvolume string, err error) error {
	path := filepath.Join(subvolume, diskfile.Name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("volume %q: %w: its disk file %s is gone; restore a snapshot", volume, snapshot.ErrLost, path)
	case errors.Is(err, diskfile.ErrNotRegular):
		return precondition("volume %q: %s is not a regular file: move it away, and put the disk file of the volume back", volume, path)
	case errors.Is(err, unix.EROFS):
		return fmt.Errorf("volume %q is wanted read-write: %w: run btrfs property set %s ro false; or mount the volume read-only", volume, snapshot.ErrMadeReadOnly, subvolume)
	}
	return fmt.Errorf("volume %q: %w", volume, err)
}

func (d *disk) find(place mount.Place) (err error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(d.file.Fd()), &st); err != nil {
		return &fs.PathError{Op: "stat", Path: d.file.Name(), Err: err}
	}
	if st.Dev != place.Device {
		return fmt.Errorf("%w: another filesystem has taken its place", pool.ErrAway)
	}
	d.device, err = loop.Find(d.file)
	return err
}

func (d *disk) close() {
	if d == nil {
		return
	}
	d.file.Close()
	if d.device != nil {
		d.device.Close()
	}
}

// mounts returns where the device of the disk, or the filesystem on it, is mounted.
func (d *disk) mounts(content meta.Content) (points []string, err error) {
	if d.device == nil {
		return nil, nil
	}
	if content != meta.Block {
		on, err := mount.On(d.device.Number())
		for _, m := range on {
			points = append(points, m.Point)
		}
		return points, err
	}
	inside, err := mount.Inside(d.device.Path())
	for _, m := range inside {
		points = append(points, m.Point)
	}
	return points, err
}

// filesystemOptions are the mount options of each filesystem. What a pod deletes is given back
// to the pool. A clone of an xfs has the UUID of its source, with which xfs is mounted once
// only, unless it does not look.
var filesystemOptions = map[meta.Content][]string{
	meta.Ext4: {"discard"},
	meta.XFS:  {"discard", "nouuid"},
}

// openDisk opens the disk file, unless the volume contains files. The caller closes b.disk.
func (b *binding) openDisk(write bool) (err error) {
	if !b.content.IsDisk() {
		return nil
	}
	if b.disk, err = openDisk(b.volume, b.subvolume, b.place, write); err != nil {
		return err
	}
	if is, err := b.disk.file.Stat(); err != nil {
		return err
	} else if is.Size() < b.size {
		return precondition("volume %q: its disk file has %d bytes, its size is %d: run btrfs-csi check --repair, or restore a snapshot", b.volume, is.Size(), b.size)
	}
	b.place, b.source = mount.Place{}, nil
	if b.disk.device != nil {
		err = b.showDevice()
	}
	return err
}

// openDiskFor is openDisk for a mount. Only the device of a block volume is read-only: a
// filesystem may have to write its journal before it is mounted read-only.
func (b *binding) openDiskFor(u use) error {
	wanted := b.content == meta.Block && u.readOnlyMode
	if err := b.openDisk(!wanted); err != nil || b.disk == nil || b.disk.device == nil {
		return err
	}
	readOnly, err := b.disk.device.IsReadOnly()
	if err == nil && readOnly != wanted {
		err = answer(codes.AlreadyExists, "volume %q: its device %s is read-only: %t, wanted: %t: unstage it first", b.volume, b.disk.device.Path(), readOnly, wanted)
	}
	return err
}

// attachDisk gives the disk file of the volume a device, unless it has one. Until it is kept the
// device ends with its last user.
func (b *binding) attachDisk() (err error) {
	if b.disk == nil || b.disk.device != nil {
		return nil
	}
	if b.disk.device, err = loop.Attach(b.disk.file); err != nil {
		return fmt.Errorf("volume %q: %w", b.volume, err)
	}
	return b.showDevice()
}

// showDevice makes the device what is mounted.
func (b *binding) showDevice() (err error) {
	device := b.disk.device
	if b.content != meta.Block {
		b.source = mount.Disk(device.Path(), b.content.Filesystem(), filesystemOptions[b.content]...)
		b.place = mount.Place{Device: device.Number()} // its root may have any inode number
		return nil
	}
	b.source = mount.Path(device.Path())
	if b.place, err = mount.PlaceAt(device.Path()); err != nil {
		return err
	}
	b.flags = b.asked.Over(b.place.Flags &^ mount.ReadOnly)
	return nil
}

// keepDevice makes the device of a staged block volume stay: nobody has it open until a pod does.
func (b *binding) keepDevice() error {
	if b.content != meta.Block {
		return nil
	}
	return b.disk.device.Keep()
}

// deviceName is the name of the mount of the device in the staging directory of a block volume.
const deviceName = "device"

// staged returns the target that is mounted when the volume is staged.
func (b *binding) staged(staging mount.Target) mount.Target {
	if b.content == meta.Block {
		return staging.Child(deviceName)
	}
	return staging
}

// prepareStaging makes the staging target ready for the mount.
func (s *node) prepareStaging(b *binding, at mount.Target) error {
	if b.content != meta.Block {
		return at.CheckEmptyDir()
	}
	_, err := at.EnsureFile()
	return err
}

// dropStale removes what a block volume has left in its staging directory: after a crash or a
// reboot the device that is mounted there may be nobody's, or another volume's.
func (s *node) dropStale(b *binding, at mount.Target) error {
	if b.content != meta.Block {
		return nil
	}
	return s.dropDevices(at, func(device uint64) bool {
		id, _ := volumeOfDevice(device)
		return id != b.volume
	})
}

// dropDevices unmounts block devices at a target, while which is true for the top one.
func (s *node) dropDevices(at mount.Target, which func(device uint64) bool) error {
	for range mostMounts {
		_, isMount, err := at.Top()
		if err != nil || !isMount {
			return err
		}
		device, err := at.BlockDevice()
		if err != nil || device == 0 || !which(device) {
			return err
		}
		if err := s.detach(at); err != nil {
			return err
		}
	}
	return nil
}

// unstageDevice detaches the device of a staged block volume, and removes its mount from the
// staging directory. Nothing of it there is no error. The device is detached first: what a crash
// leaves after that is found by the mount.
func (s *node) unstageDevice(volume string, staging mount.Target) error {
	at := staging.Child(deviceName)
	top, isMount, err := at.Top()
	if err != nil {
		return err
	}
	if isMount {
		device, err := at.BlockDevice()
		if err != nil {
			return err
		}
		if device == 0 {
			return precondition("volume %q: something else is mounted at %q: %s: unmount it by hand", volume, at.Path(), top)
		}
		if id, _ := volumeOfDevice(device); id == volume {
			if err := detachDevice(volume, device, at); err != nil {
				return err
			}
		}
		if err := s.dropDevices(at, func(uint64) bool { return true }); err != nil {
			return err
		}
	}
	return at.Remove()
}

// detachDevice detaches a device that is mounted at a staging target and nowhere else.
func detachDevice(volume string, number uint64, at mount.Target) error {
	device, err := loop.Open(number)
	if err != nil {
		return err
	}
	mounts, err := mount.Inside(device.Path())
	for _, m := range mounts {
		if m.Point != at.Path() {
			err = precondition("volume %q: its device %s is published at %s: unpublish it first", volume, device.Path(), m.Point)
		}
	}
	if err != nil {
		device.Close()
		return err
	}
	return device.Detach()
}

// volumeOfDevice returns the ID of the volume whose disk file a loop device has; false for
// another device. It asks no pool.
func volumeOfDevice(number uint64) (id string, is bool) {
	name := loop.BackingName(number)
	if filepath.Base(name) != diskfile.Name {
		return "", false
	}
	return pool.VolumeAt(filepath.Dir(name))
}

// diskUsage returns the usage of the filesystem that is mounted at a path.
func (s *node) diskUsage(path string) ([]*csi.VolumeUsage, error) {
	at, err := s.target("volume_path", path)
	if err != nil {
		return nil, err
	}
	f, err := at.Open()
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &st); err != nil {
		return nil, &fs.PathError{Op: "statfs", Path: path, Err: err}
	}
	bytes := func(blocks uint64) int64 { return int64(blocks) * st.Bsize }
	return []*csi.VolumeUsage{
		{Unit: csi.VolumeUsage_BYTES, Total: bytes(st.Blocks), Used: bytes(st.Blocks - st.Bfree), Available: bytes(st.Bavail)},
		{Unit: csi.VolumeUsage_INODES, Total: int64(st.Files), Used: int64(st.Files - st.Ffree), Available: int64(st.Ffree)},
	}, nil
}

// blockUsage returns how much of a block volume has space in the pool: what was written and not
// discarded.
func (s *node) blockUsage(ctx context.Context, entry meta.Entry) ([]*csi.VolumeUsage, error) {
	b, err := s.locate(ctx, entry)
	if err != nil {
		return nil, err
	}
	err = b.openDisk(false)
	defer b.disk.close()
	if err != nil {
		return nil, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(b.disk.file.Fd()), &st); err != nil {
		return nil, &fs.PathError{Op: "stat", Path: b.disk.file.Name(), Err: err}
	}
	used := min(st.Blocks*512, entry.Size)
	return []*csi.VolumeUsage{{Unit: csi.VolumeUsage_BYTES, Total: entry.Size, Used: used, Available: entry.Size - used}}, nil
}
