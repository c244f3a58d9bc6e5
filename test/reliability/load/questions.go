package load

import (
	"context"
	"errors"
	"fmt"
	"maps"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs"
	"github.com/btrfs-csi/btrfs-csi/test/reliability/model"
	"github.com/btrfs-csi/btrfs-csi/test/reliability/node"
	"github.com/btrfs-csi/btrfs-csi/test/testkit"
)

// question is a request that changes nothing and whose answer the model knows.
type question struct {
	what string
	fits func(*model.Object) bool
	ask  func(ctx context.Context, c *testkit.Driver, n *node.Node, o *model.Object, size int64) error
}

// look asks a question about one volume or snapshot.
func (w *Worker) look(ctx context.Context, o *model.Object) error {
	w.Mu.Lock()
	size := o.Sizes[len(o.Sizes)-1].Value
	var fit []question
	for _, q := range questions {
		if q.fits(o) {
			fit = append(fit, q)
		}
	}
	w.Mu.Unlock()
	return w.askFor(ctx, fit, o, size)
}

// lookAround asks a question about the driver.
func (w *Worker) lookAround(ctx context.Context, _ *model.Object) error {
	return w.askFor(ctx, nodeQuestions, nil, 0)
}

// Repeat asks one of the questions, by its name.
func (w *Worker) Repeat(ctx context.Context, what string, o *model.Object) error {
	for _, q := range questions {
		if q.what == what {
			return w.askFor(ctx, []question{q}, o, o.Sizes[len(o.Sizes)-1].Value)
		}
	}
	return fmt.Errorf("nobody asks %q", what)
}

func (w *Worker) askFor(ctx context.Context, questions []question, o *model.Object, size int64) error {
	q := questions[w.Random.IntN(len(questions))]
	err := w.Insist(ctx, q.what, o, func(ctx context.Context, c *testkit.Driver) error { return q.ask(ctx, c, w.Node, o, size) })
	if err != nil && o != nil {
		err = fmt.Errorf("%s of %s: %w", q.what, o.ID, err)
	}
	return err
}

