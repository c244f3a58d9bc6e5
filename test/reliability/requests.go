package reliability

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
)

const mib = 1 << 20

// classes are the parameters that volumes are made with.
var classes = []map[string]string{nil, nil, nil, {"compression": "zstd"}, {"nodatacow": "true"}}

// create makes an empty volume.
func (w *worker) create(ctx context.Context, _ *object) error {
	size := int64(64+w.random.IntN(64)) * mib
	o := &object{kind: meta.Active, parameters: classes[w.random.IntN(len(classes))]}
	o.sizes = timeline[int64]{{value: size}}
	o.contents = timeline[content]{{}}
	w.declareNext(o)
	defer w.release(o)
	return w.makeVolume(ctx, o, &csi.CapacityRange{RequiredBytes: size})
}

// copier makes a copy of an object: a snapshot, a clone or restore, or a view.
func (w *worker) copier(kind meta.Kind) func(context.Context, *object) error {
	return func(ctx context.Context, source *object) error {
		o := w.declareNext(&object{kind: kind, source: source})
		defer w.release(o)
		if kind == meta.Committed {
			return w.makeSnapshot(ctx, o)
		}
		return w.makeVolume(ctx, o, nil)
	}
}

func (w *worker) makeVolume(ctx context.Context, o *object, size *csi.CapacityRange) error {
	var made *csi.Volume
	err := w.insist(ctx, "CreateVolume", o, func(ctx context.Context, c *client) error {
		response, err := c.CreateVolume(ctx, createRequest(o, size))
		made = response.GetVolume()
		return err
	})
	return w.settle(o, err, made.GetVolumeId(), made.GetCapacityBytes())
}

func createRequest(o *object, size *csi.CapacityRange) *csi.CreateVolumeRequest {
	return &csi.CreateVolumeRequest{
		Name: o.name, CapacityRange: size, Parameters: o.parameters, VolumeContentSource: sourceOf(o),
		VolumeCapabilities: []*csi.VolumeCapability{capabilityOf(o)},
	}
}

func (w *worker) makeSnapshot(ctx context.Context, o *object) error {
	var made *csi.Snapshot
	err := w.insist(ctx, "CreateSnapshot", o, func(ctx context.Context, c *client) error {
		response, err := c.CreateSnapshot(ctx, &csi.CreateSnapshotRequest{Name: o.name, SourceVolumeId: o.source.id})
		made = response.GetSnapshot()
		return err
	})
	return w.settle(o, err, made.GetSnapshotId(), made.GetSizeBytes())
}

// settle notes how the making of an object has ended. Only for a copy whose source
// is being removed may that be a refusal.
func (w *worker) settle(o *object, err error, id string, size int64) error {
	if status.Code(err) == codes.NotFound && o.source != nil && w.removing(o.source) {
		w.refused(o)
		return nil
	}
	if err != nil {
		return fmt.Errorf("create %s: %w", o.id, err)
	}
	if id != o.id {
		return fmt.Errorf("create %q: has the ID %q, wanted is %q", o.name, id, o.id)
	}
	now, err := contentOf(w.node.subvolume(o))
	if err != nil {
		return err
	}
	return w.exists(o, size, now)
}

func (w *worker) removing(o *object) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return o.removed.asked != 0
}

