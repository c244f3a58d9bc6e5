package reliability

import (
	"context"
	"errors"
	"fmt"
	"maps"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs"
	"github.com/btrfs-csi/btrfs-csi/test/testkit"
)

// question changes nothing, and the model knows the answer.
type question struct {
	what string
	fits func(*object) bool
	ask  func(ctx context.Context, c *testkit.Driver, n *node, o *object, size int64) error
}

// look asks something of one volume or snapshot.
func (w *worker) look(ctx context.Context, o *object) error {
	w.mu.Lock()
	size := o.sizes[len(o.sizes)-1].value
	var fit []question
	for _, q := range questions {
		if q.fits(o) {
			fit = append(fit, q)
		}
	}
	w.mu.Unlock()
	return w.askFor(ctx, fit, o, size)
}

// lookAround asks something of the driver.
func (w *worker) lookAround(ctx context.Context, _ *object) error {
	return w.askFor(ctx, nodeQuestions, nil, 0)
}

// repeat asks one of the questions, by its name.
func (w *worker) repeat(ctx context.Context, what string, o *object) error {
	for _, q := range questions {
		if q.what == what {
			return w.askFor(ctx, []question{q}, o, o.sizes[len(o.sizes)-1].value)
		}
	}
	return fmt.Errorf("nobody asks %q", what)
}

func (w *worker) askFor(ctx context.Context, questions []question, o *object, size int64) error {
	q := questions[w.random.IntN(len(questions))]
	err := w.insist(ctx, q.what, o, func(ctx context.Context, c *testkit.Driver) error { return q.ask(ctx, c, w.node, o, size) })
	if err != nil && o != nil {
		err = fmt.Errorf("%s of %s: %w", q.what, o.id, err)
	}
	return err
}

