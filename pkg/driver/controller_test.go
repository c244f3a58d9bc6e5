package driver

import (
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs"
	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs/btrfstest"
)

func TestCreateIsIdempotent(t *testing.T) {
	r := newRig(t, rigOptions{})
	request := func() *csi.CreateVolumeRequest {
		return &csi.CreateVolumeRequest{Name: "pvc-1", CapacityRange: sized(100 * mib), Parameters: map[string]string{
			"compression": "zstd:3", "csi.storage.k8s.io/pvc/name": "data", "csi.storage.k8s.io/pvc/namespace": "shop",
		}}
	}
	first := r.createAs(request())
	write(t, filepath.Join(r.source(first.GetVolumeId()), "file"), "data")
	second := r.createAs(request())
	if !proto.Equal(first, second) {
		t.Errorf("first %v, then %v", first, second)
	}
	wantFile(t, filepath.Join(r.source(first.GetVolumeId()), "file"), "data")
	got, err := r.ControllerGetVolume(t.Context(), &csi.ControllerGetVolumeRequest{VolumeId: first.GetVolumeId()})
	must(t, err)
	if !proto.Equal(first, got.GetVolume()) || got.GetStatus() == nil {
		t.Errorf("created %v, got %v", first, got)
	}
	if len(first.GetAccessibleTopology()) != 1 || len(first.GetVolumeContext()) != 1 || first.GetCapacityBytes() != 100*mib {
		t.Errorf("created %v", first)
	}
}

func TestRetryWithAnotherPoolOrSourceIsAlreadyExists(t *testing.T) {
	r := newRig(t, rigOptions{pools: []string{"fast"}})
	source := r.create("pvc-source")
	other := r.create("pvc-other")
	empty := r.create("pvc-empty")
	clone := r.createAs(&csi.CreateVolumeRequest{Name: "pvc-clone", VolumeContentSource: fromVolume(source)}).GetVolumeId()
	taken := r.snapshot("snapshot-1", source)
	for name, request := range map[string]*csi.CreateVolumeRequest{
		"another pool":       {Name: empty, Parameters: map[string]string{"pool": "fast"}},
		"another parameter":  {Name: empty, Parameters: map[string]string{"compression": "lzo"}},
		"now with a source":  {Name: empty, VolumeContentSource: fromVolume(source)},
		"now without":        {Name: clone},
		"another source":     {Name: clone, VolumeContentSource: fromVolume(other)},
		"a snapshot instead": {Name: clone, VolumeContentSource: fromSnapshot(taken)},
		"larger":             {Name: empty, CapacityRange: sized(101 * mib)},
		"at most smaller":    {Name: empty, CapacityRange: &csi.CapacityRange{LimitBytes: 99 * mib}},
	} {
		t.Run(name, func(t *testing.T) {
			request.VolumeCapabilities = []*csi.VolumeCapability{writer()}
			_, err := r.CreateVolume(t.Context(), request)
			wantCode(t, err, codes.AlreadyExists)
		})
	}
	_, err := r.CreateSnapshot(t.Context(), &csi.CreateSnapshotRequest{Name: "snapshot-1", SourceVolumeId: other})
	wantCode(t, err, codes.AlreadyExists, "snapshot-1")
}

func TestLimitOnlyCapacityRange(t *testing.T) {
	r := newRig(t, rigOptions{})
	for name, test := range map[string]struct {
		size *csi.CapacityRange
		want int64
		code codes.Code
	}{
		"none":                   {nil, 1 << 30, codes.OK},
		"limit_bytes only":       {&csi.CapacityRange{LimitBytes: 64 * mib}, 64 * mib, codes.OK},
		"large limit_bytes":      {&csi.CapacityRange{LimitBytes: 1 << 40}, 1 << 30, codes.OK},
		"rounded up":             {&csi.CapacityRange{RequiredBytes: 64*mib + 1}, 65 * mib, codes.OK},
		"exact and odd":          {&csi.CapacityRange{RequiredBytes: 64*mib + 1, LimitBytes: 64*mib + 1}, 64*mib + 1, codes.OK},
		"limit_bytes < required": {&csi.CapacityRange{RequiredBytes: 64 * mib, LimitBytes: 32 * mib}, 0, codes.OutOfRange},
		"limit_bytes < least":    {&csi.CapacityRange{LimitBytes: 1}, 0, codes.OutOfRange},
		"negative":               {&csi.CapacityRange{RequiredBytes: -1}, 0, codes.InvalidArgument},
		"more than the pool":     {&csi.CapacityRange{RequiredBytes: 1 << 50}, 0, codes.ResourceExhausted},
	} {
		t.Run(name, func(t *testing.T) {
			response, err := r.CreateVolume(t.Context(), &csi.CreateVolumeRequest{
				Name: "pvc " + name, CapacityRange: test.size, VolumeCapabilities: []*csi.VolumeCapability{writer()},
			})
			wantCode(t, err, test.code)
			if got := response.GetVolume().GetCapacityBytes(); got != test.want {
				t.Errorf("want %d bytes, got %d", test.want, got)
			}
		})
	}
}

