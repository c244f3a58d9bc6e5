package reliability

import (
	"context"
	"fmt"
	"os"
	"sync/atomic"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
	"github.com/btrfs-csi/btrfs-csi/test/testkit"
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
		o := &object{kind: kind, source: source}
		if kind == meta.Active { // else it has those of its source
			o.parameters = classes[w.random.IntN(len(classes))]
		}
		w.declareNext(o)
		defer w.release(o)
		if kind == meta.Committed {
			return w.makeSnapshot(ctx, o)
		}
		return w.makeVolume(ctx, o, nil)
	}
}

func (w *worker) makeVolume(ctx context.Context, o *object, size *csi.CapacityRange) error {
	return w.make(ctx, o, "CreateVolume", func(ctx context.Context, c *testkit.Driver) (offspring, error) {
		response, err := c.CreateVolume(ctx, createRequest(o, size))
		return madeVolume(response.GetVolume()), err
	})
}

func createRequest(o *object, size *csi.CapacityRange) *csi.CreateVolumeRequest {
	return &csi.CreateVolumeRequest{
		Name: o.name, CapacityRange: size, Parameters: o.parameters, VolumeContentSource: sourceOf(o),
		VolumeCapabilities: []*csi.VolumeCapability{capabilityOf(o)},
	}
}

func (w *worker) makeSnapshot(ctx context.Context, o *object) error {
	return w.make(ctx, o, "CreateSnapshot", func(ctx context.Context, c *testkit.Driver) (offspring, error) {
		response, err := c.CreateSnapshot(ctx, &csi.CreateSnapshotRequest{Name: o.name, SourceVolumeId: o.source.id})
		return madeSnapshot(response.GetSnapshot()), err
	})
}

// contend has several ask for a volume at once, under one name and of two sizes. One size
// is made, for those who asked for it; the others hear that there is one already.
func (w *worker) contend(ctx context.Context, _ *object) error {
	sizes := []int64{64 * mib, 65 * mib}
	o := &object{kind: meta.Active, sizes: timeline[int64]{{value: sizes[0]}, {value: sizes[1]}}, contents: timeline[content]{{}}}
	w.declareNext(o)
	defer w.release(o)
	var asked atomic.Int32
	var won rivals[int64]
	err := w.together(ctx, 2*len(sizes), func(ctx context.Context, w *worker) error {
		size := sizes[int(asked.Add(1))%len(sizes)]
		err := w.insist(ctx, "CreateVolume of two sizes", o, func(ctx context.Context, c *testkit.Driver) error {
			response, err := c.CreateVolume(ctx, createRequest(o, &csi.CapacityRange{RequiredBytes: size, LimitBytes: size}))
			return answers(err, response.GetVolume(), volumeOf(o, size, w.node.poolID()))
		})
		won.add(size, err)
		if status.Code(err) == codes.AlreadyExists {
			return nil
		}
		return err
	})
	if got := won.given; err == nil && (len(got) != 2 || got[0] != got[1]) {
		err = fmt.Errorf("made for those who asked for %v, wanted are two of one size", got)
	}
	if err != nil {
		return fmt.Errorf("%d at once create %s: %w", 2*len(sizes), o.id, err)
	}
	return w.settle(o, won.given[0])
}

// offspring is what the driver says that it has made.
type offspring struct {
	size int64
	said proto.Message // all of it
	want func(o *object, size int64, poolID string) proto.Message
}

func madeVolume(v *csi.Volume) offspring {
	return offspring{v.GetCapacityBytes(), v, func(o *object, size int64, poolID string) proto.Message { return volumeOf(o, size, poolID) }}
}

func madeSnapshot(s *csi.Snapshot) offspring {
	return offspring{s.GetSizeBytes(), s, func(o *object, size int64, _ string) proto.Message { return snapshotOf(o, size, s.GetCreationTime()) }}
}

