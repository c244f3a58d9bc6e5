package driver

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"k8s.io/klog/v2"

	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
	"github.com/btrfs-csi/btrfs-csi/pkg/mount"
	"github.com/btrfs-csi/btrfs-csi/pkg/pool"
	"github.com/btrfs-csi/btrfs-csi/pkg/snapshot"
)

// mostMounts is the number of unmounts at one path after which the driver gives up.
const mostMounts = 100

// node is the CSI node service.
type node struct {
	csi.UnimplementedNodeServer
	*Driver
}

func (s *node) NodeGetCapabilities(context.Context, *csi.NodeGetCapabilitiesRequest) (*csi.NodeGetCapabilitiesResponse, error) {
	response := &csi.NodeGetCapabilitiesResponse{}
	for _, t := range []csi.NodeServiceCapability_RPC_Type{
		csi.NodeServiceCapability_RPC_STAGE_UNSTAGE_VOLUME,
		csi.NodeServiceCapability_RPC_GET_VOLUME_STATS,
		csi.NodeServiceCapability_RPC_EXPAND_VOLUME,
		csi.NodeServiceCapability_RPC_SINGLE_NODE_MULTI_WRITER,
		csi.NodeServiceCapability_RPC_GET_VOLUME_HEALTH,
		csi.NodeServiceCapability_RPC_GET_STORAGE_HEALTH,
	} {
		response.Capabilities = append(response.Capabilities, &csi.NodeServiceCapability{
			Type: &csi.NodeServiceCapability_Rpc{Rpc: &csi.NodeServiceCapability_RPC{Type: t}},
		})
	}
	return response, nil
}

func (s *node) NodeGetInfo(context.Context, *csi.NodeGetInfoRequest) (*csi.NodeGetInfoResponse, error) {
	segments := map[string]string{}
	for _, id := range s.reportPools() {
		segments[TopologyPrefix+id] = TopologyValue
	}
	return &csi.NodeGetInfoResponse{NodeId: s.options.NodeID, AccessibleTopology: &csi.Topology{Segments: segments}}, nil
}

func (s *node) NodeStageVolume(ctx context.Context, request *csi.NodeStageVolumeRequest) (*csi.NodeStageVolumeResponse, error) {
	if err := required("volume_id", request.GetVolumeId()); err != nil {
		return nil, err
	}
	u, err := newUse(request.GetVolumeCapability(), false, true)
	if err != nil {
		return nil, err
	}
	at, err := s.target("staging_target_path", request.GetStagingTargetPath())
	if err != nil {
		return nil, err
	}
	release, err := s.lock(ctx, volumeLock(request.GetVolumeId()), pathLock(at.Path()))
	if err != nil {
		return nil, err
	}
	defer release()
	b, err := s.bindingOf(ctx, request.GetVolumeId(), u, request.GetVolumeContext())
	if err != nil {
		return nil, err
	}
	defer b.disk.close()
	if err := s.stage(ctx, &b, b.staged(at)); err != nil {
		return nil, err
	}
	return &csi.NodeStageVolumeResponse{}, nil
}

// stage mounts the volume at a target, unless it is there already.
func (s *node) stage(ctx context.Context, b *binding, at mount.Target) error {
	if err := s.dropStale(b, at); err != nil {
		return err
	}
	there, err := b.isAt(at)
	if err != nil {
		return err
	}
	if !there {
		if err := s.prepareStaging(b, at); err != nil {
			return err
		}
		if err := b.attachDisk(); err != nil {
			return err
		}
		if err := s.bind(ctx, *b, at); err != nil {
			return err
		}
		klog.FromContext(ctx).Info("Volume staged", "volumeID", b.volume, "path", at.Path(), "flags", b.flags)
	}
	return b.keepDevice()
}