func TestSizeIsEnforced(t *testing.T) {
	r := newRig(t, rigOptions{})
	volume, target := r.published("pvc-1")
	if err := fill(filepath.Join(target, "file"), 150); !errors.Is(err, unix.EDQUOT) {
		t.Errorf("150 MiB into a volume of 100: want EDQUOT, got %v", err)
	}
	_, err := r.ControllerExpandVolume(t.Context(), &csi.ControllerExpandVolumeRequest{VolumeId: volume, CapacityRange: sized(200 * mib)})
	must(t, err)
	must(t, fill(filepath.Join(target, "file"), 150))
}

// fill writes a file of size MiB and syncs it.
func fill(path string, size int) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	for range size {
		if _, err := f.Write(make([]byte, mib)); err != nil {
			return err
		}
	}
	return f.Sync()
}

func TestCloneSmallerThanSourceIsOutOfRange(t *testing.T) {
	r := newRig(t, rigOptions{})
	source := r.create("pvc-1")
	for _, content := range []*csi.VolumeContentSource{fromVolume(source), fromSnapshot(r.snapshot("snapshot-1", source))} {
		request := &csi.CreateVolumeRequest{Name: "pvc-2", VolumeContentSource: content, VolumeCapabilities: []*csi.VolumeCapability{writer()}}
		for _, size := range []*csi.CapacityRange{sized(50 * mib), {LimitBytes: 99 * mib}} {
			request.CapacityRange = size
			_, err := r.CreateVolume(t.Context(), request)
			wantCode(t, err, codes.OutOfRange)
		}
	}
	_, err := r.ControllerGetVolume(t.Context(), &csi.ControllerGetVolumeRequest{VolumeId: "pvc-2"})
	wantCode(t, err, codes.NotFound)
}

func TestCloneIsAsLargeAsItsSourceOrLarger(t *testing.T) {
	r := newRig(t, rigOptions{})
	source := r.create("pvc-1")
	write(t, filepath.Join(r.source(source), "file"), "data")
	same := r.createAs(&csi.CreateVolumeRequest{Name: "same", VolumeContentSource: fromVolume(source)})
	larger := r.createAs(&csi.CreateVolumeRequest{Name: "larger", VolumeContentSource: fromVolume(source), CapacityRange: sized(200 * mib)})
	for volume, want := range map[*csi.Volume]int64{same: 100 * mib, larger: 200 * mib} {
		if volume.GetCapacityBytes() != want || volume.GetContentSource().GetVolume().GetVolumeId() != source {
			t.Errorf("want %d bytes of %s, got %v", want, source, volume)
		}
		wantFile(t, filepath.Join(r.source(volume.GetVolumeId()), "file"), "data")
	}
}

func TestSourceThatIsNotThere(t *testing.T) {
	r := newRig(t, rigOptions{})
	for name, content := range map[string]*csi.VolumeContentSource{
		"volume": fromVolume("absent"), "snapshot": fromSnapshot("absent"), "path": fromVolume("../x"),
	} {
		_, err := r.CreateVolume(t.Context(), &csi.CreateVolumeRequest{
			Name: "pvc-" + name, VolumeContentSource: content, VolumeCapabilities: []*csi.VolumeCapability{writer()},
		})
		wantCode(t, err, codes.NotFound, "source")
	}
	_, err := r.CreateSnapshot(t.Context(), &csi.CreateSnapshotRequest{Name: "s", SourceVolumeId: "absent"})
	wantCode(t, err, codes.NotFound)
}