// questions are about one object, which no one changes meanwhile. Those whose name is longer than
// a method repeat an earlier request.
var questions = []question{
	{"ControllerGetVolume", (*model.Object).IsVolume, func(ctx context.Context, c *testkit.Driver, n *node.Node, o *model.Object, size int64) error {
		response, err := c.ControllerGetVolume(ctx, &csi.ControllerGetVolumeRequest{VolumeId: o.ID})
		return answers(err, response.GetVolume(), volumeOf(o, size, n.PoolID()))
	}},
	{"ControllerGetVolumeHealth", (*model.Object).IsVolume, func(ctx context.Context, c *testkit.Driver, _ *node.Node, o *model.Object, _ int64) error {
		response, err := c.ControllerGetVolumeHealth(ctx, &csi.ControllerGetVolumeHealthRequest{VolumeId: o.ID})
		return answers(err, response.GetVolumeHealth(), &csi.VolumeHealth{VolumeId: o.ID})
	}},
	{"NodeGetVolumeHealth", (*model.Object).IsVolume, func(ctx context.Context, c *testkit.Driver, _ *node.Node, o *model.Object, _ int64) error {
		response, err := c.NodeGetVolumeHealth(ctx, &csi.NodeGetVolumeHealthRequest{VolumeId: o.ID})
		return answers(err, response.GetVolumeHealth(), &csi.VolumeHealth{VolumeId: o.ID})
	}},
	{"ValidateVolumeCapabilities", (*model.Object).IsVolume, func(ctx context.Context, c *testkit.Driver, n *node.Node, o *model.Object, _ int64) error {
		can := []*csi.VolumeCapability{capabilityOf(o)}
		of := map[string]string{"poolID": n.PoolID(), "storage.kubernetes.io/identity": "kept"}
		response, err := c.ValidateVolumeCapabilities(ctx, &csi.ValidateVolumeCapabilitiesRequest{
			VolumeId: o.ID, VolumeCapabilities: can, Parameters: o.Parameters, VolumeContext: of,
		})
		return answers(err, response, &csi.ValidateVolumeCapabilitiesResponse{Confirmed: &csi.ValidateVolumeCapabilitiesResponse_Confirmed{
			VolumeCapabilities: can, Parameters: o.Parameters, VolumeContext: of,
		}})
	}},
	{"ValidateVolumeCapabilities", (*model.Object).IsVolume, func(ctx context.Context, c *testkit.Driver, _ *node.Node, o *model.Object, _ int64) error {
		response, err := c.ValidateVolumeCapabilities(ctx, &csi.ValidateVolumeCapabilitiesRequest{
			VolumeId: o.ID, VolumeCapabilities: []*csi.VolumeCapability{testkit.Capability(csi.VolumeCapability_AccessMode_MULTI_NODE_MULTI_WRITER)},
		})
		if err == nil && (response.GetConfirmed() != nil || response.GetMessage() == "") {
			err = fmt.Errorf("got %v for writers on many nodes", response)
		}
		return err
	}},
	{"NodeGetVolumeStats", (*model.Object).IsMounted, func(ctx context.Context, c *testkit.Driver, n *node.Node, o *model.Object, size int64) error {
		response, err := c.NodeGetVolumeStats(ctx, &csi.NodeGetVolumeStatsRequest{VolumeId: o.ID, VolumePath: n.TargetOf(o)})
		if err != nil {
			return err
		}
		if n.Quota == btrfs.QuotaNone {
			size = node.PoolSize
		}
		u := response.GetUsage()
		if len(u) != 1 || u[0].GetTotal() != size || u[0].GetUsed() < 0 || u[0].GetAvailable() < 0 || u[0].GetUsed()+u[0].GetAvailable() > size {
			return fmt.Errorf("got %v, wanted are %d bytes in all", response, size)
		}
		return nil
	}},
	{"CreateVolume again", (*model.Object).IsVolume, func(ctx context.Context, c *testkit.Driver, n *node.Node, o *model.Object, size int64) error {
		response, err := c.CreateVolume(ctx, createRequest(o, nil))
		return answers(err, response.GetVolume(), volumeOf(o, size, n.PoolID()))
	}},
	{"ControllerExpandVolume to less", (*model.Object).IsWritable, func(ctx context.Context, c *testkit.Driver, n *node.Node, o *model.Object, size int64) error {
		now, err := expandTo(ctx, c, o, n, mib, false)
		if err == nil && now != size {
			err = fmt.Errorf("it has %d bytes now, wanted are %d", now, size)
		}
		return err
	}},
	{"NodeStageVolume again", (*model.Object).IsMounted, func(ctx context.Context, c *testkit.Driver, n *node.Node, o *model.Object, _ int64) error {
		_, err := c.NodeStageVolume(ctx, n.StageRequest(o.ID, capabilityOf(o)))
		return err
	}},
	{"NodePublishVolume again", (*model.Object).IsMounted, func(ctx context.Context, c *testkit.Driver, n *node.Node, o *model.Object, _ int64) error {
		_, err := c.NodePublishVolume(ctx, n.PublishRequest(o.ID, capabilityOf(o)))
		return err
	}},
	{"NodeUnpublishVolume again", (*model.Object).IsUnmounted, func(ctx context.Context, c *testkit.Driver, n *node.Node, o *model.Object, _ int64) error {
		_, err := c.NodeUnpublishVolume(ctx, &csi.NodeUnpublishVolumeRequest{VolumeId: o.ID, TargetPath: n.TargetOf(o)})
		return err
	}},
	{"NodeUnstageVolume again", (*model.Object).IsUnmounted, func(ctx context.Context, c *testkit.Driver, n *node.Node, o *model.Object, _ int64) error {
		_, err := c.NodeUnstageVolume(ctx, &csi.NodeUnstageVolumeRequest{VolumeId: o.ID, StagingTargetPath: n.StagingOf(o)})
		return err
	}},
	{"GetSnapshot", (*model.Object).IsSnapshot, func(ctx context.Context, c *testkit.Driver, _ *node.Node, o *model.Object, size int64) error {
		response, err := c.GetSnapshot(ctx, &csi.GetSnapshotRequest{SnapshotId: o.ID})
		return answers(err, response.GetSnapshot(), snapshotOf(o, size, response.GetSnapshot().GetCreationTime()))
	}},
	{"ListSnapshots of one", (*model.Object).IsSnapshot, func(ctx context.Context, c *testkit.Driver, _ *node.Node, o *model.Object, size int64) error {
		response, err := c.ListSnapshots(ctx, &csi.ListSnapshotsRequest{SnapshotId: o.ID, SourceVolumeId: o.Source.ID})
		if n := len(response.GetEntries()); err == nil && (n != 1 || response.GetNextToken() != "") {
			return fmt.Errorf("got %v", response)
		}
		if err != nil {
			return err
		}
		s := response.GetEntries()[0].GetSnapshot()
		return answers(nil, s, snapshotOf(o, size, s.GetCreationTime()))
	}},
	{"CreateSnapshot again", (*model.Object).IsSnapshot, func(ctx context.Context, c *testkit.Driver, _ *node.Node, o *model.Object, size int64) error {
		response, err := c.CreateSnapshot(ctx, &csi.CreateSnapshotRequest{Name: o.Name, SourceVolumeId: o.Source.ID})
		return answers(err, response.GetSnapshot(), snapshotOf(o, size, response.GetSnapshot().GetCreationTime()))
	}},
}

