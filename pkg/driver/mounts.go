package driver

import (
	"errors"
	"fmt"

	"github.com/btrfs-csi/btrfs-csi/pkg/mount"
	"github.com/btrfs-csi/btrfs-csi/pkg/pool"
)

// fsType is the filesystem of every volume.
const fsType = "btrfs"

// target returns the place where the kubelet wants a volume. field names it in the answer.
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

// volumeOfMount returns the ID of the volume that is mounted, false for anything else. It
// goes by names alone and asks no pool: a volume has to be unmounted also when its pool is
// away, does not answer, or does not know it any more.
func volumeOfMount(m mount.Info) (id string, is bool) {
	if m.Type != fsType {
		return "", false
	}
	return pool.VolumeAt(m.Root)
}
