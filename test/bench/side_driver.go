package main

import (
	"context"
	"os"
	"sync/atomic"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/btrfs-csi/btrfs-csi/test/testkit"
)

// driver is btrfs-csi as it is deployed.
type driver struct {
	*testkit.Driver
	size atomic.Int64 // the last size that a volume was expanded to
}

// openDriver returns an opener that starts the driver of a binary.
func openDriver(binary string) opener {
	return func(ctx context.Context, r *rig) (side, error) { return startDriver(ctx, r, binary) }
}

func startDriver(ctx context.Context, r *rig, binary string) (*driver, error) {
	process, err := r.Start(ctx, r.Command(binary, "--quota="+string(r.quota)))
	if err != nil {
		return nil, err
	}
	d := &driver{Driver: process}
	d.size.Store(volumeSize)
	return d, nil
}

func (d *driver) close() error { return d.End(os.Interrupt) }

func (d *driver) operations() map[string]operation {
	return map[string]operation{
		opCreate:        func(ctx context.Context, i int) error { return d.create(ctx, volumeName(i), nil, testkit.Writer) },
		opSnapshot:      func(ctx context.Context, i int) error { return d.snapshot(ctx, i, i) },
		opSnapshotAgain: func(ctx context.Context, i int) error { return d.snapshot(ctx, i, 0) },
		opClone: func(ctx context.Context, i int) error {
			return d.create(ctx, cloneName(i), testkit.FromVolume(volumeName(i)), testkit.Writer)
		},
		opRestore: func(ctx context.Context, i int) error {
			return d.create(ctx, restoredName(i), testkit.FromSnapshot(snapshotName(i)), testkit.Writer)
		},
		opView: func(ctx context.Context, i int) error {
			return d.create(ctx, viewName(i), testkit.FromSnapshot(snapshotName(i)), testkit.Reader)
		},
		opDelete:         func(ctx context.Context, i int) error { return d.delete(ctx, cloneName(i)) },
		opDeleteSnapshot: d.deleteSnapshot,
		opExpand:         d.expand,
		opStats:          d.stats,
		opList: func(ctx context.Context, _ int) error {
			_, err := d.ListVolumes(ctx, &csi.ListVolumesRequest{})
			return err
		},
		opPublish: func(ctx context.Context, i int) error {
			if i > 0 {
				return nil
			}
			_, err := d.Mount(ctx, volumeName(0), testkit.Writer)
			return err
		},
		opTidy:  d.tidy,
		opClear: d.clear,
	}
}

// create creates a volume. A copy has the size of its source.
func (d *driver) create(ctx context.Context, name string, source *csi.VolumeContentSource, capability *csi.VolumeCapability) error {
	request := &csi.CreateVolumeRequest{Name: name, VolumeCapabilities: []*csi.VolumeCapability{capability}, VolumeContentSource: source}
	if source == nil {
		request.CapacityRange = &csi.CapacityRange{RequiredBytes: volumeSize}
	}
	_, err := d.CreateVolume(ctx, request)
	return err
}

func (d *driver) snapshot(ctx context.Context, i, of int) error {
	_, err := d.CreateSnapshot(ctx, &csi.CreateSnapshotRequest{Name: snapshotName(i), SourceVolumeId: volumeName(of)})
	return err
}

func (d *driver) delete(ctx context.Context, volume string) error {
	_, err := d.DeleteVolume(ctx, &csi.DeleteVolumeRequest{VolumeId: volume})
	return err
}

func (d *driver) deleteSnapshot(ctx context.Context, i int) error {
	_, err := d.DeleteSnapshot(ctx, &csi.DeleteSnapshotRequest{SnapshotId: snapshotName(i)})
	return err
}

// expand expands the volume to a size that no volume had before, so that there is always something to
// do.
func (d *driver) expand(ctx context.Context, i int) error {
	_, err := d.ControllerExpandVolume(ctx, &csi.ControllerExpandVolumeRequest{
		VolumeId: volumeName(i), VolumeCapability: testkit.Writer,
		CapacityRange: &csi.CapacityRange{RequiredBytes: d.size.Add(1 << 20)},
	})
	return err
}

func (d *driver) stats(ctx context.Context, _ int) error {
	_, err := d.NodeGetVolumeStats(ctx, &csi.NodeGetVolumeStatsRequest{VolumeId: volumeName(0), VolumePath: d.Target(volumeName(0))})
	return err
}

func (d *driver) tidy(ctx context.Context, i int) error {
	for _, name := range copyNames(i) {
		if err := d.delete(ctx, name); err != nil {
			return err
		}
	}
	return nil
}

func (d *driver) clear(ctx context.Context, i int) error {
	if i == 0 {
		if err := d.Unmount(ctx, volumeName(0)); err != nil {
			return err
		}
	}
	if err := d.tidy(ctx, i); err != nil {
		return err
	}
	if err := d.delete(ctx, volumeName(i)); err != nil {
		return err
	}
	return d.deleteSnapshot(ctx, i)
}
