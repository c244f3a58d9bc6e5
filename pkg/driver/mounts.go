package driver

import (
	"errors"
	"fmt"

	"github.com/btrfs-csi/btrfs-csi/pkg/mount"
	"github.com/btrfs-csi/btrfs-csi/pkg/pool"
)

// fsType is the filesystem of every volume.
const fsType = "btrfs"

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
// silent, or has lost the volume.
func volumeOfMount(m mount.Info) (id string, is bool) {
	if m.Type != fsType {
		return "", false
	}
	return pool.VolumeAt(m.Root)
}
