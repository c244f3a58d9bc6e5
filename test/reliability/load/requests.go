package load

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync/atomic"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs"
	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
	"github.com/btrfs-csi/btrfs-csi/test/reliability/files"
	"github.com/btrfs-csi/btrfs-csi/test/reliability/model"
	"github.com/btrfs-csi/btrfs-csi/test/reliability/node"
	"github.com/btrfs-csi/btrfs-csi/test/testkit"
)

const mib = 1 << 20

// classes are the parameters of StorageClasses. Create draws from them.
var classes = []map[string]string{nil, nil, nil, {"compression": "zstd"}, {"nodatacow": "true"}}

// Create makes an empty volume.
func (w *Worker) Create(ctx context.Context, _ *model.Object) error {
	size := int64(64+w.Random.IntN(64)) * mib
	o := &model.Object{Kind: meta.Active, Parameters: classes[w.Random.IntN(len(classes))]}
	o.Sizes = model.Timeline[int64]{{Value: size}}
	o.Contents = model.Timeline[files.Content]{{}}
	w.DeclareNext(o)
	defer w.Release(o)
	return w.MakeVolume(ctx, o, &csi.CapacityRange{RequiredBytes: size})
}

// copier returns a task that copies an object: as a snapshot, a clone, a restore or a view.
func (w *Worker) copier(kind meta.Kind) func(context.Context, *model.Object) error {
	return func(ctx context.Context, source *model.Object) error {
		o := &model.Object{Kind: kind, Source: source}
		if kind == meta.Active { // other kinds have no parameters
			o.Parameters = classes[w.Random.IntN(len(classes))]
		}
		w.DeclareNext(o)
		defer w.Release(o)
		if kind == meta.Committed {
			return w.MakeSnapshot(ctx, o)
		}
		return w.MakeVolume(ctx, o, nil)
	}
}

func (w *Worker) MakeVolume(ctx context.Context, o *model.Object, size *csi.CapacityRange) error {
	return w.make(ctx, o, "CreateVolume", func(ctx context.Context, c *testkit.Driver) (creation, error) {
		response, err := c.CreateVolume(ctx, createRequest(o, size))
		return madeVolume(response.GetVolume()), err
	})
}

func createRequest(o *model.Object, size *csi.CapacityRange) *csi.CreateVolumeRequest {
	return &csi.CreateVolumeRequest{
		Name: o.Name, CapacityRange: size, Parameters: o.Parameters, VolumeContentSource: sourceOf(o),
		VolumeCapabilities: []*csi.VolumeCapability{capabilityOf(o)},
	}
}

func (w *Worker) MakeSnapshot(ctx context.Context, o *model.Object) error {
	return w.make(ctx, o, "CreateSnapshot", func(ctx context.Context, c *testkit.Driver) (creation, error) {
		response, err := c.CreateSnapshot(ctx, &csi.CreateSnapshotRequest{Name: o.Name, SourceVolumeId: o.Source.ID})
		return madeSnapshot(response.GetSnapshot()), err
	})
}