func (w *worker) remove(ctx context.Context, o *object) error {
	w.ask(o, &o.removed, "remove")
	what := "DeleteVolume"
	if o.isSnapshot() {
		what = "DeleteSnapshot"
	}
	err := w.insist(ctx, what, o, func(ctx context.Context, c *client) (err error) {
		if o.isSnapshot() {
			_, err = c.DeleteSnapshot(ctx, &csi.DeleteSnapshotRequest{SnapshotId: o.id})
		} else {
			_, err = c.DeleteVolume(ctx, &csi.DeleteVolumeRequest{VolumeId: o.id})
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("remove %s: %w", o.id, err)
	}
	w.gone(o)
	return nil
}

func (w *worker) expand(ctx context.Context, o *object) error {
	w.mu.Lock()
	size := o.sizes[len(o.sizes)-1].value + int64(1+w.random.IntN(8))*mib
	grown := &event[int64]{value: size}
	o.sizes = append(o.sizes, grown)
	w.mu.Unlock()
	w.ask(o, &grown.span, "expand to %d", size)
	err := w.insist(ctx, "ControllerExpandVolume", o, func(ctx context.Context, c *client) error {
		response, err := c.ControllerExpandVolume(ctx, &csi.ControllerExpandVolumeRequest{
			VolumeId: o.id, CapacityRange: &csi.CapacityRange{RequiredBytes: size}, VolumeCapability: capabilityOf(o),
		})
		if err == nil && response.GetCapacityBytes() != size {
			err = fmt.Errorf("it has %d bytes now, wanted are %d", response.GetCapacityBytes(), size)
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("expand %s: %w", o.id, err)
	}
	w.answer(o, &grown.span, expanded)
	return nil
}

// mount stages and publishes a volume, and looks through the mount.
func (w *worker) mount(ctx context.Context, o *object) error {
	staging, target := w.node.staging(o), w.node.target(o)
	if err := os.MkdirAll(staging, 0o750); err != nil {
		return err
	}
	err := w.place(ctx, "NodeStageVolume", o, &o.staged, present, func(ctx context.Context, c *client) error {
		_, err := c.NodeStageVolume(ctx, &csi.NodeStageVolumeRequest{VolumeId: o.id, StagingTargetPath: staging, VolumeCapability: capabilityOf(o)})
		return err
	})
	if err != nil {
		return err
	}
	err = w.place(ctx, "NodePublishVolume", o, &o.published, present, func(ctx context.Context, c *client) error {
		_, err := c.NodePublishVolume(ctx, &csi.NodePublishVolumeRequest{
			VolumeId: o.id, StagingTargetPath: staging, TargetPath: target, VolumeCapability: capabilityOf(o),
		})
		return err
	})
	if err != nil {
		return err
	}
	return w.touch(ctx, func() error { return w.peruse(o, target) })
}

// peruse looks at a volume as a pod does.
func (w *worker) peruse(o *object, target string) error {
	now, err := contentOf(target)
	if err != nil {
		return err
	}
	w.mu.Lock()
	want := o.contents[len(o.contents)-1].value
	w.mu.Unlock()
	if now != want {
		return fmt.Errorf("%s is published with %s, wanted is %s", o.id, now, want)
	}
	if o.kind.ReadOnly() {
		return refusesWrites(target)
	}
	return nil
}

func (w *worker) unmount(ctx context.Context, o *object) error {
	staging, target := w.node.staging(o), w.node.target(o)
	err := w.place(ctx, "NodeUnpublishVolume", o, &o.published, absent, func(ctx context.Context, c *client) error {
		_, err := c.NodeUnpublishVolume(ctx, &csi.NodeUnpublishVolumeRequest{VolumeId: o.id, TargetPath: target})
		return err
	})
	if err != nil {
		return err
	}
	err = w.place(ctx, "NodeUnstageVolume", o, &o.staged, absent, func(ctx context.Context, c *client) error {
		_, err := c.NodeUnstageVolume(ctx, &csi.NodeUnstageVolumeRequest{VolumeId: o.id, StagingTargetPath: staging})
		return err
	})
	if err != nil {
		return err
	}
	return os.Remove(staging)
}

// place changes a mount.
func (w *worker) place(ctx context.Context, what string, o *object, p *presence, then presence, send func(context.Context, *client) error) error {
	set := func(to presence) {
		w.mu.Lock()
		defer w.mu.Unlock()
		*p = to
	}
	set(unsure)
	if err := w.insist(ctx, what, o, send); err != nil {
		return fmt.Errorf("%s %s: %w", what, o.id, err)
	}
	set(then)
	return nil
}

// longestBurst is how many files are written one after the other, at most.
const longestBurst = 8

// write changes files by way of the mount, as a pod does.
func (w *worker) write(ctx context.Context, o *object) error {
	for range 1 + w.random.IntN(longestBurst) {
		if err := w.writeOne(ctx, o); err != nil {
			return err
		}
	}
	return nil
}

func (w *worker) writeOne(ctx context.Context, o *object) error {
	w.mu.Lock()
	before := o.contents[len(o.contents)-1].value
	w.mu.Unlock()
	c := randomChange(w.random, before)
	return w.touch(ctx, func() error {
		next := &event[content]{value: c.after(before)}
		w.mu.Lock()
		o.contents = append(o.contents, next)
		w.mu.Unlock()
		w.ask(o, &next.span, "write %s %d", c.name, len(c.data))
		if err := c.make(w.node.target(o)); err != nil {
			return fmt.Errorf("write to %s: %w", o.id, err)
		}
		w.answer(o, &next.span, written)
		w.counts.write()
		return nil
	})
}

// look asks for one volume, and what it holds.
func (w *worker) look(ctx context.Context, o *object) error {
	w.mu.Lock()
	size := o.sizes[len(o.sizes)-1].value
	mounted := o.published == present
	w.mu.Unlock()
	err := w.insist(ctx, "ControllerGetVolume", o, func(ctx context.Context, c *client) error {
		response, err := c.ControllerGetVolume(ctx, &csi.ControllerGetVolumeRequest{VolumeId: o.id})
		if have := response.GetVolume().GetCapacityBytes(); err == nil && have != size {
			return fmt.Errorf("it has %d bytes, wanted are %d", have, size)
		}
		return err
	})
	if err == nil && mounted {
		err = w.insist(ctx, "NodeGetVolumeStats", o, func(ctx context.Context, c *client) error {
			_, err := c.NodeGetVolumeStats(ctx, &csi.NodeGetVolumeStatsRequest{VolumeId: o.id, VolumePath: w.node.target(o)})
			return err
		})
	}
	if err != nil {
		return fmt.Errorf("look at %s: %w", o.id, err)
	}
	return nil
}

// list asks for everything, while others change it.
func (w *worker) list(ctx context.Context, _ *object) error {
	var found []listed
	var during window
	err := w.insist(ctx, "List", nil, func(ctx context.Context, c *client) (err error) {
		during.from = w.here()
		found, err = c.list(ctx)
		during.to = w.here()
		return err
	})
	if err != nil {
		return fmt.Errorf("list: %w", err)
	}
	return compareList(w.expect(during), found)
}

// provoke asks for what has to be refused.
func (w *worker) provoke(ctx context.Context, o *object) error {
	w.mu.Lock()
	mounted := o.published == present
	w.mu.Unlock()
	provocations := []struct {
		what string
		want codes.Code
		send func(context.Context, *client) error
	}{
		{"CreateVolume of another source", codes.AlreadyExists, func(ctx context.Context, c *client) error {
			request := createRequest(o, nil)
			request.VolumeContentSource = sourceOf(&object{source: &object{kind: meta.Committed, id: "snapshot-other"}})
			_, err := c.CreateVolume(ctx, request)
			return err
		}},
		{"CreateSnapshot of nothing", codes.NotFound, func(ctx context.Context, c *client) error {
			_, err := c.CreateSnapshot(ctx, &csi.CreateSnapshotRequest{Name: "snapshot-of-nothing", SourceVolumeId: o.id + "-not"})
			return err
		}},
		{"CreateVolume with a misspelt parameter", codes.InvalidArgument, func(ctx context.Context, c *client) error {
			request := createRequest(o, nil)
			request.Parameters = map[string]string{"compresion": "zstd"}
			_, err := c.CreateVolume(ctx, request)
			return err
		}},
		{"DeleteVolume in use", codes.FailedPrecondition, func(ctx context.Context, c *client) error {
			_, err := c.DeleteVolume(ctx, &csi.DeleteVolumeRequest{VolumeId: o.id})
			return err
		}},
	}
	if !mounted {
		provocations = provocations[:len(provocations)-1]
	}
	p := provocations[w.random.IntN(len(provocations))]
	if err := w.insist(ctx, p.what, o, p.send); status.Code(err) != p.want {
		return fmt.Errorf("%s, %s: wanted is %v, found %w", o.id, p.what, p.want, errors.Join(err))
	}
	return nil
}

// listed is a volume or snapshot as the driver lists it.
type listed struct {
	id, source string
	size       int64
}

// pageSize makes several pages of most lists.
const pageSize = 7

// list returns all volumes and snapshots.
func (c *client) list(ctx context.Context) ([]listed, error) {
	var all []listed
	for token, first := "", true; first || token != ""; first = false {
		page, err := c.ListVolumes(ctx, &csi.ListVolumesRequest{MaxEntries: pageSize, StartingToken: token})
		if err != nil {
			return nil, err
		}
		for _, e := range page.GetEntries() {
			source := e.GetVolume().GetContentSource()
			all = append(all, listed{
				e.GetVolume().GetVolumeId(), source.GetVolume().GetVolumeId() + source.GetSnapshot().GetSnapshotId(), e.GetVolume().GetCapacityBytes(),
			})
		}
		token = page.GetNextToken()
	}
	for token, first := "", true; first || token != ""; first = false {
		page, err := c.ListSnapshots(ctx, &csi.ListSnapshotsRequest{MaxEntries: pageSize, StartingToken: token})
		if err != nil {
			return nil, err
		}
		for _, e := range page.GetEntries() {
			s := e.GetSnapshot()
			all = append(all, listed{s.GetSnapshotId(), s.GetSourceVolumeId(), s.GetSizeBytes()})
		}
		token = page.GetNextToken()
	}
	return all, nil
}

// compareList holds a list against what must and may be there.
func compareList(expected map[string]expectation, found []listed) error {
	var errs []error
	have := map[string]bool{}
	for _, l := range found {
		e, ok := expected[l.id]
		switch {
		case !ok:
			errs = append(errs, fmt.Errorf("%s is listed, and should not be there", l.id))
		case have[l.id]:
			errs = append(errs, fmt.Errorf("%s is listed twice", l.id))
		case !slices.Contains(e.sizes, l.size):
			errs = append(errs, fmt.Errorf("%s is listed with %d bytes, wanted is one of %v", l.id, l.size, e.sizes))
		case l.source != sourceID(e.object):
			errs = append(errs, fmt.Errorf("%s is listed with the source %q, wanted is %q", l.id, l.source, sourceID(e.object)))
		}
		have[l.id] = true
	}
	for id, e := range expected {
		if e.must && !have[id] {
			errs = append(errs, fmt.Errorf("%s is not listed", id))
		}
	}
	return errors.Join(errs...)
}

func sourceID(o *object) string {
	if o.source == nil {
		return ""
	}
	return o.source.id
}

func sourceOf(o *object) *csi.VolumeContentSource {
	switch {
	case o.source == nil:
		return nil
	case o.source.isSnapshot():
		return &csi.VolumeContentSource{Type: &csi.VolumeContentSource_Snapshot{
			Snapshot: &csi.VolumeContentSource_SnapshotSource{SnapshotId: o.source.id},
		}}
	}
	return &csi.VolumeContentSource{Type: &csi.VolumeContentSource_Volume{
		Volume: &csi.VolumeContentSource_VolumeSource{VolumeId: o.source.id},
	}}
}

func capabilityOf(o *object) *csi.VolumeCapability {
	mode := csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER
	if o.kind == meta.View {
		mode = csi.VolumeCapability_AccessMode_MULTI_NODE_READER_ONLY
	}
	return &csi.VolumeCapability{
		AccessType: &csi.VolumeCapability_Mount{Mount: &csi.VolumeCapability_MountVolume{}},
		AccessMode: &csi.VolumeCapability_AccessMode{Mode: mode},
	}
}