// questions are asked of an object that nobody changes meanwhile. Those that are named by
// more than their method repeat what was done already.
var questions = []question{
	{"ControllerGetVolume", (*object).isVolume, func(ctx context.Context, c *testkit.Driver, n *node, o *object, size int64) error {
		response, err := c.ControllerGetVolume(ctx, &csi.ControllerGetVolumeRequest{VolumeId: o.id})
		return answers(err, response.GetVolume(), volumeOf(o, size, n.poolID()))
	}},
	{"ControllerGetVolumeHealth", (*object).isVolume, func(ctx context.Context, c *testkit.Driver, _ *node, o *object, _ int64) error {
		response, err := c.ControllerGetVolumeHealth(ctx, &csi.ControllerGetVolumeHealthRequest{VolumeId: o.id})
		return answers(err, response.GetVolumeHealth(), &csi.VolumeHealth{VolumeId: o.id})
	}},
	{"NodeGetVolumeHealth", (*object).isVolume, func(ctx context.Context, c *testkit.Driver, _ *node, o *object, _ int64) error {
		response, err := c.NodeGetVolumeHealth(ctx, &csi.NodeGetVolumeHealthRequest{VolumeId: o.id})
		return answers(err, response.GetVolumeHealth(), &csi.VolumeHealth{VolumeId: o.id})
	}},
	{"ValidateVolumeCapabilities", (*object).isVolume, func(ctx context.Context, c *testkit.Driver, n *node, o *object, _ int64) error {
		can := []*csi.VolumeCapability{capabilityOf(o)}
		of := map[string]string{"poolID": n.poolID(), "storage.kubernetes.io/identity": "kept"}
		response, err := c.ValidateVolumeCapabilities(ctx, &csi.ValidateVolumeCapabilitiesRequest{
			VolumeId: o.id, VolumeCapabilities: can, Parameters: o.parameters, VolumeContext: of,
		})
		return answers(err, response, &csi.ValidateVolumeCapabilitiesResponse{Confirmed: &csi.ValidateVolumeCapabilitiesResponse_Confirmed{
			VolumeCapabilities: can, Parameters: o.parameters, VolumeContext: of,
		}})
	}},
	{"ValidateVolumeCapabilities", (*object).isVolume, func(ctx context.Context, c *testkit.Driver, _ *node, o *object, _ int64) error {
		response, err := c.ValidateVolumeCapabilities(ctx, &csi.ValidateVolumeCapabilitiesRequest{
			VolumeId: o.id, VolumeCapabilities: []*csi.VolumeCapability{testkit.Capability(csi.VolumeCapability_AccessMode_MULTI_NODE_MULTI_WRITER)},
		})
		if err == nil && (response.GetConfirmed() != nil || response.GetMessage() == "") {
			err = fmt.Errorf("got %v for writers on many nodes", response)
		}
		return err
	}},
	{"NodeGetVolumeStats", (*object).isMounted, func(ctx context.Context, c *testkit.Driver, n *node, o *object, size int64) error {
		response, err := c.NodeGetVolumeStats(ctx, &csi.NodeGetVolumeStatsRequest{VolumeId: o.id, VolumePath: n.target(o)})
		if err != nil {
			return err
		}
		if n.quota == btrfs.QuotaNone {
			size = poolSize
		}
		u := response.GetUsage()
		if len(u) != 1 || u[0].GetTotal() != size || u[0].GetUsed() < 0 || u[0].GetAvailable() < 0 || u[0].GetUsed()+u[0].GetAvailable() > size {
			return fmt.Errorf("got %v, wanted are %d bytes in all", response, size)
		}
		return nil
	}},
	{"CreateVolume again", (*object).isVolume, func(ctx context.Context, c *testkit.Driver, n *node, o *object, size int64) error {
		response, err := c.CreateVolume(ctx, createRequest(o, nil))
		return answers(err, response.GetVolume(), volumeOf(o, size, n.poolID()))
	}},
	{"ControllerExpandVolume to less", (*object).isWritable, func(ctx context.Context, c *testkit.Driver, n *node, o *object, size int64) error {
		now, err := expandTo(ctx, c, o, n, mib, false)
		if err == nil && now != size {
			err = fmt.Errorf("it has %d bytes now, wanted are %d", now, size)
		}
		return err
	}},
	{"NodeStageVolume again", (*object).isMounted, func(ctx context.Context, c *testkit.Driver, n *node, o *object, _ int64) error {
		_, err := c.NodeStageVolume(ctx, n.StageRequest(o.id, capabilityOf(o)))
		return err
	}},
	{"NodePublishVolume again", (*object).isMounted, func(ctx context.Context, c *testkit.Driver, n *node, o *object, _ int64) error {
		_, err := c.NodePublishVolume(ctx, n.PublishRequest(o.id, capabilityOf(o)))
		return err
	}},
	{"NodeUnpublishVolume again", (*object).isUnmounted, func(ctx context.Context, c *testkit.Driver, n *node, o *object, _ int64) error {
		_, err := c.NodeUnpublishVolume(ctx, &csi.NodeUnpublishVolumeRequest{VolumeId: o.id, TargetPath: n.target(o)})
		return err
	}},
	{"NodeUnstageVolume again", (*object).isUnmounted, func(ctx context.Context, c *testkit.Driver, n *node, o *object, _ int64) error {
		_, err := c.NodeUnstageVolume(ctx, &csi.NodeUnstageVolumeRequest{VolumeId: o.id, StagingTargetPath: n.staging(o)})
		return err
	}},
	{"GetSnapshot", (*object).isSnapshot, func(ctx context.Context, c *testkit.Driver, _ *node, o *object, size int64) error {
		response, err := c.GetSnapshot(ctx, &csi.GetSnapshotRequest{SnapshotId: o.id})
		return answers(err, response.GetSnapshot(), snapshotOf(o, size, response.GetSnapshot().GetCreationTime()))
	}},
	{"ListSnapshots of one", (*object).isSnapshot, func(ctx context.Context, c *testkit.Driver, _ *node, o *object, size int64) error {
		response, err := c.ListSnapshots(ctx, &csi.ListSnapshotsRequest{SnapshotId: o.id, SourceVolumeId: o.source.id})
		if n := len(response.GetEntries()); err == nil && (n != 1 || response.GetNextToken() != "") {
			return fmt.Errorf("got %v", response)
		}
		if err != nil {
			return err
		}
		s := response.GetEntries()[0].GetSnapshot()
		return answers(nil, s, snapshotOf(o, size, s.GetCreationTime()))
	}},
	{"CreateSnapshot again", (*object).isSnapshot, func(ctx context.Context, c *testkit.Driver, _ *node, o *object, size int64) error {
		response, err := c.CreateSnapshot(ctx, &csi.CreateSnapshotRequest{Name: o.name, SourceVolumeId: o.source.id})
		return answers(err, response.GetSnapshot(), snapshotOf(o, size, response.GetSnapshot().GetCreationTime()))
	}},
}