// nodeQuestions are about the driver. csi-sanity compares its capabilities.
var nodeQuestions = []question{
	{"Probe", nil, func(ctx context.Context, c *testkit.Driver, _ *node.Node, _ *model.Object, _ int64) error {
		response, err := c.Probe(ctx, &csi.ProbeRequest{})
		if err == nil && !response.GetReady().GetValue() {
			err = errors.New("a driver that serves says that it is not ready")
		}
		return err
	}},
	{"GetPluginInfo", nil, func(ctx context.Context, c *testkit.Driver, _ *node.Node, _ *model.Object, _ int64) error {
		response, err := c.GetPluginInfo(ctx, &csi.GetPluginInfoRequest{})
		if err == nil && response.GetName() != driverName {
			err = fmt.Errorf("got %v", response)
		}
		return err
	}},
	{"GetPluginCapabilities", nil, func(ctx context.Context, c *testkit.Driver, _ *node.Node, _ *model.Object, _ int64) error {
		_, err := c.GetPluginCapabilities(ctx, &csi.GetPluginCapabilitiesRequest{})
		return err
	}},
	{"ControllerGetCapabilities", nil, func(ctx context.Context, c *testkit.Driver, _ *node.Node, _ *model.Object, _ int64) error {
		_, err := c.ControllerGetCapabilities(ctx, &csi.ControllerGetCapabilitiesRequest{})
		return err
	}},
	{"NodeGetCapabilities", nil, func(ctx context.Context, c *testkit.Driver, _ *node.Node, _ *model.Object, _ int64) error {
		_, err := c.NodeGetCapabilities(ctx, &csi.NodeGetCapabilitiesRequest{})
		return err
	}},
	{"NodeGetInfo", nil, func(ctx context.Context, c *testkit.Driver, n *node.Node, _ *model.Object, _ int64) error {
		response, err := c.NodeGetInfo(ctx, &csi.NodeGetInfoRequest{})
		return answers(err, response, &csi.NodeGetInfoResponse{NodeId: testkit.NodeID, AccessibleTopology: topologyOf(n.PoolID())})
	}},
	{"NodeGetStorageHealth", nil, func(ctx context.Context, c *testkit.Driver, _ *node.Node, _ *model.Object, _ int64) error {
		response, err := c.NodeGetStorageHealth(ctx, &csi.NodeGetStorageHealthRequest{})
		return answers(err, response, &csi.NodeGetStorageHealthResponse{})
	}},
	{"GetCapacity", nil, func(ctx context.Context, c *testkit.Driver, n *node.Node, _ *model.Object, _ int64) error {
		response, err := c.GetCapacity(ctx, &csi.GetCapacityRequest{AccessibleTopology: topologyOf(n.PoolID())})
		if err != nil {
			return err
		}
		room, least, most := response.GetAvailableCapacity(), response.GetMinimumVolumeSize().GetValue(), response.GetMaximumVolumeSize().GetValue()
		if room <= 0 || room > node.PoolSize || most <= 0 || most > node.PoolSize || least != mib {
			return fmt.Errorf("got %v of a pool of %d bytes", response, int64(node.PoolSize))
		}
		return nil
	}},
	{"GetCapacity of another pool", nil, func(ctx context.Context, c *testkit.Driver, _ *node.Node, _ *model.Object, _ int64) error {
		response, err := c.GetCapacity(ctx, &csi.GetCapacityRequest{Parameters: map[string]string{"pool": "absent"}})
		return answers(err, response, &csi.GetCapacityResponse{})
	}},
	{"GetCapacity elsewhere", nil, func(ctx context.Context, c *testkit.Driver, _ *node.Node, _ *model.Object, _ int64) error {
		response, err := c.GetCapacity(ctx, &csi.GetCapacityRequest{AccessibleTopology: topologyOf("elsewhere")})
		return answers(err, response, &csi.GetCapacityResponse{})
	}},
}