// make asks for an object, at times several times at once. Only for a copy whose source
// is being removed may the answer be a refusal.
func (w *worker) make(ctx context.Context, o *object, what string, send func(context.Context, *testkit.Driver) (offspring, error)) error {
	var gotten rivals[offspring]
	err := w.together(ctx, w.several(), func(ctx context.Context, w *worker) error {
		var m offspring
		err := w.insist(ctx, what, o, func(ctx context.Context, c *testkit.Driver) (err error) {
			m, err = send(ctx, c)
			return err
		})
		gotten.add(m, err)
		return err
	})
	got := gotten.given
	switch {
	case len(got) == 0 && status.Code(err) == codes.NotFound && o.source != nil && w.removing(o.source):
		w.refused(o)
		return nil
	case err != nil:
		return fmt.Errorf("create %s, answered %d times: %w", o.id, len(got), err)
	}
	for _, m := range got {
		if err := answers(nil, m.said, m.want(o, got[0].size, w.node.poolID())); err != nil {
			return fmt.Errorf("create %s: %w", o.id, err)
		}
	}
	return w.settle(o, got[0].size)
}

// settle notes that an object was made, and what is in it.
func (w *worker) settle(o *object, size int64) error {
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
	err := w.together(ctx, w.several(), func(ctx context.Context, w *worker) error {
		return w.insist(ctx, what, o, func(ctx context.Context, c *testkit.Driver) (err error) {
			if o.isSnapshot() {
				_, err = c.DeleteSnapshot(ctx, &csi.DeleteSnapshotRequest{SnapshotId: o.id})
			} else {
				_, err = c.DeleteVolume(ctx, &csi.DeleteVolumeRequest{VolumeId: o.id})
			}
			return err
		})
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
	byNode := o.isMounted() && w.random.IntN(3) == 0
	what := map[bool]string{false: "ControllerExpandVolume", true: "NodeExpandVolume"}[byNode]
	err := w.insist(ctx, what, o, func(ctx context.Context, c *testkit.Driver) error {
		now, err := expandTo(ctx, c, o, w.node, size, byNode)
		if err == nil && now != size {
			err = fmt.Errorf("it has %d bytes now, wanted are %d", now, size)
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("expand %s: %w", o.id, err)
	}
	w.answer(o, &grown.span, expanded)
	return nil
}

func expandTo(ctx context.Context, c *testkit.Driver, o *object, n *node, size int64, byNode bool) (int64, error) {
	wanted := &csi.CapacityRange{RequiredBytes: size}
	if byNode {
		response, err := c.NodeExpandVolume(ctx, &csi.NodeExpandVolumeRequest{VolumeId: o.id, VolumePath: n.target(o), CapacityRange: wanted})
		return response.GetCapacityBytes(), err
	}
	response, err := c.ControllerExpandVolume(ctx, &csi.ControllerExpandVolumeRequest{
		VolumeId: o.id, CapacityRange: wanted, VolumeCapability: capabilityOf(o),
	})
	return response.GetCapacityBytes(), err
}

// mount stages and publishes a volume, and looks through the mount.
func (w *worker) mount(ctx context.Context, o *object) error {
	err := w.place(ctx, "NodeStageVolume", o, &o.staged, present, func(ctx context.Context, c *testkit.Driver) error {
		return c.Stage(ctx, o.id, capabilityOf(o))
	})
	if err != nil {
		return err
	}
	err = w.place(ctx, "NodePublishVolume", o, &o.published, present, func(ctx context.Context, c *testkit.Driver) error {
		return c.Publish(ctx, o.id, capabilityOf(o))
	})
	if err != nil {
		return err
	}
	return w.touch(ctx, func() error { return w.peruse(o, w.node.target(o)) })
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
	err := w.place(ctx, "NodeUnpublishVolume", o, &o.published, absent, func(ctx context.Context, c *testkit.Driver) error {
		return c.Unpublish(ctx, o.id)
	})
	if err != nil {
		return err
	}
	err = w.place(ctx, "NodeUnstageVolume", o, &o.staged, absent, func(ctx context.Context, c *testkit.Driver) error {
		return c.Unstage(ctx, o.id)
	})
	if err != nil {
		return err
	}
	return os.Remove(w.node.staging(o))
}

// place changes a mount.
func (w *worker) place(ctx context.Context, what string, o *object, p *presence, then presence, send func(context.Context, *testkit.Driver) error) error {
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

func sourceOf(o *object) *csi.VolumeContentSource {
	switch {
	case o.source == nil:
		return nil
	case o.source.isSnapshot():
		return testkit.FromSnapshot(o.source.id)
	}
	return testkit.FromVolume(o.source.id)
}

func capabilityOf(o *object) *csi.VolumeCapability {
	if o.kind == meta.View {
		return testkit.Capability(csi.VolumeCapability_AccessMode_MULTI_NODE_READER_ONLY)
	}
	return testkit.Capability(csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER)
}