// contend sends several requests for a volume at once, with one name and two sizes. The driver has
// to make one of the sizes. The requests for the other size get ALREADY_EXISTS.
func (w *Worker) contend(ctx context.Context, _ *model.Object) error {
	sizes := []int64{64 * mib, 65 * mib}
	o := &model.Object{Kind: meta.Active, Sizes: model.Timeline[int64]{{Value: sizes[0]}, {Value: sizes[1]}}, Contents: model.Timeline[files.Content]{{}}}
	w.DeclareNext(o)
	defer w.Release(o)
	var asked atomic.Int32
	var won rivals[int64]
	err := w.together(ctx, 2*len(sizes), func(ctx context.Context, w *Worker) error {
		size := sizes[int(asked.Add(1))%len(sizes)]
		err := w.Insist(ctx, "CreateVolume of two sizes", o, func(ctx context.Context, c *testkit.Driver) error {
			response, err := c.CreateVolume(ctx, createRequest(o, &csi.CapacityRange{RequiredBytes: size, LimitBytes: size}))
			return answers(err, response.GetVolume(), volumeOf(o, size, w.Node.PoolID()))
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
		return fmt.Errorf("%d at once create %s: %w", 2*len(sizes), o.ID, err)
	}
	return w.settle(o, won.given[0])
}

// creation is the driver's answer to a request for a volume or a snapshot.
type creation struct {
	size int64
	said proto.Message // the whole description
	want func(o *model.Object, size int64, poolID string) proto.Message
}

func madeVolume(v *csi.Volume) creation {
	return creation{v.GetCapacityBytes(), v, func(o *model.Object, size int64, poolID string) proto.Message { return volumeOf(o, size, poolID) }}
}

func madeSnapshot(s *csi.Snapshot) creation {
	return creation{s.GetSizeBytes(), s, func(o *model.Object, size int64, _ string) proto.Message {
		return snapshotOf(o, size, s.GetCreationTime())
	}}
}

// make requests an object, sometimes by several equal requests at once. The driver may refuse only
// a copy whose source is being removed.
func (w *Worker) make(ctx context.Context, o *model.Object, what string, send func(context.Context, *testkit.Driver) (creation, error)) error {
	var gotten rivals[creation]
	err := w.together(ctx, w.several(), func(ctx context.Context, w *Worker) error {
		var m creation
		err := w.Insist(ctx, what, o, func(ctx context.Context, c *testkit.Driver) (err error) {
			m, err = send(ctx, c)
			return err
		})
		gotten.add(m, err)
		return err
	})
	got := gotten.given
	switch {
	case len(got) == 0 && status.Code(err) == codes.NotFound && o.Source != nil && w.removing(o.Source):
		w.Refused(o)
		return nil
	case err != nil:
		return fmt.Errorf("create %s, answered %d times: %w", o.ID, len(got), err)
	}
	for _, m := range got {
		if err := answers(nil, m.said, m.want(o, got[0].size, w.Node.PoolID())); err != nil {
			return fmt.Errorf("create %s: %w", o.ID, err)
		}
	}
	return w.settle(o, got[0].size)
}

// settle records that an object was made, with its content.
func (w *Worker) settle(o *model.Object, size int64) error {
	now, err := files.Of(w.Node.SubvolumeOf(o))
	if err != nil {
		return err
	}
	return w.Exists(o, size, now)
}

func (w *Worker) removing(o *model.Object) bool {
	w.Mu.Lock()
	defer w.Mu.Unlock()
	return o.Removed.Asked != 0
}

func (w *Worker) Remove(ctx context.Context, o *model.Object) error {
	w.Ask(o, &o.Removed, "remove")
	what := "DeleteVolume"
	if o.IsSnapshot() {
		what = "DeleteSnapshot"
	}
	err := w.together(ctx, w.several(), func(ctx context.Context, w *Worker) error {
		return w.Insist(ctx, what, o, func(ctx context.Context, c *testkit.Driver) (err error) {
			if o.IsSnapshot() {
				_, err = c.DeleteSnapshot(ctx, &csi.DeleteSnapshotRequest{SnapshotId: o.ID})
			} else {
				_, err = c.DeleteVolume(ctx, &csi.DeleteVolumeRequest{VolumeId: o.ID})
			}
			return err
		})
	})
	if err != nil {
		return fmt.Errorf("remove %s: %w", o.ID, err)
	}
	w.Gone(o)
	return nil
}

func (w *Worker) Expand(ctx context.Context, o *model.Object) error {
	w.Mu.Lock()
	size := o.Sizes[len(o.Sizes)-1].Value + int64(1+w.Random.IntN(8))*mib
	grown := &model.Event[int64]{Value: size}
	o.Sizes = append(o.Sizes, grown)
	w.Mu.Unlock()
	w.Ask(o, &grown.Span, "expand to %d", size)
	byNode := o.IsMounted() && w.Random.IntN(3) == 0
	what := map[bool]string{false: "ControllerExpandVolume", true: "NodeExpandVolume"}[byNode]
	err := w.Insist(ctx, what, o, func(ctx context.Context, c *testkit.Driver) error {
		now, err := expandTo(ctx, c, o, w.Node, size, byNode)
		if err == nil && now != size {
			err = fmt.Errorf("it has %d bytes now, wanted are %d", now, size)
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("expand %s: %w", o.ID, err)
	}
	w.Answer(o, &grown.Span, model.Expanded)
	return nil
}

func expandTo(ctx context.Context, c *testkit.Driver, o *model.Object, n *node.Node, size int64, byNode bool) (int64, error) {
	wanted := &csi.CapacityRange{RequiredBytes: size}
	if byNode {
		response, err := c.NodeExpandVolume(ctx, &csi.NodeExpandVolumeRequest{VolumeId: o.ID, VolumePath: n.TargetOf(o), CapacityRange: wanted})
		return response.GetCapacityBytes(), err
	}
	response, err := c.ControllerExpandVolume(ctx, &csi.ControllerExpandVolumeRequest{
		VolumeId: o.ID, CapacityRange: wanted, VolumeCapability: capabilityOf(o),
	})
	return response.GetCapacityBytes(), err
}

// Mount stages and publishes a volume, and compares its content.
func (w *Worker) Mount(ctx context.Context, o *model.Object) error {
	err := w.changeMount(ctx, "NodeStageVolume", o, &o.Staged, model.Present, func(ctx context.Context, c *testkit.Driver) error {
		return c.Stage(ctx, o.ID, capabilityOf(o))
	})
	if err != nil {
		return err
	}
	err = w.changeMount(ctx, "NodePublishVolume", o, &o.Published, model.Present, func(ctx context.Context, c *testkit.Driver) error {
		return c.Publish(ctx, o.ID, capabilityOf(o))
	})
	if err != nil {
		return err
	}
	return w.touch(ctx, func() error { return w.verifyMounted(o, w.Node.TargetOf(o)) })
}

// verifyMounted compares the content of a published volume with the model. A read-only one must refuse writes.
func (w *Worker) verifyMounted(o *model.Object, target string) error {
	now, err := files.Of(target)
	if err != nil {
		return err
	}
	w.Mu.Lock()
	want := o.Contents[len(o.Contents)-1].Value
	w.Mu.Unlock()
	if now != want {
		return fmt.Errorf("%s is published with %s, wanted is %s", o.ID, now, want)
	}
	if o.Kind.ReadOnly() {
		return files.RefusesWrites(target)
	}
	return nil
}

func (w *Worker) Unmount(ctx context.Context, o *model.Object) error {
	err := w.changeMount(ctx, "NodeUnpublishVolume", o, &o.Published, model.Absent, func(ctx context.Context, c *testkit.Driver) error {
		return c.Unpublish(ctx, o.ID)
	})
	if err != nil {
		return err
	}
	err = w.changeMount(ctx, "NodeUnstageVolume", o, &o.Staged, model.Absent, func(ctx context.Context, c *testkit.Driver) error {
		return c.Unstage(ctx, o.ID)
	})
	if err != nil {
		return err
	}
	return os.Remove(w.Node.StagingOf(o))
}

// changeMount sends a request that makes or removes a mount.
func (w *Worker) changeMount(ctx context.Context, what string, o *model.Object, p *model.Presence, then model.Presence, send func(context.Context, *testkit.Driver) error) error {
	set := func(to model.Presence) {
		w.Mu.Lock()
		defer w.Mu.Unlock()
		*p = to
	}
	set(model.Unsure)
	if err := w.Insist(ctx, what, o, send); err != nil {
		return fmt.Errorf("%s %s: %w", what, o.ID, err)
	}
	set(then)
	return nil
}

// longestBurst is the largest number of files that a task writes.
const longestBurst = 8

// write changes files of a published volume, as a pod does.
func (w *Worker) write(ctx context.Context, o *model.Object) error {
	for range 1 + w.Random.IntN(longestBurst) {
		if err := w.writeOne(ctx, o); err != nil {
			return err
		}
	}
	return nil
}

func (w *Worker) writeOne(ctx context.Context, o *model.Object) error {
	w.Mu.Lock()
	before := o.Contents[len(o.Contents)-1].Value
	w.Mu.Unlock()
	c := files.RandomChange(w.Random, before)
	return w.touch(ctx, func() error {
		next := &model.Event[files.Content]{Value: c.After(before)}
		w.Mu.Lock()
		o.Contents = append(o.Contents, next)
		w.Mu.Unlock()
		w.Ask(o, &next.Span, "write %s %d", c.Name, len(c.Data))
		// The fsync of Make may return early (see docs/reliability.md), so a commit follows.
		target := w.Node.TargetOf(o)
		if err := errors.Join(c.Make(target), btrfs.Commit(target)); err != nil {
			return fmt.Errorf("write to %s: %w", o.ID, err)
		}
		w.Answer(o, &next.Span, model.Written)
		w.Counts.write()
		return nil
	})
}

func sourceOf(o *model.Object) *csi.VolumeContentSource {
	switch {
	case o.Source == nil:
		return nil
	case o.Source.IsSnapshot():
		return testkit.FromSnapshot(o.Source.ID)
	}
	return testkit.FromVolume(o.Source.ID)
}

func capabilityOf(o *model.Object) *csi.VolumeCapability {
	if o.Kind == meta.View {
		return testkit.Capability(csi.VolumeCapability_AccessMode_MULTI_NODE_READER_ONLY)
	}
	return testkit.Capability(csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER)
}
