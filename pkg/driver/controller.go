package driver

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"
	"google.golang.org/protobuf/types/known/wrapperspb"
	"k8s.io/klog/v2"

	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
	"github.com/btrfs-csi/btrfs-csi/pkg/snapshot"
)

// controller is the controller service, for the volumes of this node.
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
	if err := s.checkReach(ctx, c); err != nil {
		return nil, err
	}
	create := s.engine.Prepare
	if c.view {
		create = s.engine.View
	}
	entry, err := create(ctx, c.spec, c.source)
	if err != nil {
		return nil, err
	}
	if !reaches(c.reach, entry.PoolID) {
		return nil, fmt.Errorf("%s: %w: it is in pool %q, wanted is one of %q", entry.Ref(), snapshot.ErrExists, entry.Pool, c.reach)
	}
	klog.FromContext(ctx).Info("Volume created", "volumeID", entry.ID, "pool", entry.Pool, "kind", entry.Kind, "size", entry.Size, "source", entry.Source)
	return &csi.CreateVolumeResponse{Volume: volumeOf(entry)}, nil
}

// checkReach fails when the volume would be made, or is, where the CO cannot use
// it: before it is made, since the CO never learns of what it could not use.
func (s *controller) checkReach(ctx context.Context, c creation) error {
	if c.reach == nil {
		return nil
	}
	name, id, err := s.destination(ctx, c)
	if err != nil {
		return err
	}
	if reaches(c.reach, id) {
		return nil
	}
	return status.Errorf(codes.ResourceExhausted, "pool %q of this node has the topology key %s, wanted is one of %q: choose another node, or name another pool in the StorageClass",
		name, TopologyKey(id), c.reach)
}

// destination returns the name and ID of the pool that a volume is to be made
// in: where it is already, beside its source, or where the class says.
func (s *controller) destination(ctx context.Context, c creation) (name, id string, err error) {
	if entry, err := s.engine.Stat(ctx, meta.Volume(meta.ID(c.spec.Name))); err == nil {
		return entry.Pool, entry.PoolID, nil
	}
	if !c.source.IsZero() {
		entry, err := s.engine.Stat(ctx, c.source)
		if err != nil {
			return "", "", fmt.Errorf("source %w", err)
		}
		return entry.Pool, entry.PoolID, nil
	}
	return s.poolNamed(c.spec.Pool)
}

// poolNamed returns the pool in use of a name; as the engine does, the default
// or only one for none.
func (s *Driver) poolNamed(wanted string) (name, id string, err error) {
	pools := s.engine.PoolIDs()
	if wanted == "" {
		wanted = snapshot.DefaultPool
		if _, ok := pools[wanted]; !ok && len(pools) == 1 {
			wanted = keys(pools)[0]
		}
	}
	if id, ok := pools[wanted]; ok {
		return wanted, id, nil
	}
	return "", "", fmt.Errorf("pool %q: %w, which has %q: name one of them, or mount a btrfs filesystem at pools/%s", wanted, snapshot.ErrNoPool, keys(pools), wanted)
}

// DeleteVolume holds the lock of the volume while it looks at the mount table
// and removes, so that it cannot be mounted in between.
func (s *controller) DeleteVolume(ctx context.Context, request *csi.DeleteVolumeRequest) (*csi.DeleteVolumeResponse, error) {
	id := request.GetVolumeId()
	if err := required("volume_id", id); err != nil {
		return nil, err
	}
	release, err := s.locks.acquire(volumeLock(id))
	if err != nil {
		return nil, err
	}
	defer release()
	table, err := mountTable()
	if err != nil {
		return nil, err
	}
	for _, m := range table {
		if m.uses(id) {
			return nil, precondition("volume %q is mounted at %s: delete the pods that use it, or unmount it, first", id, m.at)
		}
	}
	if err := s.engine.Remove(ctx, meta.Volume(id)); err != nil {
		return nil, err
	}
	klog.FromContext(ctx).Info("Volume deleted", "volumeID", id)
	return &csi.DeleteVolumeResponse{}, nil
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
		return &csi.ValidateVolumeCapabilitiesResponse{Message: status.Convert(err).Message()}, nil
	}
	return &csi.ValidateVolumeCapabilitiesResponse{Confirmed: &csi.ValidateVolumeCapabilitiesResponse_Confirmed{
		VolumeContext:      request.GetVolumeContext(),
		VolumeCapabilities: request.GetVolumeCapabilities(),
		Parameters:         request.GetParameters(),
	}}, nil
}

// confirm says what a volume is not, of what is asked.
func confirm(request *csi.ValidateVolumeCapabilitiesRequest, entry meta.Entry) error {
	uses, err := parseUses(request.GetVolumeCapabilities())
	if err != nil {
		return err
	}
	for _, u := range uses {
		if err := allowUse(u, entry); err != nil {
			return err
		}
	}
	if err := checkContext(request.GetVolumeContext(), entry); err != nil {
		return err
	}
	if len(request.GetMutableParameters()) > 0 {
		return invalid("mutable_parameters %q are not supported", keys(request.GetMutableParameters()))
	}
	if len(request.GetParameters()) == 0 {
		return nil
	}
	spec, err := parseParameters(request.GetParameters(), volumeParameters)
	if err != nil {
		return err
	}
	if spec.Parameters != entry.Parameters || spec.Pool != "" && spec.Pool != entry.Pool {
		return fmt.Errorf("parameters %+v in pool %q wanted, the volume has %+v in pool %q", spec.Parameters, spec.Pool, entry.Parameters, entry.Pool)
	}
	return nil
}

