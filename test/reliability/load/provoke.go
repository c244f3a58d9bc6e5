package load

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
	"github.com/btrfs-csi/btrfs-csi/test/reliability/model"
	"github.com/btrfs-csi/btrfs-csi/test/reliability/node"
	"github.com/btrfs-csi/btrfs-csi/test/testkit"
)

// provocation is a request that the driver has to refuse, or that has no effect.
type provocation struct {
	what string
	want codes.Code
	fits func(*model.Object) bool
	send func(ctx context.Context, c *testkit.Driver, n *node.Node, o *model.Object) error
}

// provoke sends a provocation. If it has an effect the next check finds it, because no object of
// the model has such a name.
func (w *Worker) provoke(ctx context.Context, o *model.Object) error {
	w.Mu.Lock()
	var fit []provocation
	for _, p := range provocations {
		if p.fits(o) {
			fit = append(fit, p)
		}
	}
	w.Mu.Unlock()
	p := fit[w.Random.IntN(len(fit))]
	answered := func(err error) bool { return final(err) || status.Code(err) == p.want }
	err := w.insistOn(ctx, p.what, o, answered, func(ctx context.Context, c *testkit.Driver) error { return p.send(ctx, c, w.Node, o) })
	if status.Code(err) != p.want {
		return fmt.Errorf("%s, %s: wanted is %v, found %v: %w", o.ID, p.what, p.want, status.Code(err), errors.Join(err))
	}
	return nil
}

const (
	neverMade   = "pvc-never"
	neverThere  = "pvc-absent"
	otherVolume = "pvc-other"
)

// create sends a wrong request for a new volume.
func create(change func(r *csi.CreateVolumeRequest, o *model.Object)) func(context.Context, *testkit.Driver, *node.Node, *model.Object) error {
	return func(ctx context.Context, c *testkit.Driver, _ *node.Node, o *model.Object) error {
		r := &csi.CreateVolumeRequest{
			Name: neverMade, CapacityRange: &csi.CapacityRange{RequiredBytes: mib},
			VolumeCapabilities: []*csi.VolumeCapability{testkit.Capability(csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER)},
		}
		change(r, o)
		_, err := c.CreateVolume(ctx, r)
		return err
	}
}

// createAgain repeats the request for a volume that exists, with a difference.
func createAgain(change func(r *csi.CreateVolumeRequest, o *model.Object)) func(context.Context, *testkit.Driver, *node.Node, *model.Object) error {
	return func(ctx context.Context, c *testkit.Driver, _ *node.Node, o *model.Object) error {
		r := createRequest(o, nil)
		change(r, o)
		_, err := c.CreateVolume(ctx, r)
		return err
	}
}

func takeSnapshot(change func(r *csi.CreateSnapshotRequest, o *model.Object)) func(context.Context, *testkit.Driver, *node.Node, *model.Object) error {
	return func(ctx context.Context, c *testkit.Driver, _ *node.Node, o *model.Object) error {
		r := &csi.CreateSnapshotRequest{Name: "snapshot-never", SourceVolumeId: o.ID}
		change(r, o)
		_, err := c.CreateSnapshot(ctx, r)
		return err
	}
}

func resize(id func(*model.Object) string, size *csi.CapacityRange) func(context.Context, *testkit.Driver, *node.Node, *model.Object) error {
	return func(ctx context.Context, c *testkit.Driver, _ *node.Node, o *model.Object) error {
		_, err := c.ControllerExpandVolume(ctx, &csi.ControllerExpandVolumeRequest{VolumeId: id(o), CapacityRange: size})
		return err
	}
}

func deleteVolume(id func(*model.Object) string) func(context.Context, *testkit.Driver, *node.Node, *model.Object) error {
	return func(ctx context.Context, c *testkit.Driver, _ *node.Node, o *model.Object) error {
		_, err := c.DeleteVolume(ctx, &csi.DeleteVolumeRequest{VolumeId: id(o)})
		return err
	}
}

