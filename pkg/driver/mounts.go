package driver

import (
	"errors"
	"fmt"

	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
	"github.com/btrfs-csi/btrfs-csi/pkg/mount"
	"github.com/btrfs-csi/btrfs-csi/pkg/pool"
)

// target returns the target at a path. field is the name of the request field for errors.
func (d *Driver) target(field, path string) (mount.Target, error) {
	if err := required(field, path); err != nil {
		return mount.Target{}, err
	}
	at, err := d.targets.Parse(path)
	if errors.Is(err, mount.ErrOutside) {
		return at, fmt.Errorf("%s %q: %w: set the driver's kubelet directory to the kubelet's --root-dir", field, path, err)
	}
	if err != nil {
		return at, fmt.Errorf("%s %q: %w", field, path, err)
	}
	return at, nil
}

// volumeOfMount returns the ID of a mounted volume, or false for another mount. It uses
// only names and asks no pool: a volume must be unmounted even if its pool is absent,
// silent, or has lost the volume. device is the block device that the mount shows, 0 for
// none.
func volumeOfMount(m mount.Info, device uint64) (id string, is bool) {
	switch {
	case m.Type == meta.Files.Filesystem():
		return pool.VolumeAt(m.Root)
	case device != 0:
		return volumeOfDevice(device)
	}
	return volumeOfDevice(m.Device)
}

// volumeMounted returns the ID of the volume that is mounted at a target as m.
func volumeMounted(m mount.Info, at mount.Target) (id string, is bool) {
	if id, is = volumeOfMount(m, 0); is {
		return id, true
	}
	device, err := at.BlockDevice()
	if err != nil || device == 0 {
		return "", false
	}
	return volumeOfMount(m, device)
}
