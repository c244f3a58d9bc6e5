package reliability

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
	"github.com/btrfs-csi/btrfs-csi/test/testkit"
)

// provocation has to be refused, or to do nothing.
type provocation struct {
	what string
	want codes.Code
	fits func(*object) bool
	send func(ctx context.Context, c *testkit.Driver, n *node, o *object) error
}

// provoke asks for what has to be refused. That it has done nothing all the same is seen
// by the next check: no object has such a name.
func (w *worker) provoke(ctx context.Context, o *object) error {
	w.mu.Lock()
	var fit []provocation
	for _, p := range provocations {
		if p.fits(o) {
			fit = append(fit, p)
		}
	}
	w.mu.Unlock()
	p := fit[w.random.IntN(len(fit))]
	answered := func(err error) bool { return final(err) || status.Code(err) == p.want }
	err := w.insistOn(ctx, p.what, o, answered, func(ctx context.Context, c *testkit.Driver) error { return p.send(ctx, c, w.node, o) })
	if status.Code(err) != p.want {
		return fmt.Errorf("%s, %s: wanted is %v, found %v: %w", o.id, p.what, p.want, status.Code(err), errors.Join(err))
	}
	return nil
}

const (
	neverMade   = "pvc-never"
	neverThere  = "pvc-absent"
	otherVolume = "pvc-other"
)

// create asks for a volume that is never made.
func create(change func(r *csi.CreateVolumeRequest, o *object)) func(context.Context, *testkit.Driver, *node, *object) error {
	return func(ctx context.Context, c *testkit.Driver, _ *node, o *object) error {
		r := &csi.CreateVolumeRequest{
			Name: neverMade, CapacityRange: &csi.CapacityRange{RequiredBytes: mib},
			VolumeCapabilities: []*csi.VolumeCapability{testkit.Capability(csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER)},
		}
		change(r, o)
		_, err := c.CreateVolume(ctx, r)
		return err
	}
}

// createAgain asks for a volume that is there, otherwise.
func createAgain(change func(r *csi.CreateVolumeRequest, o *object)) func(context.Context, *testkit.Driver, *node, *object) error {
	return func(ctx context.Context, c *testkit.Driver, _ *node, o *object) error {
		r := createRequest(o, nil)
		change(r, o)
		_, err := c.CreateVolume(ctx, r)
		return err
	}
}

func takeSnapshot(change func(r *csi.CreateSnapshotRequest, o *object)) func(context.Context, *testkit.Driver, *node, *object) error {
	return func(ctx context.Context, c *testkit.Driver, _ *node, o *object) error {
		r := &csi.CreateSnapshotRequest{Name: "snapshot-never", SourceVolumeId: o.id}
		change(r, o)
		_, err := c.CreateSnapshot(ctx, r)
		return err
	}
}

func resize(id func(*object) string, size *csi.CapacityRange) func(context.Context, *testkit.Driver, *node, *object) error {
	return func(ctx context.Context, c *testkit.Driver, _ *node, o *object) error {
		_, err := c.ControllerExpandVolume(ctx, &csi.ControllerExpandVolumeRequest{VolumeId: id(o), CapacityRange: size})
		return err
	}
}

func deleteVolume(id func(*object) string) func(context.Context, *testkit.Driver, *node, *object) error {
	return func(ctx context.Context, c *testkit.Driver, _ *node, o *object) error {
		_, err := c.DeleteVolume(ctx, &csi.DeleteVolumeRequest{VolumeId: id(o)})
		return err
	}
}

func stage(change func(r *csi.NodeStageVolumeRequest, n *node)) func(context.Context, *testkit.Driver, *node, *object) error {
	return func(ctx context.Context, c *testkit.Driver, n *node, o *object) error {
		r := n.StageRequest(o.id, capabilityOf(o))
		change(r, n)
		_, err := c.NodeStageVolume(ctx, r)
		return err
	}
}

func publish(change func(r *csi.NodePublishVolumeRequest, n *node)) func(context.Context, *testkit.Driver, *node, *object) error {
	return func(ctx context.Context, c *testkit.Driver, n *node, o *object) error {
		r := n.PublishRequest(o.id, capabilityOf(o))
		change(r, n)
		_, err := c.NodePublishVolume(ctx, r)
		return err
	}
}

func constant(id string) func(*object) string { return func(*object) string { return id } }
func own(o *object) string                    { return o.id }

func gib(n int64) *csi.CapacityRange { return &csi.CapacityRange{RequiredBytes: n << 30} }