// zfs-localpv keeps a volume while a clone exists, and loses snapshots with their volume.
func TestSnapshotOutlivesItsVolume(t *testing.T) {
	r := newRig(t, rigOptions{})
	volume := r.create("pvc-1")
	write(t, filepath.Join(r.source(volume), "file"), "data")
	taken := r.snapshot("snapshot-1", volume)
	clone := r.createAs(&csi.CreateVolumeRequest{Name: "clone", VolumeContentSource: fromVolume(volume)}).GetVolumeId()
	must(t, r.delete(volume))
	listed, err := r.ListSnapshots(t.Context(), &csi.ListSnapshotsRequest{SourceVolumeId: volume})
	must(t, err)
	if len(listed.GetEntries()) != 1 {
		t.Errorf("want the snapshot listed by its volume, got %v", listed)
	}
	restored := r.createAs(&csi.CreateVolumeRequest{Name: "restored", VolumeContentSource: fromSnapshot(taken)}).GetVolumeId()
	_, err = r.DeleteSnapshot(t.Context(), &csi.DeleteSnapshotRequest{SnapshotId: taken})
	must(t, err)
	_, err = r.DeleteSnapshot(t.Context(), &csi.DeleteSnapshotRequest{SnapshotId: taken})
	must(t, err)
	for _, id := range []string{clone, restored} {
		wantFile(t, filepath.Join(r.source(id), "file"), "data")
	}
}

func TestSnapshotTellsWhatItIs(t *testing.T) {
	r := newRig(t, rigOptions{})
	volume := r.create("pvc-1")
	created, err := r.CreateSnapshot(t.Context(), &csi.CreateSnapshotRequest{
		Name: "snapshot-1", SourceVolumeId: volume, Parameters: map[string]string{"csi.storage.k8s.io/volumesnapshot/name": "daily"},
	})
	must(t, err)
	s := created.GetSnapshot()
	if s.GetSizeBytes() != 100*mib || !s.GetReadyToUse() || s.GetSourceVolumeId() != volume || !s.GetCreationTime().IsValid() {
		t.Errorf("created %v", s)
	}
	got, err := r.GetSnapshot(t.Context(), &csi.GetSnapshotRequest{SnapshotId: s.GetSnapshotId()})
	if err != nil || !proto.Equal(got.GetSnapshot(), s) {
		t.Errorf("created %v, got %v, %v", s, got, err)
	}
	_, err = r.GetSnapshot(t.Context(), &csi.GetSnapshotRequest{SnapshotId: "absent"})
	wantCode(t, err, codes.NotFound)
	_, err = r.GetSnapshot(t.Context(), &csi.GetSnapshotRequest{})
	wantCode(t, err, codes.InvalidArgument)
}

// The driver of mporrato can never delete such a volume.
func TestNestedSubvolumeIsNamedAndGoesWithItsVolume(t *testing.T) {
	r := newRig(t, rigOptions{})
	volume, target := r.published("pvc-1")
	must(t, btrfs.Create(filepath.Join(target, "nested")))
	_, err := r.CreateSnapshot(t.Context(), &csi.CreateSnapshotRequest{Name: "s", SourceVolumeId: volume})
	wantCode(t, err, codes.FailedPrecondition, "nested")
	health, err := r.ControllerGetVolumeHealth(t.Context(), &csi.ControllerGetVolumeHealthRequest{VolumeId: volume})
	if statuses := health.GetVolumeHealth().GetHealthStatuses(); err != nil || len(statuses) != 1 ||
		statuses[0].Reason != "NestedSubvolumes" || !strings.Contains(statuses[0].Message, `"nested"`) {
		t.Errorf("health %v, %v", health, err)
	}
	_, err = r.CreateSnapshot(t.Context(), &csi.CreateSnapshotRequest{Name: "s", SourceVolumeId: volume, Parameters: map[string]string{"nestedSubvolumes": "skip"}})
	must(t, err)
	must(t, r.unpublish(volume, target))
	must(t, r.unstage(volume))
	must(t, r.delete(volume))
}