// allowUse fails for a use that a volume is not made for.
func allowUse(u use, entry meta.Entry) error {
	switch {
	case entry.Kind.ReadOnly() && !u.readOnly:
		return precondition("volume %q is a read-only view of %s: use a read-only access mode, or make a volume of that snapshot with a writable one", entry.ID, entry.Source)
	case u.manyNodes && entry.Source.Class != meta.Snapshots:
		return precondition("volume %q was not made from a snapshot: access mode MULTI_NODE_READER_ONLY is supported for those only", entry.ID)
	}
	return nil
}

func (s *controller) ListVolumes(ctx context.Context, request *csi.ListVolumesRequest) (*csi.ListVolumesResponse, error) {
	page, err := newPage(meta.Volumes, request.GetMaxEntries(), request.GetStartingToken(), func(entry meta.Entry) *csi.ListVolumesResponse_Entry {
		return &csi.ListVolumesResponse_Entry{Volume: volumeOf(entry), Status: &csi.ListVolumesResponse_VolumeStatus{}}
	})
	if err != nil {
		return nil, err
	}
	if err := s.engine.Walk(ctx, meta.Volumes, page.after, page.add); err != nil {
		return nil, err
	}
	return &csi.ListVolumesResponse{Entries: page.entries, NextToken: page.next}, nil
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

// GetCapacity answers 0 for what this node cannot provide, and fails for what
// no node can.
func (s *controller) GetCapacity(ctx context.Context, request *csi.GetCapacityRequest) (*csi.GetCapacityResponse, error) {
	spec, err := parseParameters(request.GetParameters(), volumeParameters)
	if err != nil {
		return nil, err
	}
	for _, capability := range request.GetVolumeCapabilities() {
		if _, err := parseUse(capability); err != nil {
			return &csi.GetCapacityResponse{}, nil
		}
	}
	name, id, err := s.poolNamed(spec.Pool)
	if err != nil || request.GetAccessibleTopology() != nil && !reaches(topologyKeys(request.GetAccessibleTopology()), id) {
		return &csi.GetCapacityResponse{}, nil
	}
	capacity, err := s.engine.Capacity(ctx, name)
	if errors.Is(err, snapshot.ErrNoPool) {
		return &csi.GetCapacityResponse{}, nil
	}
	if err != nil {
		return nil, err
	}
	return &csi.GetCapacityResponse{
		AvailableCapacity: capacity.Available,
		MaximumVolumeSize: wrapperspb.Int64(capacity.MaximumSize),
		MinimumVolumeSize: wrapperspb.Int64(capacity.MinimumSize),
	}, nil
}

func (s *controller) ControllerExpandVolume(ctx context.Context, request *csi.ControllerExpandVolumeRequest) (*csi.ControllerExpandVolumeResponse, error) {
	if err := required("volume_id", request.GetVolumeId()); err != nil {
		return nil, err
	}
	size, err := parseExpansion(request.GetCapacityRange())
	if err != nil {
		return nil, err
	}
	if request.GetVolumeCapability() != nil {
		if _, err := parseUse(request.GetVolumeCapability()); err != nil {
			return nil, err
		}
	}
	entry, err := s.engine.Resize(ctx, request.GetVolumeId(), size)
	if err != nil {
		return nil, err
	}
	klog.FromContext(ctx).Info("Volume expanded", "volumeID", entry.ID, "size", entry.Size)
	return &csi.ControllerExpandVolumeResponse{CapacityBytes: entry.Size}, nil
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
	if err := s.engine.Remove(ctx, meta.Snapshot(request.GetSnapshotId())); err != nil {
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
	page, err := newPage(meta.Snapshots, request.GetMaxEntries(), request.GetStartingToken(), func(entry meta.Entry) *csi.ListSnapshotsResponse_Entry {
		return &csi.ListSnapshotsResponse_Entry{Snapshot: snapshotOf(entry)}
	})
	if err != nil {
		return nil, err
	}
	volume, id := request.GetSourceVolumeId(), request.GetSnapshotId()
	switch {
	case id != "":
		err = s.addSnapshot(ctx, page, id, volume)
	case volume != "":
		err = s.engine.WalkSnapshots(ctx, volume, page.after, page.add)
	default:
		err = s.engine.Walk(ctx, meta.Snapshots, page.after, page.add)
	}
	if err != nil {
		return nil, err
	}
	return &csi.ListSnapshotsResponse{Entries: page.entries, NextToken: page.next}, nil
}

// addSnapshot adds one snapshot, if it is there and of the volume, if one is
// named.
func (s *controller) addSnapshot(ctx context.Context, page *page[*csi.ListSnapshotsResponse_Entry], id, volume string) error {
	entry, err := s.engine.Stat(ctx, meta.Snapshot(id))
	if errors.Is(err, snapshot.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if (volume == "" || entry.Source.ID == volume) && strings.Compare(entry.ID, page.after) > 0 {
		page.add(entry)
	}
	return nil
}

func volumeOf(entry meta.Entry) *csi.Volume {
	return &csi.Volume{
		VolumeId: entry.ID, CapacityBytes: entry.Size, VolumeContext: volumeContext(entry), ContentSource: sourceOf(entry.Source),
		AccessibleTopology: []*csi.Topology{{Segments: map[string]string{TopologyKey(entry.PoolID): TopologyValue}}},
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
		CreationTime: timestamppb.New(entry.Created), ReadyToUse: true,
	}
}