var provocations = append(append(append([]provocation(nil), provokeCreation...), provokeController...), provokeNode...)

var provokeCreation = []provocation{
	{"CreateVolume without a name", codes.InvalidArgument, (*object).isMade, create(func(r *csi.CreateVolumeRequest, _ *object) { r.Name = "" })},
	{"CreateVolume with a long name", codes.InvalidArgument, (*object).isMade, create(func(r *csi.CreateVolumeRequest, _ *object) { r.Name = strings.Repeat("n", 129) })},
	{"CreateVolume with a control character", codes.InvalidArgument, (*object).isMade, create(func(r *csi.CreateVolumeRequest, _ *object) { r.Name = "a\x00b" })},
	{"CreateVolume without capabilities", codes.InvalidArgument, (*object).isMade, create(func(r *csi.CreateVolumeRequest, _ *object) { r.VolumeCapabilities = nil })},
	{"CreateVolume for blocks", codes.InvalidArgument, (*object).isMade, create(func(r *csi.CreateVolumeRequest, _ *object) {
		r.VolumeCapabilities[0].AccessType = &csi.VolumeCapability_Block{Block: &csi.VolumeCapability_BlockVolume{}}
	})},
	{"CreateVolume with ext4", codes.InvalidArgument, (*object).isMade, create(func(r *csi.CreateVolumeRequest, _ *object) { r.VolumeCapabilities[0].GetMount().FsType = "ext4" })},
	{"CreateVolume with a bad mount flag", codes.InvalidArgument, (*object).isMade, create(func(r *csi.CreateVolumeRequest, _ *object) {
		r.VolumeCapabilities[0].GetMount().MountFlags = []string{"bind"}
	})},
	{"CreateVolume for writers on many nodes", codes.InvalidArgument, (*object).isMade, create(func(r *csi.CreateVolumeRequest, _ *object) {
		r.VolumeCapabilities[0] = testkit.Capability(csi.VolumeCapability_AccessMode_MULTI_NODE_MULTI_WRITER)
	})},
	{"CreateVolume for many readers of nothing", codes.InvalidArgument, (*object).isMade, create(func(r *csi.CreateVolumeRequest, _ *object) {
		r.VolumeCapabilities[0] = testkit.Capability(csi.VolumeCapability_AccessMode_MULTI_NODE_READER_ONLY)
	})},
	{"CreateVolume with a misspelt parameter", codes.InvalidArgument, (*object).isMade, create(func(r *csi.CreateVolumeRequest, _ *object) { r.Parameters = map[string]string{"compresion": "zstd"} })},
	{"CreateVolume with a bad parameter", codes.InvalidArgument, (*object).isMade, create(func(r *csi.CreateVolumeRequest, _ *object) {
		r.Parameters = map[string]string{"compression": "zstd:16"}
	})},
	{"CreateVolume with contradicting parameters", codes.InvalidArgument, (*object).isMade, create(func(r *csi.CreateVolumeRequest, _ *object) {
		r.Parameters = map[string]string{"compression": "lzo", "nodatacow": "true"}
	})},
	{"CreateVolume with parameters to change", codes.InvalidArgument, (*object).isMade, create(func(r *csi.CreateVolumeRequest, _ *object) { r.MutableParameters = map[string]string{"iops": "1"} })},
	{"CreateVolume in a bad pool", codes.InvalidArgument, (*object).isMade, create(func(r *csi.CreateVolumeRequest, _ *object) { r.Parameters = map[string]string{"pool": "../pools"} })},
	{"CreateVolume in no pool", codes.ResourceExhausted, (*object).isMade, create(func(r *csi.CreateVolumeRequest, _ *object) { r.Parameters = map[string]string{"pool": "absent"} })},
	{"CreateVolume elsewhere", codes.ResourceExhausted, (*object).isMade, create(func(r *csi.CreateVolumeRequest, _ *object) {
		r.AccessibilityRequirements = &csi.TopologyRequirement{Requisite: []*csi.Topology{topologyOf("elsewhere")}}
	})},
	{"CreateVolume of a negative size", codes.InvalidArgument, (*object).isMade, create(func(r *csi.CreateVolumeRequest, _ *object) { r.CapacityRange.RequiredBytes = -1 })},
	{"CreateVolume of no possible size", codes.OutOfRange, (*object).isMade, create(func(r *csi.CreateVolumeRequest, _ *object) { r.CapacityRange.LimitBytes = 1 })},
	{"CreateVolume larger than the pool", codes.ResourceExhausted, (*object).isMade, create(func(r *csi.CreateVolumeRequest, _ *object) { r.CapacityRange = gib(1 << 20) })},
	{"CreateVolume of no snapshot", codes.NotFound, (*object).isMade, create(func(r *csi.CreateVolumeRequest, _ *object) {
		r.VolumeContentSource = sourceOf(&object{source: &object{kind: meta.Committed, id: neverThere}})
	})},
	{"CreateVolume smaller than its source", codes.OutOfRange, (*object).isMade, create(func(r *csi.CreateVolumeRequest, o *object) {
		r.CapacityRange.LimitBytes, r.VolumeContentSource = mib, sourceOf(&object{source: o})
	})},
	{"CreateVolume in another pool than its source", codes.InvalidArgument, (*object).isMade, create(func(r *csi.CreateVolumeRequest, o *object) {
		r.Parameters, r.VolumeContentSource = map[string]string{"pool": "absent"}, sourceOf(&object{source: o})
	})},
	{"CreateVolume of another source", codes.AlreadyExists, (*object).isVolume, createAgain(func(r *csi.CreateVolumeRequest, _ *object) {
		r.VolumeContentSource = sourceOf(&object{source: &object{kind: meta.Committed, id: "snapshot-other"}})
	})},
	{"CreateVolume of another size", codes.AlreadyExists, (*object).isVolume, createAgain(func(r *csi.CreateVolumeRequest, _ *object) { r.CapacityRange = gib(1 << 20) })},
	{"CreateVolume with other parameters", codes.AlreadyExists, (*object).isVolume, createAgain(func(r *csi.CreateVolumeRequest, _ *object) { r.Parameters = map[string]string{"compression": "lzo"} })},

	{"CreateSnapshot without a name", codes.InvalidArgument, (*object).isVolume, takeSnapshot(func(r *csi.CreateSnapshotRequest, _ *object) { r.Name = "" })},
	{"CreateSnapshot without a volume", codes.InvalidArgument, (*object).isVolume, takeSnapshot(func(r *csi.CreateSnapshotRequest, _ *object) { r.SourceVolumeId = "" })},
	{"CreateSnapshot with a bad parameter", codes.InvalidArgument, (*object).isVolume, takeSnapshot(func(r *csi.CreateSnapshotRequest, _ *object) { r.Parameters = map[string]string{"compression": "lzo"} })},
	{"CreateSnapshot of nothing", codes.NotFound, (*object).isMade, takeSnapshot(func(r *csi.CreateSnapshotRequest, _ *object) { r.SourceVolumeId = neverThere })},
	{"CreateSnapshot of another volume", codes.AlreadyExists, (*object).isSnapshot, takeSnapshot(func(r *csi.CreateSnapshotRequest, o *object) {
		r.Name, r.SourceVolumeId = o.name, otherVolume
	})},
}