func TestPathTricksAreUnknownIDs(t *testing.T) {
	r := newRig(t, rigOptions{})
	precious := filepath.Join(r.state, "precious")
	write(t, precious, "data")
	for _, id := range []string{"../x", "..", ".", "a/../../precious", "/etc", strings.Repeat("x", 1000), "x\x00y"} {
		must(t, r.delete(id))
		_, err := r.DeleteSnapshot(t.Context(), &csi.DeleteSnapshotRequest{SnapshotId: id})
		must(t, err)
		_, err = r.ControllerGetVolume(t.Context(), &csi.ControllerGetVolumeRequest{VolumeId: id})
		wantCode(t, err, codes.NotFound)
		_, err = r.ControllerExpandVolume(t.Context(), &csi.ControllerExpandVolumeRequest{VolumeId: id, CapacityRange: sized(mib)})
		wantCode(t, err, codes.NotFound)
		_, err = r.ValidateVolumeCapabilities(t.Context(), &csi.ValidateVolumeCapabilitiesRequest{VolumeId: id, VolumeCapabilities: []*csi.VolumeCapability{writer()}})
		wantCode(t, err, codes.NotFound)
	}
	wantFile(t, precious, "data")
}

func TestNamesOfAnyKind(t *testing.T) {
	r := newRig(t, rigOptions{})
	ids := map[string]bool{}
	for _, name := range []string{"pvc-1", "../pvc-1", "a b", "snämé", strings.Repeat("x", 128), "tab\tand\nline"} {
		ids[r.create(name)] = true
	}
	if len(ids) != 6 {
		t.Errorf("want 6 volumes, got %v", ids)
	}
	for id := range ids {
		must(t, r.stage(id, writer()))
	}
}

func topologyRequirement(ids ...string) *csi.TopologyRequirement {
	requirement := &csi.TopologyRequirement{}
	for _, id := range ids {
		requirement.Requisite = append(requirement.Requisite, topologyOf(id))
	}
	return requirement
}

func TestTopologyOfCreate(t *testing.T) {
	r := newRig(t, rigOptions{pools: []string{"fast"}})
	slow, fast := r.engine.PoolIDs()["default"], r.engine.PoolIDs()["fast"]
	inFast := r.createAs(&csi.CreateVolumeRequest{Name: "in-fast", Parameters: map[string]string{"pool": "fast"}}).GetVolumeId()
	for name, test := range map[string]struct {
		pool   string
		source *csi.VolumeContentSource
		want   *csi.TopologyRequirement
		code   codes.Code
		in     string
	}{
		"no wish":                {"", nil, nil, codes.OK, slow},
		"its key":                {"", nil, topologyRequirement(slow), codes.OK, slow},
		"one of several":         {"fast", nil, topologyRequirement("else", slow, fast), codes.OK, fast},
		"another's key":          {"", nil, topologyRequirement("else"), codes.ResourceExhausted, ""},
		"pool of another key":    {"fast", nil, topologyRequirement(slow), codes.ResourceExhausted, ""},
		"beside its source":      {"", fromVolume(inFast), topologyRequirement(fast), codes.OK, fast},
		"away from its source":   {"", fromVolume(inFast), topologyRequirement(slow), codes.ResourceExhausted, ""},
		"pool is not the source": {"default", fromVolume(inFast), nil, codes.InvalidArgument, ""},
		"no such pool":           {"absent", nil, nil, codes.ResourceExhausted, ""},
		"no such pool, wish":     {"absent", nil, topologyRequirement(slow), codes.ResourceExhausted, ""},
	} {
		t.Run(name, func(t *testing.T) {
			request := &csi.CreateVolumeRequest{
				Name: "pvc " + name, VolumeContentSource: test.source, AccessibilityRequirements: test.want, VolumeCapabilities: []*csi.VolumeCapability{writer()},
			}
			if test.pool != "" {
				request.Parameters = map[string]string{"pool": test.pool}
			}
			response, err := r.CreateVolume(t.Context(), request)
			wantCode(t, err, test.code)
			if err == nil && !proto.Equal(response.GetVolume().GetAccessibleTopology()[0], topologyOf(test.in)) {
				t.Errorf("want it in %s, got %v", test.in, response)
			}
		})
	}
	_, err := r.CreateVolume(t.Context(), &csi.CreateVolumeRequest{
		Name: "in-fast", Parameters: map[string]string{"pool": "fast"}, AccessibilityRequirements: topologyRequirement(slow), VolumeCapabilities: []*csi.VolumeCapability{writer()},
	})
	wantCode(t, err, codes.AlreadyExists, "fast")
}

