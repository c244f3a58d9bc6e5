package driver

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/bits"
	"slices"
	"strings"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/protobuf/types/known/timestamppb"
	"google.golang.org/protobuf/types/known/wrapperspb"
	"k8s.io/klog/v2"

	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
	"github.com/btrfs-csi/btrfs-csi/pkg/mount"
	"github.com/btrfs-csi/btrfs-csi/pkg/pool"
	"github.com/btrfs-csi/btrfs-csi/pkg/snapshot"
)

// controller is the CSI controller service for the volumes of this node.
type controller struct {
	csi.UnimplementedControllerServer
	*Driver
}

func (s *controller) ControllerGetCapabilities(context.Context, *csi.ControllerGetCapabilitiesRequest) (*csi.ControllerGetCapabilitiesResponse, error) {
	response := &csi.ControllerGetCapabilitiesResponse{}
	for _, t := range []csi.ControllerServiceCapability_RPC_Type{
		csi.ControllerServiceCapability_RPC_CREATE_DELETE_VOLUME,
		csi.ControllerServiceCapability_RPC_CREATE_DELETE_SNAPSHOT,
		csi.ControllerServiceCapability_RPC_CLONE_VOLUME,
		csi.ControllerServiceCapability_RPC_LIST_VOLUMES,
		csi.ControllerServiceCapability_RPC_LIST_SNAPSHOTS,
		csi.ControllerServiceCapability_RPC_GET_SNAPSHOT,
		csi.ControllerServiceCapability_RPC_GET_VOLUME,
		csi.ControllerServiceCapability_RPC_GET_CAPACITY,
		csi.ControllerServiceCapability_RPC_EXPAND_VOLUME,
		csi.ControllerServiceCapability_RPC_SINGLE_NODE_MULTI_WRITER,
		csi.ControllerServiceCapability_RPC_GET_VOLUME_HEALTH,
	} {
		response.Capabilities = append(response.Capabilities, &csi.ControllerServiceCapability{
			Type: &csi.ControllerServiceCapability_Rpc{Rpc: &csi.ControllerServiceCapability_RPC{Type: t}},
		})
	}
	return response, nil
}

func (s *controller) CreateVolume(ctx context.Context, request *csi.CreateVolumeRequest) (*csi.CreateVolumeResponse, error) {
	c, err := newCreation(request)
	if err != nil {
		return nil, err
	}
	create := s.engine.Prepare
	if c.view {
		create = s.engine.View
	}
	entry, err := create(ctx, c.spec, c.source)
	if err != nil {
		return nil, s.orElsewhere(ctx, c.source, err)
	}
	klog.FromContext(ctx).Info("Volume created", "volumeID", entry.ID, "pool", entry.Pool, "kind", entry.Kind, "size", entry.Size, "sourceID", entry.Source.ID)
	return &csi.CreateVolumeResponse{Volume: volumeOf(entry)}, nil
}

func (s *controller) DeleteVolume(ctx context.Context, request *csi.DeleteVolumeRequest) (*csi.DeleteVolumeResponse, error) {
	if err := required("volume_id", request.GetVolumeId()); err != nil {
		return nil, err
	}
	if err := s.Delete(ctx, meta.Volume(request.GetVolumeId())); err != nil {
		return nil, err
	}
	klog.FromContext(ctx).Info("Volume deleted", "volumeID", request.GetVolumeId())
	return &csi.DeleteVolumeResponse{}, nil
}

// Delete removes a snapshot, or a volume that is not mounted. It holds the lock of a volume
// from the check of the mount table to the removal, so that no mount comes in between. For
// a volume or snapshot of another node Delete fails: its absence here does not mean that it
// is gone.
func (d *Driver) Delete(ctx context.Context, ref meta.Ref) error {
	here := false
	if ref.Class == meta.Volumes {
		release, err := d.lock(ctx, volumeLock(ref.ID))
		if err != nil {
			return err
		}
		defer release()
		if here, err = d.checkUnused(ctx, ref.ID); err != nil {
			return err
		}
	}
	if !here {
		found, err := d.checkHere(ctx, ref)
		if err != nil {
			return err
		}
		if found && ref.Class == meta.Volumes {
			return fmt.Errorf("%s: %w: its pool has just come", ref, snapshot.ErrBusy) // checkUnused did not find it: it may be mounted
		}
		here = found
	}
	if here {
		if err := d.checkUnkept(ctx, ref); err != nil {
			return err
		}
	}
	err := d.engine.Remove(ctx, ref)
	if errors.Is(err, snapshot.ErrForgotten) && d.options.Cluster != nil {
		return nil // the cluster has confirmed that it is gone
	}
	return err
}