var provokeController = []provocation{
	{"DeleteVolume without an ID", codes.InvalidArgument, (*object).isMade, deleteVolume(constant(""))},
	{"DeleteVolume of nothing", codes.OK, (*object).isMade, deleteVolume(constant(neverThere))},
	{"DeleteVolume by a path", codes.OK, (*object).isVolume, deleteVolume(func(o *object) string { return "../" + string(o.kind) + "/" + o.id })},
	{"DeleteVolume of a snapshot", codes.OK, (*object).isSnapshot, deleteVolume(own)},
	{"DeleteVolume in use", codes.FailedPrecondition, (*object).isMounted, deleteVolume(own)},
	{"DeleteSnapshot of a volume", codes.OK, (*object).isVolume, func(ctx context.Context, c *testkit.Driver, _ *node, o *object) error {
		_, err := c.DeleteSnapshot(ctx, &csi.DeleteSnapshotRequest{SnapshotId: o.id})
		return err
	}},
	{"ControllerExpandVolume without an ID", codes.InvalidArgument, (*object).isMade, resize(constant(""), gib(1))},
	{"ControllerExpandVolume of nothing", codes.NotFound, (*object).isMade, resize(constant(neverThere), gib(1))},
	{"ControllerExpandVolume of a snapshot", codes.NotFound, (*object).isSnapshot, resize(own, gib(1))},
	{"ControllerExpandVolume to no size", codes.InvalidArgument, (*object).isVolume, resize(own, nil)},
	{"ControllerExpandVolume to a negative size", codes.InvalidArgument, (*object).isVolume, resize(own, gib(-1))},
	{"ControllerExpandVolume to at most less", codes.OutOfRange, (*object).isVolume, resize(own, &csi.CapacityRange{LimitBytes: mib})},
	{"ControllerExpandVolume beyond the pool", codes.ResourceExhausted, (*object).isVolume, resize(own, gib(1<<20))},
	{"ControllerGetVolume of a snapshot", codes.NotFound, (*object).isSnapshot, func(ctx context.Context, c *testkit.Driver, _ *node, o *object) error {
		_, err := c.ControllerGetVolume(ctx, &csi.ControllerGetVolumeRequest{VolumeId: o.id})
		return err
	}},
	{"ControllerGetVolumeHealth of nothing", codes.NotFound, (*object).isMade, func(ctx context.Context, c *testkit.Driver, _ *node, _ *object) error {
		_, err := c.ControllerGetVolumeHealth(ctx, &csi.ControllerGetVolumeHealthRequest{VolumeId: neverThere})
		return err
	}},
	{"GetSnapshot of a volume", codes.NotFound, (*object).isVolume, func(ctx context.Context, c *testkit.Driver, _ *node, o *object) error {
		_, err := c.GetSnapshot(ctx, &csi.GetSnapshotRequest{SnapshotId: o.id})
		return err
	}},
	{"ValidateVolumeCapabilities of nothing", codes.NotFound, (*object).isMade, func(ctx context.Context, c *testkit.Driver, _ *node, o *object) error {
		_, err := c.ValidateVolumeCapabilities(ctx, &csi.ValidateVolumeCapabilitiesRequest{VolumeId: neverThere, VolumeCapabilities: []*csi.VolumeCapability{capabilityOf(o)}})
		return err
	}},
	{"ValidateVolumeCapabilities without any", codes.InvalidArgument, (*object).isVolume, func(ctx context.Context, c *testkit.Driver, _ *node, o *object) error {
		_, err := c.ValidateVolumeCapabilities(ctx, &csi.ValidateVolumeCapabilitiesRequest{VolumeId: o.id})
		return err
	}},
	{"ListVolumes of less than none", codes.InvalidArgument, (*object).isMade, func(ctx context.Context, c *testkit.Driver, _ *node, _ *object) error {
		_, err := c.ListVolumes(ctx, &csi.ListVolumesRequest{MaxEntries: -1})
		return err
	}},
	{"ListVolumes from nowhere", codes.Aborted, (*object).isMade, func(ctx context.Context, c *testkit.Driver, _ *node, _ *object) error {
		_, err := c.ListVolumes(ctx, &csi.ListVolumesRequest{StartingToken: "nowhere"})
		return err
	}},
	{"ListSnapshots from nowhere", codes.Aborted, (*object).isMade, func(ctx context.Context, c *testkit.Driver, _ *node, _ *object) error {
		_, err := c.ListSnapshots(ctx, &csi.ListSnapshotsRequest{StartingToken: "nowhere"})
		return err
	}},
	{"ControllerPublishVolume, which is not served", codes.Unimplemented, (*object).isVolume, func(ctx context.Context, c *testkit.Driver, _ *node, o *object) error {
		_, err := c.ControllerPublishVolume(ctx, &csi.ControllerPublishVolumeRequest{VolumeId: o.id, NodeId: testkit.NodeID, VolumeCapability: capabilityOf(o)})
		return err
	}},
	{"ControllerModifyVolume, which is not served", codes.Unimplemented, (*object).isVolume, func(ctx context.Context, c *testkit.Driver, _ *node, o *object) error {
		_, err := c.ControllerModifyVolume(ctx, &csi.ControllerModifyVolumeRequest{VolumeId: o.id})
		return err
	}},
}