func TestCapacity(t *testing.T) {
	r := newRig(t, rigOptions{pools: []string{"fast"}})
	here := topologyOf(r.engine.PoolIDs()["fast"])
	for name, test := range map[string]struct {
		request *csi.GetCapacityRequest
		least   int64 // 0 for no capacity
	}{
		"default":           {&csi.GetCapacityRequest{}, mib},
		"pool":              {&csi.GetCapacityRequest{Parameters: map[string]string{"pool": "fast"}}, mib},
		"pool and topology": {&csi.GetCapacityRequest{Parameters: map[string]string{"pool": "fast"}, AccessibleTopology: here}, mib},
		"capability":        {&csi.GetCapacityRequest{VolumeCapabilities: []*csi.VolumeCapability{writer()}}, mib},
		"another topology":  {&csi.GetCapacityRequest{AccessibleTopology: here}, 0},
		"no such pool":      {&csi.GetCapacityRequest{Parameters: map[string]string{"pool": "absent"}}, 0},
		"wrong parameter":   {&csi.GetCapacityRequest{Parameters: map[string]string{"pol": "fast"}}, mib}, // CreateVolume reports it
		"block":             {&csi.GetCapacityRequest{VolumeCapabilities: []*csi.VolumeCapability{device(nodeWriter)}}, mib},
		"xfs":               {&csi.GetCapacityRequest{VolumeCapabilities: []*csi.VolumeCapability{formatted("xfs")}}, 300 * mib},
		"ext3":              {&csi.GetCapacityRequest{VolumeCapabilities: []*csi.VolumeCapability{formatted("ext3")}}, 0},
	} {
		response, err := r.GetCapacity(t.Context(), test.request)
		if err != nil || (response.GetAvailableCapacity() > 1<<30) != (test.least > 0) || (response.GetMaximumVolumeSize().GetValue() > 1<<30) != (test.least > 0) {
			t.Errorf("%s: got %v, %v", name, response, err)
		}
		if response.GetMinimumVolumeSize().GetValue() != test.least {
			t.Errorf("%s: got %v", name, response)
		}
	}
	response, err := r.GetCapacity(t.Context(), &csi.GetCapacityRequest{})
	must(t, err)
	r.createAs(&csi.CreateVolumeRequest{Name: "largest", CapacityRange: sized(response.GetMaximumVolumeSize().GetValue())})
}

func TestPages(t *testing.T) {
	r := newRig(t, rigOptions{})
	var volumes, snapshots []string
	for i := range 5 {
		volumes = append(volumes, r.create(fmt.Sprintf("pvc-%d", i)))
		snapshots = append(snapshots, r.snapshot(fmt.Sprintf("snapshot-%d", i), volumes[i%2]))
	}
	listVolumes := func(most int32, token string) (ids []string, next string, err error) {
		response, err := r.ListVolumes(t.Context(), &csi.ListVolumesRequest{MaxEntries: most, StartingToken: token})
		for _, entry := range response.GetEntries() {
			ids = append(ids, entry.GetVolume().GetVolumeId())
		}
		return ids, response.GetNextToken(), err
	}
	listSnapshots := func(volume string) func(int32, string) ([]string, string, error) {
		return func(most int32, token string) (ids []string, next string, err error) {
			response, err := r.ListSnapshots(t.Context(), &csi.ListSnapshotsRequest{MaxEntries: most, StartingToken: token, SourceVolumeId: volume})
			for _, entry := range response.GetEntries() {
				ids = append(ids, entry.GetSnapshot().GetSnapshotId())
			}
			return ids, response.GetNextToken(), err
		}
	}
	for name, test := range map[string]struct {
		list func(int32, string) ([]string, string, error)
		want []string
	}{
		"volumes":            {listVolumes, volumes},
		"snapshots":          {listSnapshots(""), snapshots},
		"snapshots of one":   {listSnapshots(volumes[1]), []string{snapshots[1], snapshots[3]}},
		"snapshots of none":  {listSnapshots("absent"), nil},
		"snapshots of a ../": {listSnapshots("../x"), nil},
	} {
		t.Run(name, func(t *testing.T) {
			for most := int32(0); most < 7; most++ {
				var got []string
				for token := ""; ; {
					ids, next, err := test.list(most, token)
					must(t, err)
					if got = append(got, ids...); next == "" {
						break
					}
					if most == 0 || len(ids) != int(most) {
						t.Fatalf("at most %d: a page of %d and a token", most, len(ids))
					}
					token = next
				}
				if !slices.Equal(got, test.want) {
					t.Errorf("at most %d: want %v, got %v", most, test.want, got)
				}
			}
			for _, token := range []string{"x", "invalid-token", "cHZjLTE", "!"} {
				_, _, err := test.list(0, token)
				wantCode(t, err, codes.Aborted)
			}
			_, _, err := test.list(-1, "")
			wantCode(t, err, codes.InvalidArgument)
		})
	}
	_, next, err := listVolumes(2, "")
	must(t, err)
	must(t, r.delete(volumes[1])) // the volume in the token
	if ids, _, err := listVolumes(0, next); err != nil || !slices.Equal(ids, volumes[2:]) {
		t.Errorf("after a removal: %v, %v", ids, err)
	}
}