// NodeUnstageVolume keeps the directory, because the CO owns it.
func (s *node) NodeUnstageVolume(ctx context.Context, request *csi.NodeUnstageVolumeRequest) (*csi.NodeUnstageVolumeResponse, error) {
	at, err := s.unmount(ctx, request.GetVolumeId(), "staging_target_path", request.GetStagingTargetPath(), s.unstageDevice)
	if err != nil {
		return nil, err
	}
	klog.FromContext(ctx).Info("Volume unstaged", "volumeID", request.GetVolumeId(), "path", at.Path())
	return &csi.NodeUnstageVolumeResponse{}, nil
}

// NodePublishVolume mounts from the pool, or the device of its disk file, because somebody may have changed the mount at
// the staging path. It only checks that the volume is staged, as CSI requires.
func (s *node) NodePublishVolume(ctx context.Context, request *csi.NodePublishVolumeRequest) (*csi.NodePublishVolumeResponse, error) {
	u, at, staging, err := s.parsePublish(request)
	if err != nil {
		return nil, err
	}
	release, err := s.lock(ctx, volumeLock(request.GetVolumeId()), pathLock(at.Path()))
	if err != nil {
		return nil, err
	}
	defer release()
	b, err := s.bindingOf(ctx, request.GetVolumeId(), u, request.GetVolumeContext())
	if err != nil {
		return nil, err
	}
	defer b.disk.close()
	if err := b.checkStaged(b.staged(staging)); err != nil {
		return nil, err
	}
	if there, err := b.isAt(at); there || err != nil {
		return &csi.NodePublishVolumeResponse{}, err
	}
	if err := b.checkWritable(); err != nil {
		return nil, err
	}
	if err := s.checkSingleTarget(b, u, b.staged(staging)); err != nil {
		return nil, err
	}
	if err := s.publish(ctx, b, at); err != nil {
		return nil, err
	}
	klog.FromContext(ctx).Info("Volume published", "volumeID", b.volume, "path", at.Path(), "flags", b.flags)
	return &csi.NodePublishVolumeResponse{}, nil
}

func (s *node) parsePublish(request *csi.NodePublishVolumeRequest) (u use, at, staging mount.Target, err error) {
	if err = required("volume_id", request.GetVolumeId()); err != nil {
		return u, at, staging, err
	}
	if at, err = s.target("target_path", request.GetTargetPath()); err != nil {
		return u, at, staging, err
	}
	if u, err = newUse(request.GetVolumeCapability(), request.GetReadonly(), true); err != nil {
		return u, at, staging, err
	}
	if request.GetStagingTargetPath() == "" {
		return u, at, staging, precondition("staging_target_path is not set: stage the volume first")
	}
	staging, err = s.target("staging_target_path", request.GetStagingTargetPath())
	return u, at, staging, err
}

// publish creates the target and mounts the volume. After a failure it removes the target
// that it has created.
func (s *node) publish(ctx context.Context, b binding, at mount.Target) error {
	ensure := at.EnsureDir
	if b.content == meta.Block {
		ensure = at.EnsureFile
	}
	made, err := ensure()
	if err == nil {
		err = s.bind(ctx, b, at)
	}
	if err != nil && made {
		return undone(err, at.Remove())
	}
	return err
}

func (s *node) NodeUnpublishVolume(ctx context.Context, request *csi.NodeUnpublishVolumeRequest) (*csi.NodeUnpublishVolumeResponse, error) {
	at, err := s.unmount(ctx, request.GetVolumeId(), "target_path", request.GetTargetPath(),
		func(_ string, at mount.Target) error { return at.Remove() })
	if err != nil {
		return nil, err
	}
	klog.FromContext(ctx).Info("Volume unpublished", "volumeID", request.GetVolumeId(), "path", at.Path())
	return &csi.NodeUnpublishVolumeResponse{}, nil
}

// unmount unmounts a volume, even if the engine does not know it, and then calls then.
func (s *node) unmount(ctx context.Context, volume, field, path string, then func(volume string, at mount.Target) error) (mount.Target, error) {
	if err := required("volume_id", volume); err != nil {
		return mount.Target{}, err
	}
	at, err := s.target(field, path)
	if err != nil {
		return at, err
	}
	release, err := s.lock(ctx, volumeLock(volume), pathLock(at.Path()))
	if err != nil {
		return at, err
	}
	defer release()
	if err := at.Check(); err != nil {
		return at, err
	}
	if err := s.unbind(volume, at); err != nil {
		return at, err
	}
	return at, then(volume, at)
}

