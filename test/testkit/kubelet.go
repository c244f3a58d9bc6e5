package testkit

import (
	"context"
	"os"
	"path/filepath"

	"github.com/container-storage-interface/spec/lib/go/csi"
)

// Capability returns the capability of a mounted volume with an access mode.
func Capability(mode csi.VolumeCapability_AccessMode_Mode, mountFlags ...string) *csi.VolumeCapability {
	return &csi.VolumeCapability{
		AccessType: &csi.VolumeCapability_Mount{Mount: &csi.VolumeCapability_MountVolume{MountFlags: mountFlags}},
		AccessMode: &csi.VolumeCapability_AccessMode{Mode: mode},
	}
}

// The capabilities that most tests use.
var (
	Writer = Capability(csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER)
	Reader = Capability(csi.VolumeCapability_AccessMode_MULTI_NODE_READER_ONLY)
)

// The capabilities of volumes with a disk file.
var (
	Ext4  = diskCapability(&csi.VolumeCapability{AccessType: &csi.VolumeCapability_Mount{Mount: &csi.VolumeCapability_MountVolume{FsType: "ext4"}}})
	XFS   = diskCapability(&csi.VolumeCapability{AccessType: &csi.VolumeCapability_Mount{Mount: &csi.VolumeCapability_MountVolume{FsType: "xfs"}}})
	Block = diskCapability(&csi.VolumeCapability{AccessType: &csi.VolumeCapability_Block{Block: &csi.VolumeCapability_BlockVolume{}}})
)

func diskCapability(c *csi.VolumeCapability) *csi.VolumeCapability {
	c.AccessMode = &csi.VolumeCapability_AccessMode{Mode: csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER}
	return c
}

// FromSnapshot returns the content source of a restore.
func FromSnapshot(id string) *csi.VolumeContentSource {
	return &csi.VolumeContentSource{Type: &csi.VolumeContentSource_Snapshot{Snapshot: &csi.VolumeContentSource_SnapshotSource{SnapshotId: id}}}
}

// FromVolume returns the content source of a clone.
func FromVolume(id string) *csi.VolumeContentSource {
	return &csi.VolumeContentSource{Type: &csi.VolumeContentSource_Volume{Volume: &csi.VolumeContentSource_VolumeSource{VolumeId: id}}}
}

// Staging returns the staging path of a volume.
func (n Node) Staging(volume string) string { return filepath.Join(n.Kubelet, "staging-"+volume) }

// Target returns the target path of a volume for its only pod.
func (n Node) Target(volume string) string { return filepath.Join(n.Kubelet, "target-"+volume) }

// StageRequest returns the request by which the kubelet stages a volume.
func (n Node) StageRequest(volume string, capability *csi.VolumeCapability) *csi.NodeStageVolumeRequest {
	return &csi.NodeStageVolumeRequest{VolumeId: volume, StagingTargetPath: n.Staging(volume), VolumeCapability: capability}
}

// PublishRequest returns the request by which the kubelet publishes a staged volume.
func (n Node) PublishRequest(volume string, capability *csi.VolumeCapability) *csi.NodePublishVolumeRequest {
	return &csi.NodePublishVolumeRequest{
		VolumeId: volume, StagingTargetPath: n.Staging(volume), TargetPath: n.Target(volume), VolumeCapability: capability,
	}
}

// Stage creates the staging directory and stages a volume.
func (d *Driver) Stage(ctx context.Context, volume string, capability *csi.VolumeCapability) error {
	if err := os.MkdirAll(d.Staging(volume), 0o750); err != nil {
		return err
	}
	_, err := d.NodeStageVolume(ctx, d.StageRequest(volume, capability))
	return err
}

// Publish publishes a staged volume.
func (d *Driver) Publish(ctx context.Context, volume string, capability *csi.VolumeCapability) error {
	_, err := d.NodePublishVolume(ctx, d.PublishRequest(volume, capability))
	return err
}

// Unpublish undoes Publish.
func (d *Driver) Unpublish(ctx context.Context, volume string) error {
	_, err := d.NodeUnpublishVolume(ctx, &csi.NodeUnpublishVolumeRequest{VolumeId: volume, TargetPath: d.Target(volume)})
	return err
}

// Unstage undoes Stage.
func (d *Driver) Unstage(ctx context.Context, volume string) error {
	_, err := d.NodeUnstageVolume(ctx, &csi.NodeUnstageVolumeRequest{VolumeId: volume, StagingTargetPath: d.Staging(volume)})
	return err
}

// Mount stages and publishes a volume, and returns the target path.
func (d *Driver) Mount(ctx context.Context, volume string, capability *csi.VolumeCapability) (string, error) {
	if err := d.Stage(ctx, volume, capability); err != nil {
		return "", err
	}
	return d.Target(volume), d.Publish(ctx, volume, capability)
}

// Unmount undoes Mount. It succeeds if the volume is not mounted.
func (d *Driver) Unmount(ctx context.Context, volume string) error {
	if err := d.Unpublish(ctx, volume); err != nil {
		return err
	}
	return d.Unstage(ctx, volume)
}