func TestListOfOneSnapshot(t *testing.T) {
	r := newRig(t, rigOptions{})
	volume, other := r.create("pvc-1"), r.create("pvc-2")
	taken := r.snapshot("snapshot-1", volume)
	for name, test := range map[string]struct {
		id, volume string
		want       int
	}{
		"it": {taken, "", 1}, "it of its volume": {taken, volume, 1}, "it of another": {taken, other, 0}, "absent": {"absent", "", 0}, "path": {"../x", "", 0},
	} {
		response, err := r.ListSnapshots(t.Context(), &csi.ListSnapshotsRequest{SnapshotId: test.id, SourceVolumeId: test.volume})
		if err != nil || len(response.GetEntries()) != test.want {
			t.Errorf("%s: want %d, got %v, %v", name, test.want, response, err)
		}
	}
}

func TestValidate(t *testing.T) {
	r := newRig(t, rigOptions{})
	volume := r.createAs(&csi.CreateVolumeRequest{Name: "pvc-1", Parameters: map[string]string{"compression": "zstd"}})
	view := r.createAs(&csi.CreateVolumeRequest{
		Name: "view", VolumeContentSource: fromSnapshot(r.snapshot("s", "pvc-1")), VolumeCapabilities: []*csi.VolumeCapability{reader()},
	})
	for name, test := range map[string]struct {
		volume     *csi.Volume
		capability *csi.VolumeCapability
		context    map[string]string
		parameters map[string]string
		ok         bool
	}{
		"plain":              {volume, writer(), nil, nil, true},
		"context":            {volume, writer(), volume.GetVolumeContext(), nil, true},
		"its parameters":     {volume, writer(), nil, map[string]string{"compression": "zstd", "pool": "default"}, true},
		"another context":    {volume, writer(), map[string]string{"poolID": "x"}, nil, false},
		"other parameters":   {volume, writer(), nil, map[string]string{"compression": "lzo"}, false},
		"unknown parameters": {volume, writer(), nil, map[string]string{"x": "y"}, false},
		"another pool":       {volume, writer(), nil, map[string]string{"compression": "zstd", "pool": "fast"}, false},
		"many writers":       {volume, capability(csi.VolumeCapability_AccessMode_MULTI_NODE_MULTI_WRITER), nil, nil, false},
		"many readers":       {volume, reader(), nil, nil, false},
		"view":               {view, reader(), nil, nil, true},
		"view to write":      {view, writer(), nil, nil, false},
	} {
		t.Run(name, func(t *testing.T) {
			response, err := r.ValidateVolumeCapabilities(t.Context(), &csi.ValidateVolumeCapabilitiesRequest{
				VolumeId: test.volume.GetVolumeId(), VolumeContext: test.context, Parameters: test.parameters, VolumeCapabilities: []*csi.VolumeCapability{test.capability},
			})
			if err != nil || (response.GetConfirmed() != nil) != test.ok || (response.GetMessage() == "") != test.ok || strings.Contains(response.GetMessage(), "rpc error") {
				t.Errorf("want confirmed %v, got %v, %v", test.ok, response, err)
			}
		})
	}
}

func TestExpand(t *testing.T) {
	r := newRig(t, rigOptions{})
	volume := r.create("pvc-1")
	for _, step := range []struct {
		name string
		size *csi.CapacityRange
		want int64
		code codes.Code
	}{
		{"larger", sized(200 * mib), 200 * mib, codes.OK},
		{"again", sized(200 * mib), 200 * mib, codes.OK},
		{"smaller is no change", sized(50 * mib), 200 * mib, codes.OK},
		{"limit_bytes below its size", &csi.CapacityRange{RequiredBytes: 50 * mib, LimitBytes: 60 * mib}, 0, codes.OutOfRange},
		{"more than the pool", sized(1 << 50), 0, codes.ResourceExhausted},
		{"no size", nil, 0, codes.InvalidArgument},
		{"empty size", &csi.CapacityRange{}, 0, codes.InvalidArgument},
		{"negative", sized(-1), 0, codes.InvalidArgument},
	} {
		response, err := r.ControllerExpandVolume(t.Context(), &csi.ControllerExpandVolumeRequest{VolumeId: volume, CapacityRange: step.size})
		if wantCode(t, err, step.code); response.GetCapacityBytes() != step.want || response.GetNodeExpansionRequired() {
			t.Errorf("%s: want %d, got %v", step.name, step.want, response)
		}
	}
}