// checkUnused returns FAILED_PRECONDITION if the volume or a directory in it is mounted
// anywhere on the node, for example a volume of another driver that runs in it. Volumes of
// the same name in other pools do not count. here is true if the volume is on this node.
func (d *Driver) checkUnused(ctx context.Context, id string) (here bool, err error) {
	source, err := d.engine.Mounts(ctx, id)
	if errors.Is(err, snapshot.ErrNotFound) || errors.Is(err, snapshot.ErrForgotten) || errors.Is(err, snapshot.ErrLost) {
		return false, nil // no data is here
	}
	if err != nil {
		return false, err
	}
	mounts, err := mount.Inside(source.Source)
	if err != nil {
		return false, err
	}
	if len(mounts) > 0 {
		return false, precondition("volume %q is mounted at %s: delete the pods that use it, or unmount it, first", id, mounts[0].Point)
	}
	return true, checkDetached(id, source)
}

// checkDetached returns FAILED_PRECONDITION if the disk file of a volume has a device.
func checkDetached(id string, source snapshot.Mount) error {
	if !source.Content.IsDisk() {
		return nil
	}
	place, err := mount.PlaceAt(source.Source)
	if err != nil {
		return err
	}
	d, err := openDisk(id, source.Source, place, false)
	if errors.Is(err, snapshot.ErrLost) {
		return nil
	}
	if err != nil {
		return err
	}
	defer d.close()
	points, err := d.mounts(source.Content)
	switch {
	case err != nil:
		return err
	case len(points) > 0:
		return precondition("volume %q is mounted at %s: delete the pods that use it, or unmount it, first", id, points[0])
	case d.device != nil:
		return precondition("volume %q is attached to %s: unstage it first, or run losetup -d %s", id, d.device.Path(), d.device.Path())
	}
	return nil
}

func (s *controller) ValidateVolumeCapabilities(ctx context.Context, request *csi.ValidateVolumeCapabilitiesRequest) (*csi.ValidateVolumeCapabilitiesResponse, error) {
	if err := required("volume_id", request.GetVolumeId()); err != nil {
		return nil, err
	}
	if len(request.GetVolumeCapabilities()) == 0 {
		return nil, invalid("volume_capabilities are required")
	}
	entry, err := s.engine.Stat(ctx, meta.Volume(request.GetVolumeId()))
	if err != nil {
		return nil, err
	}
	if err := confirm(request, entry); err != nil {
		return &csi.ValidateVolumeCapabilitiesResponse{Message: plain(err)}, nil
	}
	return &csi.ValidateVolumeCapabilitiesResponse{Confirmed: &csi.ValidateVolumeCapabilitiesResponse_Confirmed{
		VolumeContext:      request.GetVolumeContext(),
		VolumeCapabilities: request.GetVolumeCapabilities(),
		Parameters:         request.GetParameters(),
	}}, nil
}

// confirm returns an error for the first requested property that the volume does not have.
func confirm(request *csi.ValidateVolumeCapabilitiesRequest, entry meta.Entry) error {
	if err := checkUses(request.GetVolumeCapabilities(), entry.Source); err != nil {
		return err
	}
	for _, capability := range request.GetVolumeCapabilities() {
		if err := wantedContent(capability).fits(entry); err != nil {
			return err
		}
	}
	if entry.Kind.ReadOnly() && !onlyReads(request.GetVolumeCapabilities()) {
		return readOnlyView(entry)
	}
	if err := checkContext(request.GetVolumeContext(), entry); err != nil {
		return err
	}
	if len(request.GetMutableParameters()) > 0 {
		return errors.New("mutable_parameters are not supported")
	}
	if len(request.GetParameters()) == 0 {
		return nil
	}
	want, err := volumeParameters(request.GetParameters())
	if err != nil {
		return err
	}
	if want.parameters != entry.Parameters || want.pool != "" && want.pool != entry.Pool {
		return fmt.Errorf("parameters %+v in pool %q wanted, the volume has %+v in pool %q", want.parameters, want.pool, entry.Parameters, entry.Pool)
	}
	return nil
}

// readOnlyView is the error for a request to write to a view.
func readOnlyView(entry meta.Entry) error {
	return precondition("volume %q is a read-only view of %s: use a read-only access mode, or make a volume of that snapshot with a writable one", entry.ID, entry.Source)
}

// contextPoolID is the key of the volume context. The value is the pool's ID and not its
// name, because the name may change and the context may not.
const contextPoolID = "poolID"

func volumeContext(entry meta.Entry) map[string]string {
	return map[string]string{contextPoolID: entry.PoolID}
}