// answers fails unless the answer of the driver equals the wanted one.
func answers(err error, said, want proto.Message) error {
	if err == nil && !proto.Equal(said, want) {
		err = fmt.Errorf("the driver says %v, wanted is %v", said, want)
	}
	return err
}

// driverName is the name of the CSI driver.
const driverName = "btrfs-csi.github.io"

func topologyOf(poolID string) *csi.Topology {
	return &csi.Topology{Segments: map[string]string{"topology." + driverName + "/" + poolID: "true"}}
}

// volumeOf returns the wanted description of a volume.
func volumeOf(o *model.Object, size int64, poolID string) *csi.Volume {
	return &csi.Volume{
		VolumeId: o.ID, CapacityBytes: size, ContentSource: sourceOf(o),
		VolumeContext: map[string]string{"poolID": poolID}, AccessibleTopology: []*csi.Topology{topologyOf(poolID)},
	}
}

// snapshotOf returns the wanted description of a snapshot. Only the driver knows its creation time.
func snapshotOf(o *model.Object, size int64, when *timestamppb.Timestamp) *csi.Snapshot {
	return &csi.Snapshot{SnapshotId: o.ID, SourceVolumeId: o.Source.ID, SizeBytes: size, CreationTime: when, ReadyToUse: when.GetSeconds() > 0}
}

// list lists all volumes, all snapshots or the snapshots of one volume, in pages, while other
// workers change them.
func (w *Worker) list(ctx context.Context, _ *model.Object) error {
	page := int32(w.Random.IntN(12)) // 0 means all in one page
	what, fits, of := "ListVolumes", (*model.Object).IsVolume, ""
	if w.Random.IntN(2) == 0 {
		what, fits = "ListSnapshots", (*model.Object).IsSnapshot
	}
	if source := w.draw(task{fits: (*model.Object).IsVolume, shared: true}); what == "ListSnapshots" && source != nil && w.Random.IntN(2) == 0 {
		what, of = "ListSnapshots of a volume", source.ID
		fits = func(o *model.Object) bool { return o.IsSnapshot() && o.Source == source }
	}
	var found []node.Listed
	var during model.Window
	err := w.Insist(ctx, what, nil, func(ctx context.Context, c *testkit.Driver) (err error) {
		during.From = w.Here()
		if what == "ListVolumes" {
			found, err = node.ListVolumes(ctx, c, page)
		} else {
			found, err = node.ListSnapshots(ctx, c, page, of)
		}
		during.To = w.Here()
		return err
	})
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	expected := w.Expect(during)
	maps.DeleteFunc(expected, func(_ string, e model.Expectation) bool { return !fits(e.Object) })
	return node.CompareList(expected, found)
}