func TestReadOnlyPoolSendsTheSchedulerElsewhere(t *testing.T) {
	r := newRig(t, rigOptions{})
	volume := r.create("pvc-1")
	must(t, btrfstest.RemountReadOnly(r.state))
	_, err := r.CreateVolume(t.Context(), &csi.CreateVolumeRequest{Name: "pvc-2", VolumeCapabilities: []*csi.VolumeCapability{writer()}})
	wantCode(t, err, codes.ResourceExhausted, "read-only")
	_, err = r.CreateSnapshot(t.Context(), &csi.CreateSnapshotRequest{Name: "s", SourceVolumeId: volume})
	wantCode(t, err, codes.ResourceExhausted, "read-only")
	_, err = r.ControllerExpandVolume(t.Context(), &csi.ControllerExpandVolumeRequest{VolumeId: volume, CapacityRange: sized(200 * mib)})
	wantCode(t, err, codes.Unavailable, "read-only")
	capacity, err := r.GetCapacity(t.Context(), &csi.GetCapacityRequest{})
	if err != nil || capacity.GetAvailableCapacity() != 0 {
		t.Errorf("want no capacity, got %v, %v", capacity, err)
	}
}

func TestRequiredFields(t *testing.T) {
	r := newRig(t, rigOptions{})
	ctx := t.Context()
	for name, call := range map[string]func() error{
		"CreateVolume": func() error { _, err := r.CreateVolume(ctx, &csi.CreateVolumeRequest{}); return err },
		"DeleteVolume": func() error { return r.delete("") },
		"GetVolume":    func() error { _, err := r.ControllerGetVolume(ctx, &csi.ControllerGetVolumeRequest{}); return err },
		"Expand": func() error {
			_, err := r.ControllerExpandVolume(ctx, &csi.ControllerExpandVolumeRequest{})
			return err
		},
		"Validate": func() error {
			_, err := r.ValidateVolumeCapabilities(ctx, &csi.ValidateVolumeCapabilitiesRequest{})
			return err
		},
		"CreateSnapshot": func() error { _, err := r.CreateSnapshot(ctx, &csi.CreateSnapshotRequest{Name: "s"}); return err },
		"DeleteSnapshot": func() error { _, err := r.DeleteSnapshot(ctx, &csi.DeleteSnapshotRequest{}); return err },
		"Stage":          func() error { _, err := r.NodeStageVolume(ctx, &csi.NodeStageVolumeRequest{}); return err },
		"Unstage": func() error {
			_, err := r.NodeUnstageVolume(ctx, &csi.NodeUnstageVolumeRequest{VolumeId: "v"})
			return err
		},
		"Publish": func() error {
			_, err := r.NodePublishVolume(ctx, &csi.NodePublishVolumeRequest{VolumeId: "v"})
			return err
		},
		"Unpublish": func() error { return r.unpublish("", "/x") },
		"Stats": func() error {
			_, err := r.NodeGetVolumeStats(ctx, &csi.NodeGetVolumeStatsRequest{VolumeId: "v"})
			return err
		},
		"NodeExpand": func() error {
			_, err := r.NodeExpandVolume(ctx, &csi.NodeExpandVolumeRequest{VolumePath: "/x"})
			return err
		},
		"Health": func() error { _, err := r.NodeGetVolumeHealth(ctx, &csi.NodeGetVolumeHealthRequest{}); return err },
	} {
		t.Run(name, func(t *testing.T) { wantCode(t, call(), codes.InvalidArgument) })
	}
}

