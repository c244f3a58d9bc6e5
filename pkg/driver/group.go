package driver

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/protobuf/types/known/timestamppb"
	"k8s.io/klog/v2"

	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
	"github.com/btrfs-csi/btrfs-csi/pkg/snapshot"
)

// groupController is the CSI group controller service for the volumes of this node.
type groupController struct {
	csi.UnimplementedGroupControllerServer
	*Driver
}

func (s *groupController) GroupControllerGetCapabilities(context.Context, *csi.GroupControllerGetCapabilitiesRequest) (*csi.GroupControllerGetCapabilitiesResponse, error) {
	return &csi.GroupControllerGetCapabilitiesResponse{Capabilities: []*csi.GroupControllerServiceCapability{{
		Type: &csi.GroupControllerServiceCapability_Rpc{Rpc: &csi.GroupControllerServiceCapability_RPC{
			Type: csi.GroupControllerServiceCapability_RPC_CREATE_DELETE_GET_VOLUME_GROUP_SNAPSHOT,
		}},
	}}}, nil
}

func (s *groupController) CreateVolumeGroupSnapshot(ctx context.Context, request *csi.CreateVolumeGroupSnapshotRequest) (*csi.CreateVolumeGroupSnapshotResponse, error) {
	entries, err := s.CommitGroup(ctx, request.GetName(), request.GetSourceVolumeIds(), request.GetParameters())
	if err != nil {
		return nil, err
	}
	return &csi.CreateVolumeGroupSnapshotResponse{GroupSnapshot: groupOf(entries)}, nil
}

// CommitGroup takes snapshots of several volumes at one instant. parameters are those of a
// VolumeGroupSnapshotClass. The members are returned in the order of their volumes' IDs.
func (d *Driver) CommitGroup(ctx context.Context, name string, volumes []string, parameters map[string]string) ([]meta.Entry, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	if len(volumes) == 0 || slices.Contains(volumes, "") {
		return nil, invalid("source_volume_ids %q: at least one is wanted, and none may be empty", volumes)
	}
	options, err := snapshotParameters(parameters)
	if err != nil {
		return nil, err
	}
	entries, err := d.engine.CommitGroup(ctx, snapshot.Spec{Name: name, Parameters: options.parameters, Labels: options.labels}, volumes)
	if err != nil {
		return nil, d.orApart(ctx, volumes, err)
	}
	return entries, nil // the engine has logged it, with the number of tries
}

// orApart replaces err, the error of a group, by FAILED_PRECONDITION if another node has one of its
// volumes.
func (d *Driver) orApart(ctx context.Context, volumes []string, err error) error {
	if !notHere(err) {
		return err
	}
	apart := false
	where := make([]string, len(volumes))
	for i, id := range volumes {
		ref, node := meta.Volume(id), d.options.NodeID
		entry, here := d.engine.Stat(ctx, ref)
		pool := entry.PoolID
		if here != nil {
			var lookup error
			if node, pool, lookup = d.cluster.Owner(ctx, ref); lookup != nil || node == "" {
				return err
			}
			apart = apart || node != d.options.NodeID
		}
		where[i] = fmt.Sprintf("%s in pool %s of node %q", ref, pool, node)
	}
	if !apart {
		return err
	}
	return precondition("%s on this node: %s", snapshot.ErrPools, strings.Join(where, ", "))
}

func (s *groupController) DeleteVolumeGroupSnapshot(ctx context.Context, request *csi.DeleteVolumeGroupSnapshotRequest) (*csi.DeleteVolumeGroupSnapshotResponse, error) {
	if err := required("group_snapshot_id", request.GetGroupSnapshotId()); err != nil {
		return nil, err
	}
	if err := s.DeleteGroup(ctx, request.GetGroupSnapshotId(), request.GetSnapshotIds()); err != nil {
		return nil, err
	}
	return &csi.DeleteVolumeGroupSnapshotResponse{}, nil
}