func (s *node) NodeGetVolumeStats(ctx context.Context, request *csi.NodeGetVolumeStatsRequest) (*csi.NodeGetVolumeStatsResponse, error) {
	entry, err := s.volumeAt(ctx, request.GetVolumeId(), request.GetVolumePath())
	if err != nil {
		return nil, err
	}
	var usage []*csi.VolumeUsage
	switch {
	case entry.Content == meta.Block:
		usage, err = s.blockUsage(ctx, entry)
	case entry.Content.IsDisk():
		usage, err = s.diskUsage(request.GetVolumePath())
	default:
		usage, err = s.usage(ctx, entry)
	}
	if err != nil {
		return nil, err
	}
	return &csi.NodeGetVolumeStatsResponse{Usage: usage}, nil
}

// usage returns the usage of the volume. Without quota it returns the usage of the pool.
// btrfs has no limit of inodes, so the result contains none.
func (s *node) usage(ctx context.Context, entry meta.Entry) ([]*csi.VolumeUsage, error) {
	room, err := s.engine.Room(ctx, entry.Ref())
	if err != nil {
		return nil, err
	}
	usage, err := s.engine.Usage(ctx, entry.Ref())
	if errors.Is(err, pool.ErrNoQuota) {
		return []*csi.VolumeUsage{{
			Unit: csi.VolumeUsage_BYTES, Total: room.Size, Used: max(0, room.Size-room.Available), Available: max(0, room.Available),
		}}, nil
	}
	if err != nil {
		return nil, err
	}
	return []*csi.VolumeUsage{{
		Unit: csi.VolumeUsage_BYTES, Total: entry.Size, Used: usage.Used, Available: max(0, min(entry.Size-usage.Used, room.Available)),
	}}, nil
}

func (s *node) NodeExpandVolume(ctx context.Context, request *csi.NodeExpandVolumeRequest) (*csi.NodeExpandVolumeResponse, error) {
	size, err := expansion(request.GetCapacityRange(), request.GetVolumeCapability())
	if err != nil {
		return nil, err
	}
	entry, err := s.volumeAt(ctx, request.GetVolumeId(), request.GetVolumePath())
	if err != nil {
		return nil, err
	}
	if size != (snapshot.Range{}) {
		if entry, err = s.engine.Resize(ctx, entry.ID, size); err != nil {
			return nil, err
		}
	}
	return &csi.NodeExpandVolumeResponse{CapacityBytes: entry.Size}, nil
}

// volumeAt returns the volume that is mounted at a path. Another mount there is NOT_FOUND,
// as CSI requires.
func (s *node) volumeAt(ctx context.Context, volume, path string) (meta.Entry, error) {
	if err := required("volume_id", volume); err != nil {
		return meta.Entry{}, err
	}
	if err := required("volume_path", path); err != nil {
		return meta.Entry{}, err
	}
	entry, err := s.engine.Stat(ctx, meta.Volume(volume))
	if err != nil {
		return entry, err
	}
	b, err := s.locate(ctx, entry)
	if err != nil {
		return entry, err
	}
	err = b.openDisk(false)
	defer b.disk.close()
	if err != nil {
		return entry, err
	}
	at, err := s.target("volume_path", path)
	if err == nil {
		var have mount.Place
		if have, err = at.Place(); err == nil && b.is(have) {
			return entry, nil
		}
	}
	if err != nil {
		return entry, answer(codes.NotFound, "volume %q is not mounted at %q: %s", volume, path, plain(err))
	}
	return entry, answer(codes.NotFound, "volume %q is not what is at %q", volume, path)
}

// use describes how a volume is to be mounted.
type use struct {
	content      wanted
	readOnlyMode bool // the access mode does not allow writes
	singleTarget bool // only one target path at a time is allowed
	flags        mount.Flags
}