// checkContext compares a volume context with the volume. It ignores keys of Kubernetes,
// which have a prefix.
func checkContext(have map[string]string, entry meta.Entry) error {
	want := volumeContext(entry)
	for _, key := range slices.Sorted(maps.Keys(have)) {
		if !strings.Contains(key, "/") && have[key] != want[key] {
			return fmt.Errorf("volume_context %s is %q, of this volume it is %q", key, have[key], want[key])
		}
	}
	return nil
}

func (s *controller) ListVolumes(ctx context.Context, request *csi.ListVolumesRequest) (*csi.ListVolumesResponse, error) {
	found, next, err := page(request.GetStartingToken(), request.GetMaxEntries(), func(after string, fn func(meta.Entry) bool) error {
		return s.engine.Walk(ctx, meta.Volumes, after, fn)
	})
	if err != nil {
		return nil, err
	}
	response := &csi.ListVolumesResponse{NextToken: next}
	for _, entry := range found {
		response.Entries = append(response.Entries, &csi.ListVolumesResponse_Entry{Volume: volumeOf(entry), Status: &csi.ListVolumesResponse_VolumeStatus{}})
	}
	return response, nil
}

func (s *controller) ControllerGetVolume(ctx context.Context, request *csi.ControllerGetVolumeRequest) (*csi.ControllerGetVolumeResponse, error) {
	if err := required("volume_id", request.GetVolumeId()); err != nil {
		return nil, err
	}
	entry, err := s.engine.Stat(ctx, meta.Volume(request.GetVolumeId()))
	if err != nil {
		return nil, err
	}
	return &csi.ControllerGetVolumeResponse{Volume: volumeOf(entry), Status: &csi.ControllerGetVolumeResponse_VolumeStatus{}}, nil
}

// GetCapacity returns 0 for what this node cannot provide, but the capacity of some pool
// for invalid parameters. With 0 on all nodes the scheduler would never call CreateVolume,
// which reports the invalid parameter.
func (s *controller) GetCapacity(ctx context.Context, request *csi.GetCapacityRequest) (*csi.GetCapacityResponse, error) {
	for _, capability := range request.GetVolumeCapabilities() {
		if checkCapability(capability, true) != nil {
			return &csi.GetCapacityResponse{}, nil
		}
	}
	options, err := volumeParameters(request.GetParameters())
	if pools := slices.Sorted(maps.Keys(s.engine.PoolIDs())); err != nil && len(pools) > 0 {
		options.pool = pools[0]
	}
	least := int64(snapshot.MinSize)
	for _, capability := range request.GetVolumeCapabilities() {
		least = max(least, wantedContent(capability).content.MinSize())
	}
	capacity, err := s.engine.Capacity(ctx, options.pool)
	if errors.Is(err, snapshot.ErrNoPool) || errors.Is(err, pool.ErrSilent) { // the scheduler shall avoid this node
		return &csi.GetCapacityResponse{}, nil
	}
	if err != nil {
		return nil, err
	}
	if topology := request.GetAccessibleTopology(); topology != nil && !slices.Contains(poolsOf([]*csi.Topology{topology}), capacity.PoolID) {
		return &csi.GetCapacityResponse{}, nil
	}
	return &csi.GetCapacityResponse{
		AvailableCapacity: steady(capacity.Available),
		MaximumVolumeSize: wrapperspb.Int64(steady(capacity.MaximumSize)),
		MinimumVolumeSize: wrapperspb.Int64(max(least, capacity.MinimumSize)),
	}, nil
}

// steady rounds a capacity in bytes down by less than a thousandth, so that it seldom
// changes. A new volume takes a few KiB. The provisioner calls GetCapacity after each one
// and writes each change to the API server.
func steady(capacity int64) int64 {
	step := max(int64(1)<<max(0, bits.Len64(uint64(capacity))-11), snapshot.MinSize)
	return capacity / step * step
}

func (s *controller) ControllerExpandVolume(ctx context.Context, request *csi.ControllerExpandVolumeRequest) (*csi.ControllerExpandVolumeResponse, error) {
	if err := required("volume_id", request.GetVolumeId()); err != nil {
		return nil, err
	}
	size, err := expansion(request.GetCapacityRange(), request.GetVolumeCapability())
	if err != nil {
		return nil, err
	}
	if size == (snapshot.Range{}) {
		return nil, invalid("capacity_range is missing")
	}
	bytes, err := s.expand(ctx, request.GetVolumeId(), size)
	if err != nil {
		return nil, err
	}
	klog.FromContext(ctx).Info("Volume expanded", "volumeID", request.GetVolumeId(), "size", bytes)
	return &csi.ControllerExpandVolumeResponse{CapacityBytes: bytes}, nil
}