func stage(change func(r *csi.NodeStageVolumeRequest, n *node.Node)) func(context.Context, *testkit.Driver, *node.Node, *model.Object) error {
	return func(ctx context.Context, c *testkit.Driver, n *node.Node, o *model.Object) error {
		r := n.StageRequest(o.ID, capabilityOf(o))
		change(r, n)
		_, err := c.NodeStageVolume(ctx, r)
		return err
	}
}

func publish(change func(r *csi.NodePublishVolumeRequest, n *node.Node)) func(context.Context, *testkit.Driver, *node.Node, *model.Object) error {
	return func(ctx context.Context, c *testkit.Driver, n *node.Node, o *model.Object) error {
		r := n.PublishRequest(o.ID, capabilityOf(o))
		change(r, n)
		_, err := c.NodePublishVolume(ctx, r)
		return err
	}
}

func constant(id string) func(*model.Object) string { return func(*model.Object) string { return id } }
func own(o *model.Object) string                    { return o.ID }

func gib(n int64) *csi.CapacityRange { return &csi.CapacityRange{RequiredBytes: n << 30} }

var provocations = append(append(append([]provocation(nil), provokeCreation...), provokeController...), provokeNode...)

var provokeCreation = []provocation{
	{"CreateVolume without a name", codes.InvalidArgument, (*model.Object).IsMade, create(func(r *csi.CreateVolumeRequest, _ *model.Object) { r.Name = "" })},
	{"CreateVolume with a long name", codes.InvalidArgument, (*model.Object).IsMade, create(func(r *csi.CreateVolumeRequest, _ *model.Object) { r.Name = strings.Repeat("n", 129) })},
	{"CreateVolume with a control character", codes.InvalidArgument, (*model.Object).IsMade, create(func(r *csi.CreateVolumeRequest, _ *model.Object) { r.Name = "a\x00b" })},
	{"CreateVolume without capabilities", codes.InvalidArgument, (*model.Object).IsMade, create(func(r *csi.CreateVolumeRequest, _ *model.Object) { r.VolumeCapabilities = nil })},
	{"CreateVolume for blocks and files", codes.InvalidArgument, (*model.Object).IsMade, create(func(r *csi.CreateVolumeRequest, _ *model.Object) {
		r.VolumeCapabilities = append(r.VolumeCapabilities, testkit.Block)
	})},
	{"CreateVolume with ext3", codes.InvalidArgument, (*model.Object).IsMade, create(func(r *csi.CreateVolumeRequest, _ *model.Object) {
		r.VolumeCapabilities[0].GetMount().FsType = "ext3"
	})},
	{"CreateVolume with an xfs that is too small", codes.OutOfRange, (*model.Object).IsMade, create(func(r *csi.CreateVolumeRequest, _ *model.Object) {
		r.VolumeCapabilities = []*csi.VolumeCapability{testkit.XFS}
	})},
	{"CreateVolume with a bad mount flag", codes.InvalidArgument, (*model.Object).IsMade, create(func(r *csi.CreateVolumeRequest, _ *model.Object) {
		r.VolumeCapabilities[0].GetMount().MountFlags = []string{"bind"}
	})},
	{"CreateVolume for writers on many nodes", codes.InvalidArgument, (*model.Object).IsMade, create(func(r *csi.CreateVolumeRequest, _ *model.Object) {
		r.VolumeCapabilities[0] = testkit.Capability(csi.VolumeCapability_AccessMode_MULTI_NODE_MULTI_WRITER)
	})},
	{"CreateVolume for many readers of nothing", codes.InvalidArgument, (*model.Object).IsMade, create(func(r *csi.CreateVolumeRequest, _ *model.Object) {
		r.VolumeCapabilities[0] = testkit.Capability(csi.VolumeCapability_AccessMode_MULTI_NODE_READER_ONLY)
	})},
	{"CreateVolume with a misspelt parameter", codes.InvalidArgument, (*model.Object).IsMade, create(func(r *csi.CreateVolumeRequest, _ *model.Object) {
		r.Parameters = map[string]string{"compresion": "zstd"}
	})},
	{"CreateVolume with a bad parameter", codes.InvalidArgument, (*model.Object).IsMade, create(func(r *csi.CreateVolumeRequest, _ *model.Object) {
		r.Parameters = map[string]string{"compression": "zstd:16"}
	})},
	{"CreateVolume with contradicting parameters", codes.InvalidArgument, (*model.Object).IsMade, create(func(r *csi.CreateVolumeRequest, _ *model.Object) {
		r.Parameters = map[string]string{"compression": "lzo", "nodatacow": "true"}
	})},
	{"CreateVolume with parameters to change", codes.InvalidArgument, (*model.Object).IsMade, create(func(r *csi.CreateVolumeRequest, _ *model.Object) {
		r.MutableParameters = map[string]string{"iops": "1"}
	})},
	{"CreateVolume in a bad pool", codes.InvalidArgument, (*model.Object).IsMade, create(func(r *csi.CreateVolumeRequest, _ *model.Object) {
		r.Parameters = map[string]string{"pool": "../pools"}
	})},
	{"CreateVolume in no pool", codes.ResourceExhausted, (*model.Object).IsMade, create(func(r *csi.CreateVolumeRequest, _ *model.Object) { r.Parameters = map[string]string{"pool": "absent"} })},
	{"CreateVolume elsewhere", codes.ResourceExhausted, (*model.Object).IsMade, create(func(r *csi.CreateVolumeRequest, _ *model.Object) {
		r.AccessibilityRequirements = &csi.TopologyRequirement{Requisite: []*csi.Topology{topologyOf("elsewhere")}}
	})},
	{"CreateVolume of a negative size", codes.InvalidArgument, (*model.Object).IsMade, create(func(r *csi.CreateVolumeRequest, _ *model.Object) { r.CapacityRange.RequiredBytes = -1 })},
	{"CreateVolume of no possible size", codes.OutOfRange, (*model.Object).IsMade, create(func(r *csi.CreateVolumeRequest, _ *model.Object) { r.CapacityRange.LimitBytes = 1 })},
	{"CreateVolume larger than the pool", codes.ResourceExhausted, (*model.Object).IsMade, create(func(r *csi.CreateVolumeRequest, _ *model.Object) { r.CapacityRange = gib(1 << 20) })},
	{"CreateVolume of no snapshot", codes.NotFound, (*model.Object).IsMade, create(func(r *csi.CreateVolumeRequest, _ *model.Object) {
		r.VolumeContentSource = sourceOf(&model.Object{Source: &model.Object{Kind: meta.Committed, ID: neverThere}})
	})},
	{"CreateVolume smaller than its source", codes.OutOfRange, (*model.Object).IsMade, create(func(r *csi.CreateVolumeRequest, o *model.Object) {
		r.CapacityRange.LimitBytes, r.VolumeContentSource = mib, sourceOf(&model.Object{Source: o})
	})},
	{"CreateVolume in another pool than its source", codes.InvalidArgument, (*model.Object).IsMade, create(func(r *csi.CreateVolumeRequest, o *model.Object) {
		r.Parameters, r.VolumeContentSource = map[string]string{"pool": "absent"}, sourceOf(&model.Object{Source: o})
	})},
	{"CreateVolume of another source", codes.AlreadyExists, (*model.Object).IsVolume, createAgain(func(r *csi.CreateVolumeRequest, _ *model.Object) {
		r.VolumeContentSource = sourceOf(&model.Object{Source: &model.Object{Kind: meta.Committed, ID: "snapshot-other"}})
	})},
	{"CreateVolume of another size", codes.AlreadyExists, (*model.Object).IsVolume, createAgain(func(r *csi.CreateVolumeRequest, _ *model.Object) { r.CapacityRange = gib(1 << 20) })},
	{"CreateVolume with other parameters", codes.AlreadyExists, (*model.Object).IsVolume, createAgain(func(r *csi.CreateVolumeRequest, _ *model.Object) {
		r.Parameters = map[string]string{"compression": "lzo"}
	})},

	{"CreateSnapshot without a name", codes.InvalidArgument, (*model.Object).IsVolume, takeSnapshot(func(r *csi.CreateSnapshotRequest, _ *model.Object) { r.Name = "" })},
	{"CreateSnapshot without a volume", codes.InvalidArgument, (*model.Object).IsVolume, takeSnapshot(func(r *csi.CreateSnapshotRequest, _ *model.Object) { r.SourceVolumeId = "" })},
	{"CreateSnapshot with a bad parameter", codes.InvalidArgument, (*model.Object).IsVolume, takeSnapshot(func(r *csi.CreateSnapshotRequest, _ *model.Object) {
		r.Parameters = map[string]string{"compression": "lzo"}
	})},
	{"CreateSnapshot of nothing", codes.NotFound, (*model.Object).IsMade, takeSnapshot(func(r *csi.CreateSnapshotRequest, _ *model.Object) { r.SourceVolumeId = neverThere })},
	{"CreateSnapshot of another volume", codes.AlreadyExists, (*model.Object).IsSnapshot, takeSnapshot(func(r *csi.CreateSnapshotRequest, o *model.Object) {
		r.Name, r.SourceVolumeId = o.Name, otherVolume
	})},
}