func TestHealth(t *testing.T) {
	r := newRig(t, rigOptions{})
	volume := r.create("pvc-1")
	lost := r.create("pvc-2")
	must(t, btrfs.Destroy(r.source(lost)))
	health := func(id string) []*csi.VolumeHealth_VolumeHealthEntry {
		t.Helper()
		ofController, err := r.ControllerGetVolumeHealth(t.Context(), &csi.ControllerGetVolumeHealthRequest{VolumeId: id})
		must(t, err)
		ofNode, err := r.NodeGetVolumeHealth(t.Context(), &csi.NodeGetVolumeHealthRequest{VolumeId: id})
		if err != nil || !proto.Equal(ofNode.GetVolumeHealth(), ofController.GetVolumeHealth()) || ofNode.GetVolumeHealth().GetVolumeId() != id {
			t.Errorf("controller %v, node %v, %v", ofController, ofNode, err)
		}
		return ofNode.GetVolumeHealth().GetHealthStatuses()
	}
	if got := health(volume); len(got) != 0 {
		t.Errorf("want no complaint, got %v", got)
	}
	if got := health(lost); len(got) != 1 || got[0].GetStatus() != csi.VolumeHealthErrorType_DATA_LOSS {
		t.Errorf("want data loss, got %v", got)
	}
	_, err := r.ControllerGetVolume(t.Context(), &csi.ControllerGetVolumeRequest{VolumeId: lost})
	wantCode(t, err, codes.DataLoss)
	_, err = r.ControllerGetVolumeHealth(t.Context(), &csi.ControllerGetVolumeHealthRequest{VolumeId: "absent"})
	wantCode(t, err, codes.NotFound)

	storage, err := r.NodeGetStorageHealth(t.Context(), &csi.NodeGetStorageHealthRequest{})
	if err != nil || len(storage.GetBackendHealth()) != 0 {
		t.Errorf("want no complaint, got %v, %v", storage, err)
	}
	must(t, btrfstest.RemountReadOnly(r.state))
	if got := health(volume); len(got) != 1 || got[0].GetReason() != "PoolReadOnly" {
		t.Errorf("want PoolReadOnly, got %v", got)
	}
	storage, err = r.NodeGetStorageHealth(t.Context(), &csi.NodeGetStorageHealthRequest{})
	if err != nil || len(storage.GetBackendHealth()) != 1 || storage.GetBackendHealth()[0].GetReason() != "PoolReadOnly" {
		t.Errorf("want PoolReadOnly, got %v, %v", storage, err)
	}
}

// TestCapabilities: the driver serves the RPCs of every capability that it reports.
func TestCapabilities(t *testing.T) {
	r := newRig(t, rigOptions{})
	plugin, err := r.GetPluginCapabilities(t.Context(), &csi.GetPluginCapabilitiesRequest{})
	if err != nil || len(plugin.GetCapabilities()) != 4 {
		t.Errorf("got %v, %v", plugin, err)
	}
	info, err := r.GetPluginInfo(t.Context(), &csi.GetPluginInfoRequest{})
	if err != nil || info.GetName() != "btrfs-csi.github.io" || info.GetVendorVersion() != "v0.0.0-test" {
		t.Errorf("got %v, %v", info, err)
	}
	ofController, err := r.ControllerGetCapabilities(t.Context(), &csi.ControllerGetCapabilitiesRequest{})
	if err != nil || len(ofController.GetCapabilities()) != 11 {
		t.Errorf("got %v, %v", ofController, err)
	}
	ofNode, err := r.NodeGetCapabilities(t.Context(), &csi.NodeGetCapabilitiesRequest{})
	if err != nil || len(ofNode.GetCapabilities()) != 6 {
		t.Errorf("got %v, %v", ofNode, err)
	}
	_, err = r.ControllerModifyVolume(t.Context(), &csi.ControllerModifyVolumeRequest{VolumeId: "v"})
	wantCode(t, err, codes.Unimplemented)
}

// TestSteadyCapacity: a new volume seldom changes the reported capacity, which is nearly
// all of the real one.
func TestSteadyCapacity(t *testing.T) {
	for _, have := range []int64{0, mib, 3 * mib, 100 * mib, 10<<30 - mib, 7 << 40, math.MaxInt64} {
		reported := steady(have)
		if reported > have || have-reported > have/1000 {
			t.Errorf("of %d bytes %d are reported", have, reported)
		}
	}
	changes := 0
	const each = 64 << 10 // bytes that one volume takes
	for have := int64(10 << 30); have > 10<<30-100*each; have -= each {
		if steady(have) != steady(have-each) {
			changes++
		}
	}
	if changes > 2 {
		t.Errorf("100 volumes change it %d times", changes)
	}
}