// newUse checks a capability for mounting; see checkCapability for readOnlyMany.
func newUse(capability *csi.VolumeCapability, readOnly, readOnlyMany bool) (use, error) {
	if err := checkCapability(capability, readOnlyMany); err != nil {
		return use{}, err
	}
	if capability.GetMount().GetVolumeMountGroup() != "" {
		return use{}, invalid("volume_mount_group is not supported; leave it out")
	}
	if capability.GetBlock() != nil && readOnly && !readOnlyMode(capability) {
		return use{}, invalid("a block volume with access mode %s cannot be published read-only, since a mount keeps nobody from writing to a device: use a read-only access mode", capability.GetAccessMode().GetMode())
	}
	flags, err := mount.ParseFlags(mountOptions(capability, readOnly))
	return use{
		content:      wantedContent(capability),
		readOnlyMode: readOnlyMode(capability),
		singleTarget: capability.GetAccessMode().GetMode() == csi.VolumeCapability_AccessMode_SINGLE_NODE_SINGLE_WRITER,
		flags:        flags,
	}, err
}

// binding is a volume and the properties of its mount.
type binding struct {
	volume    string
	subvolume string // path
	content   meta.Content
	size      int64
	disk      *disk // nil for files
	source    mount.Source
	place     mount.Place // of what is mounted; zero for a disk without a device. Inode 0 stands for any
	asked     mount.Flags // flags of the request
	flags     mount.Flags // flags of the new mount
	// madeReadOnly says how to make the volume writable again. It is empty for a writable
	// volume.
	madeReadOnly string
}

// bindingOf looks up a volume and determines the flags of its mount. The caller closes b.disk.
func (s *node) bindingOf(ctx context.Context, volume string, u use, volumeContext map[string]string) (binding, error) {
	entry, err := s.engine.Stat(ctx, meta.Volume(volume))
	if err != nil {
		return binding{}, err
	}
	if entry.Kind.ReadOnly() && !u.readOnlyMode {
		return binding{}, readOnlyView(entry)
	}
	if err := checkContext(volumeContext, entry); err != nil {
		return binding{}, precondition("%s", plain(err))
	}
	if err := u.content.fits(entry); err != nil {
		return binding{}, precondition("%s", plain(err))
	}
	b, err := s.locate(ctx, entry)
	if err != nil {
		return b, err
	}
	b.asked = u.flags
	if b.place.Flags.ReadOnly() && !u.flags.ReadOnly() {
		return b, fmt.Errorf("volume %q is wanted read-write: pool %q: %w: remount it read-write, or mount the volume read-only", volume, entry.Pool, pool.ErrReadOnly)
	}
	b.flags = u.flags.Over(b.place.Flags)
	if err := b.openDiskFor(u); err != nil {
		b.disk.close()
		return b, err
	}
	return b, nil
}

// locate returns a binding of a volume without flags, as if it contained files.
func (s *node) locate(ctx context.Context, entry meta.Entry) (binding, error) {
	source, err := s.engine.Mounts(ctx, entry.ID)
	if err != nil {
		return binding{}, err
	}
	b := binding{volume: entry.ID, subvolume: source.Source, content: entry.Content, size: entry.Size, source: mount.Path(source.Source), madeReadOnly: source.MadeReadOnly}
	b.place, err = mount.PlaceAt(source.Source)
	return b, err
}

// is reports whether a place is what the volume shows when it is mounted.
func (b binding) is(p mount.Place) bool {
	return b.place.Device != 0 && p.Device == b.place.Device && (b.place.Inode == 0 || p.Inode == b.place.Inode)
}

// isAt reports whether the volume is mounted at a target with the right flags. It returns
// an error if something else is mounted there, or the volume with other flags.
func (b binding) isAt(at mount.Target) (bool, error) {
	have, err := at.Place()
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	top, isMount, err := at.Top()
	switch {
	case err != nil || !isMount:
		return false, err
	case !b.is(have):
		return false, precondition("volume %q: something else is mounted at %q: %s: unmount it", b.volume, at.Path(), top)
	case have.Flags&(b.asked|mount.ReadOnly) != b.asked: // other flags come from the pool at the time of the mount
		return false, answer(codes.AlreadyExists, "volume %q is mounted at %q with %s, wanted %s: unpublish it first", b.volume, at.Path(), have.Flags, b.flags)
	}
	return true, nil
}