// DeleteGroup removes all members of a group. snapshots are their IDs, as far as the caller knows
// them. It removes member 0 last, which shows that there is a group.
func (d *Driver) DeleteGroup(ctx context.Context, id string, snapshots []string) error {
	members, err := d.engine.GroupMembers(ctx, id)
	if err != nil && !errors.Is(err, snapshot.ErrForgotten) { // Delete asks the cluster about what is forgotten
		return err
	}
	if len(members) == 0 {
		if members, err = d.remains(ctx, id, snapshots); err != nil {
			return err
		}
	} else if err := sameMembers(id, members, snapshots); err != nil {
		return err
	}
	for _, ref := range slices.Backward(members) {
		if err := d.Delete(ctx, ref); err != nil {
			return err
		}
	}
	klog.FromContext(ctx).Info("Group of snapshots deleted", "groupID", id, "members", len(members))
	return nil
}

// remains returns what a removal of a group has to look for if its member 0 is not here: that
// member, which may be on another node, and those that the caller knows, whose removal may have been
// cut short.
func (d *Driver) remains(ctx context.Context, id string, snapshots []string) ([]meta.Ref, error) {
	members := meta.Group{ID: id, Members: 1}.Refs()
	for _, member := range snapshots {
		ref := meta.Snapshot(member)
		entry, err := d.engine.Stat(ctx, ref)
		if err == nil && entry.Group.ID != id {
			return nil, invalid("snapshot_ids: %s is not in group %q", ref, id)
		}
		if ref != members[0] {
			members = append(members, ref)
		}
	}
	return members, nil
}

// sameMembers returns INVALID_ARGUMENT if snapshots, unless it is empty, are not the members of a
// group.
func sameMembers(id string, members []meta.Ref, snapshots []string) error {
	have := make([]string, len(members))
	for i, ref := range members {
		have[i] = ref.ID
	}
	if len(snapshots) == 0 || slices.Equal(slices.Sorted(slices.Values(snapshots)), slices.Sorted(slices.Values(have))) {
		return nil
	}
	return invalid("snapshot_ids %q: the members of group %q are %q", snapshots, id, have)
}

func (s *groupController) GetVolumeGroupSnapshot(ctx context.Context, request *csi.GetVolumeGroupSnapshotRequest) (*csi.GetVolumeGroupSnapshotResponse, error) {
	id := request.GetGroupSnapshotId()
	if err := required("group_snapshot_id", id); err != nil {
		return nil, err
	}
	entries, err := s.Group(ctx, id, request.GetSnapshotIds())
	if err != nil {
		return nil, err
	}
	return &csi.GetVolumeGroupSnapshotResponse{GroupSnapshot: groupOf(entries)}, nil
}

// Group returns the members of a group. snapshots are their IDs, as far as the caller knows them.
func (d *Driver) Group(ctx context.Context, id string, snapshots []string) ([]meta.Entry, error) {
	entries, err := d.engine.Group(ctx, id)
	if err != nil {
		return nil, err
	}
	return entries, sameMembers(id, entries[0].Group.Refs(), snapshots)
}

func groupOf(entries []meta.Entry) *csi.VolumeGroupSnapshot {
	group := &csi.VolumeGroupSnapshot{
		GroupSnapshotId: entries[0].Group.ID, CreationTime: timestamppb.New(entries[0].Created), ReadyToUse: true,
	}
	for _, entry := range entries {
		group.Snapshots = append(group.Snapshots, snapshotOf(entry))
	}
	return group
}

// refuseMember returns INVALID_ARGUMENT for a snapshot in a group, which is deleted with it.
func (d *Driver) refuseMember(ctx context.Context, ref meta.Ref) error {
	entry, err := d.engine.Stat(ctx, ref)
	if err != nil && !errors.Is(err, snapshot.ErrLost) || entry.Group.ID == "" {
		return nil
	}
	return invalid("%s is a member of group %q: delete the group", ref, entry.Group.ID)
}