var provokeNode = []provocation{
	{"NodeStageVolume of nothing", codes.NotFound, (*object).isVolume, stage(func(r *csi.NodeStageVolumeRequest, _ *node) { r.VolumeId = neverThere })},
	{"NodeStageVolume without a capability", codes.InvalidArgument, (*object).isVolume, stage(func(r *csi.NodeStageVolumeRequest, _ *node) { r.VolumeCapability = nil })},
	{"NodeStageVolume at no path", codes.InvalidArgument, (*object).isVolume, stage(func(r *csi.NodeStageVolumeRequest, _ *node) { r.StagingTargetPath = "" })},
	{"NodeStageVolume outside", codes.InvalidArgument, (*object).isVolume, stage(func(r *csi.NodeStageVolumeRequest, n *node) { r.StagingTargetPath = n.Pool() })},
	{"NodeStageVolume by a way outside", codes.InvalidArgument, (*object).isVolume, stage(func(r *csi.NodeStageVolumeRequest, n *node) {
		r.StagingTargetPath = n.Kubelet + "/../state"
	})},
	{"NodeStageVolume where nothing is", codes.FailedPrecondition, (*object).isUnmounted, stage(func(*csi.NodeStageVolumeRequest, *node) {})},
	{"NodeStageVolume of another pool", codes.FailedPrecondition, (*object).isVolume, stage(func(r *csi.NodeStageVolumeRequest, _ *node) {
		r.VolumeContext = map[string]string{"poolID": "other"}
	})},
	{"NodeStageVolume of a view to write", codes.FailedPrecondition, (*object).isView, stage(func(r *csi.NodeStageVolumeRequest, _ *node) {
		r.VolumeCapability = testkit.Capability(csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER)
	})},
	{"NodeStageVolume otherwise", codes.AlreadyExists, (*object).isMountedWritable, stage(func(r *csi.NodeStageVolumeRequest, _ *node) {
		r.VolumeCapability.GetMount().MountFlags = []string{"ro"}
	})},
	{"NodePublishVolume of what is not staged", codes.FailedPrecondition, (*object).isUnmounted, publish(func(*csi.NodePublishVolumeRequest, *node) {})},
	{"NodePublishVolume outside", codes.InvalidArgument, (*object).isVolume, publish(func(r *csi.NodePublishVolumeRequest, _ *node) { r.TargetPath = "/etc" })},
	{"NodePublishVolume without a staging path", codes.FailedPrecondition, (*object).isVolume, publish(func(r *csi.NodePublishVolumeRequest, _ *node) { r.StagingTargetPath = "" })},
	{"NodePublishVolume otherwise", codes.AlreadyExists, (*object).isMountedWritable, publish(func(r *csi.NodePublishVolumeRequest, _ *node) { r.Readonly = true })},
	{"NodePublishVolume to a second writer", codes.FailedPrecondition, (*object).isMountedWritable, publish(func(r *csi.NodePublishVolumeRequest, n *node) {
		r.TargetPath = filepath.Join(n.Kubelet, "second-"+r.GetVolumeId())
		r.VolumeCapability = testkit.Capability(csi.VolumeCapability_AccessMode_SINGLE_NODE_SINGLE_WRITER)
	})},
	{"NodeUnpublishVolume of another volume", codes.FailedPrecondition, (*object).isMounted, func(ctx context.Context, c *testkit.Driver, n *node, o *object) error {
		_, err := c.NodeUnpublishVolume(ctx, &csi.NodeUnpublishVolumeRequest{VolumeId: otherVolume, TargetPath: n.target(o)})
		return err
	}},
	{"NodeUnpublishVolume outside", codes.InvalidArgument, (*object).isVolume, func(ctx context.Context, c *testkit.Driver, n *node, o *object) error {
		_, err := c.NodeUnpublishVolume(ctx, &csi.NodeUnpublishVolumeRequest{VolumeId: o.id, TargetPath: n.Pool()})
		return err
	}},
	{"NodeUnstageVolume of another volume", codes.FailedPrecondition, (*object).isMounted, func(ctx context.Context, c *testkit.Driver, n *node, o *object) error {
		_, err := c.NodeUnstageVolume(ctx, &csi.NodeUnstageVolumeRequest{VolumeId: otherVolume, StagingTargetPath: n.staging(o)})
		return err
	}},
	{"NodeGetVolumeStats of what is not mounted", codes.NotFound, (*object).isUnmounted, func(ctx context.Context, c *testkit.Driver, n *node, o *object) error {
		_, err := c.NodeGetVolumeStats(ctx, &csi.NodeGetVolumeStatsRequest{VolumeId: o.id, VolumePath: n.target(o)})
		return err
	}},
	{"NodeGetVolumeStats without a path", codes.InvalidArgument, (*object).isVolume, func(ctx context.Context, c *testkit.Driver, _ *node, o *object) error {
		_, err := c.NodeGetVolumeStats(ctx, &csi.NodeGetVolumeStatsRequest{VolumeId: o.id})
		return err
	}},
	{"NodeExpandVolume of what is not mounted", codes.NotFound, (*object).isUnmounted, func(ctx context.Context, c *testkit.Driver, n *node, o *object) error {
		_, err := c.NodeExpandVolume(ctx, &csi.NodeExpandVolumeRequest{VolumeId: o.id, VolumePath: n.target(o), CapacityRange: gib(1)})
		return err
	}},
}