func (s *controller) CreateSnapshot(ctx context.Context, request *csi.CreateSnapshotRequest) (*csi.CreateSnapshotResponse, error) {
	spec, err := newCommit(request)
	if err != nil {
		return nil, err
	}
	entry, err := s.engine.Commit(ctx, spec, request.GetSourceVolumeId())
	if err != nil {
		return nil, err
	}
	klog.FromContext(ctx).Info("Snapshot created", "snapshotID", entry.ID, "volumeID", entry.Source.ID, "pool", entry.Pool)
	return &csi.CreateSnapshotResponse{Snapshot: snapshotOf(entry)}, nil
}

func (s *controller) DeleteSnapshot(ctx context.Context, request *csi.DeleteSnapshotRequest) (*csi.DeleteSnapshotResponse, error) {
	if err := required("snapshot_id", request.GetSnapshotId()); err != nil {
		return nil, err
	}
	if err := s.refuseMember(ctx, meta.Snapshot(request.GetSnapshotId())); err != nil {
		return nil, err
	}
	if err := s.Delete(ctx, meta.Snapshot(request.GetSnapshotId())); err != nil {
		return nil, err
	}
	klog.FromContext(ctx).Info("Snapshot deleted", "snapshotID", request.GetSnapshotId())
	return &csi.DeleteSnapshotResponse{}, nil
}

func (s *controller) GetSnapshot(ctx context.Context, request *csi.GetSnapshotRequest) (*csi.GetSnapshotResponse, error) {
	if err := required("snapshot_id", request.GetSnapshotId()); err != nil {
		return nil, err
	}
	entry, err := s.engine.Stat(ctx, meta.Snapshot(request.GetSnapshotId()))
	if err != nil {
		return nil, err
	}
	return &csi.GetSnapshotResponse{Snapshot: snapshotOf(entry)}, nil
}

func (s *controller) ListSnapshots(ctx context.Context, request *csi.ListSnapshotsRequest) (*csi.ListSnapshotsResponse, error) {
	found, next, err := page(request.GetStartingToken(), request.GetMaxEntries(), func(after string, fn func(meta.Entry) bool) error {
		return s.walkSnapshots(ctx, request.GetSnapshotId(), request.GetSourceVolumeId(), after, fn)
	})
	if err != nil {
		return nil, err
	}
	response := &csi.ListSnapshotsResponse{NextToken: next}
	for _, entry := range found {
		response.Entries = append(response.Entries, &csi.ListSnapshotsResponse_Entry{Snapshot: snapshotOf(entry)})
	}
	return response, nil
}

// walkSnapshots walks over all snapshots, or those with an ID, or those of a volume.
func (s *controller) walkSnapshots(ctx context.Context, id, volume, after string, fn func(meta.Entry) bool) error {
	switch {
	case id == "" && volume == "":
		return s.engine.Walk(ctx, meta.Snapshots, after, fn)
	case id == "":
		return s.engine.WalkSnapshots(ctx, volume, after, fn)
	}
	entry, err := s.engine.Stat(ctx, meta.Snapshot(id))
	if errors.Is(err, snapshot.ErrNotFound) {
		return nil
	}
	if err == nil && entry.ID > after && (volume == "" || entry.Source.ID == volume) {
		fn(entry)
	}
	return err
}

func volumeOf(entry meta.Entry) *csi.Volume {
	return &csi.Volume{
		VolumeId: entry.ID, CapacityBytes: entry.Size, VolumeContext: volumeContext(entry), ContentSource: sourceOf(entry.Source),
		AccessibleTopology: []*csi.Topology{topologyOf(entry.PoolID)},
	}
}

func sourceOf(ref meta.Ref) *csi.VolumeContentSource {
	switch ref.Class {
	case meta.Snapshots:
		return &csi.VolumeContentSource{Type: &csi.VolumeContentSource_Snapshot{
			Snapshot: &csi.VolumeContentSource_SnapshotSource{SnapshotId: ref.ID},
		}}
	case meta.Volumes:
		return &csi.VolumeContentSource{Type: &csi.VolumeContentSource_Volume{
			Volume: &csi.VolumeContentSource_VolumeSource{VolumeId: ref.ID},
		}}
	}
	return nil
}

func snapshotOf(entry meta.Entry) *csi.Snapshot {
	return &csi.Snapshot{
		SnapshotId: entry.ID, SourceVolumeId: entry.Source.ID, SizeBytes: entry.Size,
		CreationTime: timestamppb.New(entry.Created), ReadyToUse: true, GroupSnapshotId: entry.Group.ID,
	}
}