var provokeController = []provocation{
	{"DeleteVolume without an ID", codes.InvalidArgument, (*model.Object).IsMade, deleteVolume(constant(""))},
	{"DeleteVolume of nothing", codes.OK, (*model.Object).IsMade, deleteVolume(constant(neverThere))},
	{"DeleteVolume by a path", codes.OK, (*model.Object).IsVolume, deleteVolume(func(o *model.Object) string { return "../" + string(o.Kind) + "/" + o.ID })},
	{"DeleteVolume of a snapshot", codes.OK, (*model.Object).IsSnapshot, deleteVolume(own)},
	{"DeleteVolume in use", codes.FailedPrecondition, (*model.Object).IsMounted, deleteVolume(own)},
	{"DeleteSnapshot of a volume", codes.OK, (*model.Object).IsVolume, func(ctx context.Context, c *testkit.Driver, _ *node.Node, o *model.Object) error {
		_, err := c.DeleteSnapshot(ctx, &csi.DeleteSnapshotRequest{SnapshotId: o.ID})
		return err
	}},
	{"ControllerExpandVolume without an ID", codes.InvalidArgument, (*model.Object).IsMade, resize(constant(""), gib(1))},
	{"ControllerExpandVolume of nothing", codes.NotFound, (*model.Object).IsMade, resize(constant(neverThere), gib(1))},
	{"ControllerExpandVolume of a snapshot", codes.NotFound, (*model.Object).IsSnapshot, resize(own, gib(1))},
	{"ControllerExpandVolume to no size", codes.InvalidArgument, (*model.Object).IsVolume, resize(own, nil)},
	{"ControllerExpandVolume to a negative size", codes.InvalidArgument, (*model.Object).IsVolume, resize(own, gib(-1))},
	{"ControllerExpandVolume to at most less", codes.OutOfRange, (*model.Object).IsVolume, resize(own, &csi.CapacityRange{LimitBytes: mib})},
	{"ControllerExpandVolume beyond the pool", codes.ResourceExhausted, (*model.Object).IsVolume, resize(own, gib(1<<20))},
	{"ControllerGetVolume of a snapshot", codes.NotFound, (*model.Object).IsSnapshot, func(ctx context.Context, c *testkit.Driver, _ *node.Node, o *model.Object) error {
		_, err := c.ControllerGetVolume(ctx, &csi.ControllerGetVolumeRequest{VolumeId: o.ID})
		return err
	}},
	{"ControllerGetVolumeHealth of nothing", codes.NotFound, (*model.Object).IsMade, func(ctx context.Context, c *testkit.Driver, _ *node.Node, _ *model.Object) error {
		_, err := c.ControllerGetVolumeHealth(ctx, &csi.ControllerGetVolumeHealthRequest{VolumeId: neverThere})
		return err
	}},
	{"GetSnapshot of a volume", codes.NotFound, (*model.Object).IsVolume, func(ctx context.Context, c *testkit.Driver, _ *node.Node, o *model.Object) error {
		_, err := c.GetSnapshot(ctx, &csi.GetSnapshotRequest{SnapshotId: o.ID})
		return err
	}},
	{"ValidateVolumeCapabilities of nothing", codes.NotFound, (*model.Object).IsMade, func(ctx context.Context, c *testkit.Driver, _ *node.Node, o *model.Object) error {
		_, err := c.ValidateVolumeCapabilities(ctx, &csi.ValidateVolumeCapabilitiesRequest{VolumeId: neverThere, VolumeCapabilities: []*csi.VolumeCapability{capabilityOf(o)}})
		return err
	}},
	{"ValidateVolumeCapabilities without any", codes.InvalidArgument, (*model.Object).IsVolume, func(ctx context.Context, c *testkit.Driver, _ *node.Node, o *model.Object) error {
		_, err := c.ValidateVolumeCapabilities(ctx, &csi.ValidateVolumeCapabilitiesRequest{VolumeId: o.ID})
		return err
	}},
	{"ListVolumes of less than none", codes.InvalidArgument, (*model.Object).IsMade, func(ctx context.Context, c *testkit.Driver, _ *node.Node, _ *model.Object) error {
		_, err := c.ListVolumes(ctx, &csi.ListVolumesRequest{MaxEntries: -1})
		return err
	}},
	{"ListVolumes from nowhere", codes.Aborted, (*model.Object).IsMade, func(ctx context.Context, c *testkit.Driver, _ *node.Node, _ *model.Object) error {
		_, err := c.ListVolumes(ctx, &csi.ListVolumesRequest{StartingToken: "nowhere"})
		return err
	}},
	{"ListSnapshots from nowhere", codes.Aborted, (*model.Object).IsMade, func(ctx context.Context, c *testkit.Driver, _ *node.Node, _ *model.Object) error {
		_, err := c.ListSnapshots(ctx, &csi.ListSnapshotsRequest{StartingToken: "nowhere"})
		return err
	}},
	{"ControllerPublishVolume, which is not served", codes.Unimplemented, (*model.Object).IsVolume, func(ctx context.Context, c *testkit.Driver, _ *node.Node, o *model.Object) error {
		_, err := c.ControllerPublishVolume(ctx, &csi.ControllerPublishVolumeRequest{VolumeId: o.ID, NodeId: testkit.NodeID, VolumeCapability: capabilityOf(o)})
		return err
	}},
	{"ControllerModifyVolume, which is not served", codes.Unimplemented, (*model.Object).IsVolume, func(ctx context.Context, c *testkit.Driver, _ *node.Node, o *model.Object) error {
		_, err := c.ControllerModifyVolume(ctx, &csi.ControllerModifyVolumeRequest{VolumeId: o.ID})
		return err
	}},
}