// nodeQuestions are asked of the driver. What it can do is compared by sanity.
var nodeQuestions = []question{
	{"Probe", nil, func(ctx context.Context, c *testkit.Driver, _ *node, _ *object, _ int64) error {
		response, err := c.Probe(ctx, &csi.ProbeRequest{})
		if err == nil && !response.GetReady().GetValue() {
			err = errors.New("a driver that serves says that it is not ready")
		}
		return err
	}},
	{"GetPluginInfo", nil, func(ctx context.Context, c *testkit.Driver, _ *node, _ *object, _ int64) error {
		response, err := c.GetPluginInfo(ctx, &csi.GetPluginInfoRequest{})
		if err == nil && response.GetName() != driverName {
			err = fmt.Errorf("got %v", response)
		}
		return err
	}},
	{"GetPluginCapabilities", nil, func(ctx context.Context, c *testkit.Driver, _ *node, _ *object, _ int64) error {
		_, err := c.GetPluginCapabilities(ctx, &csi.GetPluginCapabilitiesRequest{})
		return err
	}},
	{"ControllerGetCapabilities", nil, func(ctx context.Context, c *testkit.Driver, _ *node, _ *object, _ int64) error {
		_, err := c.ControllerGetCapabilities(ctx, &csi.ControllerGetCapabilitiesRequest{})
		return err
	}},
	{"NodeGetCapabilities", nil, func(ctx context.Context, c *testkit.Driver, _ *node, _ *object, _ int64) error {
		_, err := c.NodeGetCapabilities(ctx, &csi.NodeGetCapabilitiesRequest{})
		return err
	}},
	{"NodeGetInfo", nil, func(ctx context.Context, c *testkit.Driver, n *node, _ *object, _ int64) error {
		response, err := c.NodeGetInfo(ctx, &csi.NodeGetInfoRequest{})
		return answers(err, response, &csi.NodeGetInfoResponse{NodeId: testkit.NodeID, AccessibleTopology: topologyOf(n.poolID())})
	}},
	{"NodeGetStorageHealth", nil, func(ctx context.Context, c *testkit.Driver, _ *node, _ *object, _ int64) error {
		response, err := c.NodeGetStorageHealth(ctx, &csi.NodeGetStorageHealthRequest{})
		return answers(err, response, &csi.NodeGetStorageHealthResponse{})
	}},
	{"GetCapacity", nil, func(ctx context.Context, c *testkit.Driver, n *node, _ *object, _ int64) error {
		response, err := c.GetCapacity(ctx, &csi.GetCapacityRequest{AccessibleTopology: topologyOf(n.poolID())})
		if err != nil {
			return err
		}
		room, least, most := response.GetAvailableCapacity(), response.GetMinimumVolumeSize().GetValue(), response.GetMaximumVolumeSize().GetValue()
		if room <= 0 || room > poolSize || most <= 0 || most > poolSize || least != mib {
			return fmt.Errorf("got %v of a pool of %d bytes", response, int64(poolSize))
		}
		return nil
	}},
	{"GetCapacity of another pool", nil, func(ctx context.Context, c *testkit.Driver, _ *node, _ *object, _ int64) error {
		response, err := c.GetCapacity(ctx, &csi.GetCapacityRequest{Parameters: map[string]string{"pool": "absent"}})
		return answers(err, response, &csi.GetCapacityResponse{})
	}},
	{"GetCapacity elsewhere", nil, func(ctx context.Context, c *testkit.Driver, _ *node, _ *object, _ int64) error {
		response, err := c.GetCapacity(ctx, &csi.GetCapacityRequest{AccessibleTopology: topologyOf("elsewhere")})
		return answers(err, response, &csi.GetCapacityResponse{})
	}},
}

// answers fails unless the driver has said what is wanted, to the letter.
func answers(err error, said, want proto.Message) error {
	if err == nil && !proto.Equal(said, want) {
		err = fmt.Errorf("the driver says %v, wanted is %v", said, want)
	}
	return err
}

// driverName is what the driver is known by, which never changes.
const driverName = "btrfs-csi.github.io"

func topologyOf(poolID string) *csi.Topology {
	return &csi.Topology{Segments: map[string]string{"topology." + driverName + "/" + poolID: "true"}}
}

// volumeOf is what the driver has to say of a volume.
func volumeOf(o *object, size int64, poolID string) *csi.Volume {
	return &csi.Volume{
		VolumeId: o.id, CapacityBytes: size, ContentSource: sourceOf(o),
		VolumeContext: map[string]string{"poolID": poolID}, AccessibleTopology: []*csi.Topology{topologyOf(poolID)},
	}
}

// snapshotOf is what it has to say of a snapshot. When it was made the driver knows.
func snapshotOf(o *object, size int64, when *timestamppb.Timestamp) *csi.Snapshot {
	return &csi.Snapshot{SnapshotId: o.id, SourceVolumeId: o.source.id, SizeBytes: size, CreationTime: when, ReadyToUse: when.GetSeconds() > 0}
}

// list asks for all volumes, all snapshots or those of one volume, in pages, while others
// change them.
func (w *worker) list(ctx context.Context, _ *object) error {
	page := int32(w.random.IntN(12)) // 0 is all at once
	what, fits, of := "ListVolumes", (*object).isVolume, ""
	if w.random.IntN(2) == 0 {
		what, fits = "ListSnapshots", (*object).isSnapshot
	}
	if source := w.draw(task{fits: (*object).isVolume, shared: true}); what == "ListSnapshots" && source != nil && w.random.IntN(2) == 0 {
		what, of = "ListSnapshots of a volume", source.id
		fits = func(o *object) bool { return o.isSnapshot() && o.source == source }
	}
	var found []listed
	var during window
	err := w.insist(ctx, what, nil, func(ctx context.Context, c *testkit.Driver) (err error) {
		during.from = w.here()
		if what == "ListVolumes" {
			found, err = listVolumes(ctx, c, page)
		} else {
			found, err = listSnapshots(ctx, c, page, of)
		}
		during.to = w.here()
		return err
	})
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	expected := w.expect(during)
	maps.DeleteFunc(expected, func(_ string, e expectation) bool { return !fits(e.object) })
	return compareList(expected, found)
}