// checkStaged returns FAILED_PRECONDITION unless the volume is mounted at its staging path.
func (b binding) checkStaged(staging mount.Target) error {
	have, err := staging.Place()
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err != nil || !b.is(have) {
		return precondition("volume %q is not mounted at its staging path %q: stage it first", b.volume, staging.Path())
	}
	return nil
}

// checkWritable returns an error for a read-write mount of a volume whose root somebody has
// made read-only. A read-only mount is allowed.
func (b binding) checkWritable() error {
	if b.madeReadOnly == "" || b.asked.ReadOnly() {
		return nil
	}
	return fmt.Errorf("volume %q is wanted read-write: %w: %s; or mount the volume read-only", b.volume, snapshot.ErrMadeReadOnly, b.madeReadOnly)
}

// checkSingleTarget returns FAILED_PRECONDITION if a volume with a single target is
// published at another one. CSI wants the same for SINGLE_NODE_WRITER, but older kubelets
// use that for ReadWriteOnce, which any number of pods of a node may share.
func (s *node) checkSingleTarget(b binding, u use, staging mount.Target) error {
	if !u.singleTarget {
		return nil
	}
	points, err := b.mounts()
	if err != nil {
		return err
	}
	for _, point := range points {
		if point != staging.Path() && s.targets.Contain(point) {
			return precondition("volume %q has access mode SINGLE_NODE_SINGLE_WRITER and is published at %q: unpublish it there first", b.volume, point)
		}
	}
	return nil
}

// mounts returns where the volume is mounted.
func (b binding) mounts() (points []string, err error) {
	if b.disk != nil {
		return b.disk.mounts(b.content)
	}
	inside, err := mount.Inside(b.subvolume)
	for _, m := range inside {
		if m.Rel == "" {
			points = append(points, m.Point)
		}
	}
	return points, err
}

// bind mounts a volume and verifies the result. If that fails it unmounts the volume.
func (s *node) bind(ctx context.Context, b binding, at mount.Target) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	err := s.attach(b.source, b.flags, at)
	if err == nil {
		err = b.prove(at)
	}
	if err != nil {
		return undone(fmt.Errorf("mount volume %q at %q: %w", b.volume, at.Path(), err), s.unbind(b.volume, at))
	}
	return nil
}

// prove returns an error unless the volume is mounted at the target with its flags.
func (b binding) prove(at mount.Target) error {
	have, err := at.Place()
	if err != nil {
		return err
	}
	if !b.is(have) {
		return fmt.Errorf("something else is there after the mount: device %d, inode %d", have.Device, have.Inode)
	}
	if have.Flags != b.flags {
		return fmt.Errorf("it has %s, wanted %s", have.Flags, b.flags)
	}
	return nil
}

// unbind removes all mounts of a volume at a target, but no directory. Another mount there
// is an error.
func (s *node) unbind(volume string, at mount.Target) error {
	for range mostMounts {
		top, isMount, err := at.Top()
		if err != nil || !isMount {
			return err
		}
		if id, is := volumeMounted(top, at); !is || id != volume {
			return precondition("volume %q: something else is mounted at %q: %s: unmount it by hand", volume, at.Path(), top)
		}
		if err := s.detach(at); err != nil {
			return fmt.Errorf("volume %q stays mounted: %w", volume, err)
		}
	}
	return fmt.Errorf("volume %q stays mounted at %q: unmounted %d times in vain", volume, at.Path(), mostMounts)
}

// undone adds the error of a failed undo to its cause, as ErrUnfinished. The kubelet cleans
// up after ABORTED, but not after most other codes.
func undone(cause, undo error) error {
	if undo == nil {
		return cause
	}
	return fmt.Errorf("%w: %s; and it could not be undone: %s", snapshot.ErrUnfinished, plain(cause), plain(undo))
}