var provokeNode = []provocation{
	{"NodeStageVolume of nothing", codes.NotFound, (*model.Object).IsVolume, stage(func(r *csi.NodeStageVolumeRequest, _ *node.Node) { r.VolumeId = neverThere })},
	{"NodeStageVolume without a capability", codes.InvalidArgument, (*model.Object).IsVolume, stage(func(r *csi.NodeStageVolumeRequest, _ *node.Node) { r.VolumeCapability = nil })},
	{"NodeStageVolume at no path", codes.InvalidArgument, (*model.Object).IsVolume, stage(func(r *csi.NodeStageVolumeRequest, _ *node.Node) { r.StagingTargetPath = "" })},
	{"NodeStageVolume outside", codes.InvalidArgument, (*model.Object).IsVolume, stage(func(r *csi.NodeStageVolumeRequest, n *node.Node) { r.StagingTargetPath = n.Pool() })},
	{"NodeStageVolume by a way outside", codes.InvalidArgument, (*model.Object).IsVolume, stage(func(r *csi.NodeStageVolumeRequest, n *node.Node) {
		r.StagingTargetPath = n.Kubelet + "/../state"
	})},
	{"NodeStageVolume where nothing is", codes.FailedPrecondition, (*model.Object).IsUnmounted, stage(func(*csi.NodeStageVolumeRequest, *node.Node) {})},
	{"NodeStageVolume of another pool", codes.FailedPrecondition, (*model.Object).IsVolume, stage(func(r *csi.NodeStageVolumeRequest, _ *node.Node) {
		r.VolumeContext = map[string]string{"poolID": "other"}
	})},
	{"NodeStageVolume of a view to write", codes.FailedPrecondition, (*model.Object).IsView, stage(func(r *csi.NodeStageVolumeRequest, _ *node.Node) {
		r.VolumeCapability = testkit.Capability(csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER)
	})},
	{"NodeStageVolume otherwise", codes.AlreadyExists, (*model.Object).IsMountedWritable, stage(func(r *csi.NodeStageVolumeRequest, _ *node.Node) {
		r.VolumeCapability.GetMount().MountFlags = []string{"ro"}
	})},
	{"NodePublishVolume of what is not staged", codes.FailedPrecondition, (*model.Object).IsUnmounted, publish(func(*csi.NodePublishVolumeRequest, *node.Node) {})},
	{"NodePublishVolume outside", codes.InvalidArgument, (*model.Object).IsVolume, publish(func(r *csi.NodePublishVolumeRequest, _ *node.Node) { r.TargetPath = "/etc" })},
	{"NodePublishVolume without a staging path", codes.FailedPrecondition, (*model.Object).IsVolume, publish(func(r *csi.NodePublishVolumeRequest, _ *node.Node) { r.StagingTargetPath = "" })},
	{"NodePublishVolume otherwise", codes.AlreadyExists, (*model.Object).IsMountedWritable, publish(func(r *csi.NodePublishVolumeRequest, _ *node.Node) { r.Readonly = true })},
	{"NodePublishVolume to a second writer", codes.FailedPrecondition, (*model.Object).IsMountedWritable, publish(func(r *csi.NodePublishVolumeRequest, n *node.Node) {
		r.TargetPath = filepath.Join(n.Kubelet, "second-"+r.GetVolumeId())
		r.VolumeCapability = testkit.Capability(csi.VolumeCapability_AccessMode_SINGLE_NODE_SINGLE_WRITER)
	})},
	{"NodeUnpublishVolume of another volume", codes.FailedPrecondition, (*model.Object).IsMounted, func(ctx context.Context, c *testkit.Driver, n *node.Node, o *model.Object) error {
		_, err := c.NodeUnpublishVolume(ctx, &csi.NodeUnpublishVolumeRequest{VolumeId: otherVolume, TargetPath: n.TargetOf(o)})
		return err
	}},
	{"NodeUnpublishVolume outside", codes.InvalidArgument, (*model.Object).IsVolume, func(ctx context.Context, c *testkit.Driver, n *node.Node, o *model.Object) error {
		_, err := c.NodeUnpublishVolume(ctx, &csi.NodeUnpublishVolumeRequest{VolumeId: o.ID, TargetPath: n.Pool()})
		return err
	}},
	{"NodeUnstageVolume of another volume", codes.FailedPrecondition, (*model.Object).IsMounted, func(ctx context.Context, c *testkit.Driver, n *node.Node, o *model.Object) error {
		_, err := c.NodeUnstageVolume(ctx, &csi.NodeUnstageVolumeRequest{VolumeId: otherVolume, StagingTargetPath: n.StagingOf(o)})
		return err
	}},
	{"NodeGetVolumeStats of what is not mounted", codes.NotFound, (*model.Object).IsUnmounted, func(ctx context.Context, c *testkit.Driver, n *node.Node, o *model.Object) error {
		_, err := c.NodeGetVolumeStats(ctx, &csi.NodeGetVolumeStatsRequest{VolumeId: o.ID, VolumePath: n.TargetOf(o)})
		return err
	}},
	{"NodeGetVolumeStats without a path", codes.InvalidArgument, (*model.Object).IsVolume, func(ctx context.Context, c *testkit.Driver, _ *node.Node, o *model.Object) error {
		_, err := c.NodeGetVolumeStats(ctx, &csi.NodeGetVolumeStatsRequest{VolumeId: o.ID})
		return err
	}},
	{"NodeExpandVolume of what is not mounted", codes.NotFound, (*model.Object).IsUnmounted, func(ctx context.Context, c *testkit.Driver, n *node.Node, o *model.Object) error {
		_, err := c.NodeExpandVolume(ctx, &csi.NodeExpandVolumeRequest{VolumeId: o.ID, VolumePath: n.TargetOf(o), CapacityRange: gib(1)})
		return err
	}},
}
