package driver

import (
	"maps"
	"strings"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
	"github.com/btrfs-csi/btrfs-csi/pkg/snapshot"
)

const (
	manyReaders = csi.VolumeCapability_AccessMode_MULTI_NODE_READER_ONLY
	manyWriters = csi.VolumeCapability_AccessMode_MULTI_NODE_MULTI_WRITER
	oneOfMany   = csi.VolumeCapability_AccessMode_MULTI_NODE_SINGLE_WRITER
)

// changed returns a plain request after change.
func changed(change func(*csi.CreateVolumeRequest)) *csi.CreateVolumeRequest {
	request := &csi.CreateVolumeRequest{Name: "pvc-1", VolumeCapabilities: []*csi.VolumeCapability{writer()}}
	change(request)
	return request
}

func with(parameters ...string) *csi.CreateVolumeRequest {
	return changed(func(r *csi.CreateVolumeRequest) {
		r.Parameters = map[string]string{}
		for i := 0; i < len(parameters); i += 2 {
			r.Parameters[parameters[i]] = parameters[i+1]
		}
	})
}

func used(source *csi.VolumeContentSource, capabilities ...*csi.VolumeCapability) *csi.CreateVolumeRequest {
	return changed(func(r *csi.CreateVolumeRequest) { r.VolumeContentSource, r.VolumeCapabilities = source, capabilities })
}

func mountCapability(m *csi.VolumeCapability_MountVolume) *csi.VolumeCapability {
	return &csi.VolumeCapability{AccessMode: writer().GetAccessMode(), AccessType: &csi.VolumeCapability_Mount{Mount: m}}
}

func TestCreationIsRefused(t *testing.T) {
	name := func(name string) *csi.CreateVolumeRequest {
		return changed(func(r *csi.CreateVolumeRequest) { r.Name = name })
	}
	for what, test := range map[string]struct {
		request *csi.CreateVolumeRequest
		says    string
	}{
		"no name":            {name(""), "name"},
		"long name":          {name(strings.Repeat("x", 129)), "128"},
		"long name in bytes": {name(strings.Repeat("ä", 65)), "128"},
		"NUL":                {name("a\x00"), "control"},
		"escape":             {name("a\x1b"), "control"},
		"DEL":                {name("a\x7f"), "control"},
		"C1":                 {name("a\u0085"), "control"},
		"no UTF-8":           {name("a\xff"), "name"},
		"no capability":      {used(nil), "capabilit"},
		"nil capability":     {used(nil, nil), "capability"},
		"no access type":     {used(nil, &csi.VolumeCapability{AccessMode: writer().GetAccessMode()}), "mount"},
		"no access mode":     {used(nil, capability(0)), "access mode"},
		"ext3":               {used(nil, formatted("ext3")), "ext4"},
		"filesystem and URL": {used(nil, formatted("ext4:")), "ext4:"},
		"case of the type":   {used(nil, formatted("XFS")), "XFS"},
		"block and mount":    {used(nil, device(nodeWriter), writer()), "contradict"},
		"ext4 and xfs":       {used(nil, formatted("ext4"), formatted("xfs")), "contradict"},
		"ext4 and none":      {used(nil, formatted("ext4"), writer()), "contradict"},
		"block of many":      {used(nil, device(manyWriters)), "MULTI_NODE_MULTI_WRITER"},
		"compressed ext4": {changed(func(r *csi.CreateVolumeRequest) {
			r.VolumeCapabilities, r.Parameters = []*csi.VolumeCapability{formatted("ext4")}, map[string]string{"compression": "zstd"}
		}), "direct I/O"},
		"mount group":        {used(nil, mountCapability(&csi.VolumeCapability_MountVolume{VolumeMountGroup: "7"})), "volume_mount_group"},
		"many writers":       {used(nil, capability(manyWriters)), "MULTI_NODE_MULTI_WRITER"},
		"one of many":        {used(nil, capability(oneOfMany)), "MULTI_NODE_SINGLE_WRITER"},
		"readers of nothing": {used(nil, reader()), "snapshot"},
		"one bad of two":     {used(nil, writer(), capability(manyWriters)), "MULTI_NODE_MULTI_WRITER"},
		"data option":        {used(nil, capability(nodeWriter, "noatime", "compress=zstd")), "compress=zstd"},
		"subvol":             {used(nil, capability(nodeWriter, "subvol=/")), "subvol"},
		"ro and rw":          {used(nil, capability(nodeWriter, "ro", "rw")), "contradict"},
		"two access times":   {used(nil, capability(nodeWriter, "noatime", "relatime")), "contradict"},
		"empty source":       {used(&csi.VolumeContentSource{}, writer()), "source"},
		"source without ID":  {used(fromVolume(""), writer()), "ID"},
		"unknown parameter":  {with("compresion", "zstd"), "compression"},
		"case matters":       {with("Pool", "fast"), "Pool"},
		"empty pool":         {with("pool", ""), "pool"},
		"pool path":          {with("pool", "../x"), "pool"},
		"bad compression":    {with("compression", "gzip"), "zstd"},
		"zstd level 16":      {with("compression", "zstd:16"), "zstd:15"},
		"zstd level 0":       {with("compression", "zstd:0"), "zstd:15"},
		"lzo level":          {with("compression", "lzo:1"), "lzo"},
		"bad nodatacow":      {with("nodatacow", "yes"), "true or false"},
		"bad nested":         {with("nestedSubvolumes", "delete"), "refuse or skip"},
		"nodatacow and zstd": {with("nodatacow", "true", "compression", "zstd"), "contradict"},
		"mutable":            {changed(func(r *csi.CreateVolumeRequest) { r.MutableParameters = map[string]string{"a": "b"} }), "mutable"},
		"negative limit":     {changed(func(r *csi.CreateVolumeRequest) { r.CapacityRange = &csi.CapacityRange{LimitBytes: -1} }), "negative"},
	} {
		t.Run(what, func(t *testing.T) {
			_, err := newCreation(test.request)
			if Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), test.says) {
				t.Errorf("want INVALID_ARGUMENT that says %q, got %v", test.says, err)
			}
		})
	}
}

func TestCreationIsTranslated(t *testing.T) {
	for what, test := range map[string]struct {
		request *csi.CreateVolumeRequest
		want    creation
	}{
		"plain":           {changed(func(*csi.CreateVolumeRequest) {}), creation{}},
		"clone":           {used(fromVolume("v"), writer()), creation{source: meta.Volume("v")}},
		"restore":         {used(fromSnapshot("s"), writer()), creation{source: meta.Snapshot("s")}},
		"view":            {used(fromSnapshot("s"), reader(), capability(nodeReader)), creation{source: meta.Snapshot("s"), view: true}},
		"view or writer":  {used(fromSnapshot("s"), reader(), writer()), creation{source: meta.Snapshot("s")}},
		"reader alone":    {used(nil, capability(nodeReader)), creation{}},
		"reader of clone": {used(fromVolume("v"), capability(nodeReader)), creation{source: meta.Volume("v"), view: true}},
		"pool":            {with("pool", "fast"), creation{spec: snapshot.Spec{Pool: "fast"}}},
		"parameters": {with("compression", "zstd:15", "nestedSubvolumes", "skip", "nodatacow", "false"), creation{spec: snapshot.Spec{
			Parameters: meta.Parameters{Compression: "zstd:15", SkipNested: true},
		}}},
		"nodatacow, uncompressed": {with("nodatacow", "true", "compression", "none"), creation{spec: snapshot.Spec{
			Parameters: meta.Parameters{NoDataCow: true, Compression: "none"},
		}}},
		"labels": {with("csi.storage.k8s.io/pvc/name", "data", "csi.storage.k8s.io/pvc/namespace", "shop", "csi.storage.k8s.io/pv/name", "pvc-1", "csi.storage.k8s.io/other", "x"),
			creation{spec: snapshot.Spec{Labels: map[string]string{"pvc/name": "data", "pvc/namespace": "shop", "pv/name": "pvc-1"}}}},
		"size": {changed(func(r *csi.CreateVolumeRequest) {
			r.CapacityRange = &csi.CapacityRange{RequiredBytes: 1, LimitBytes: 2}
		}),
			creation{spec: snapshot.Spec{Size: snapshot.Range{Required: 1, Limit: 2}}}},
		"secrets": {changed(func(r *csi.CreateVolumeRequest) { r.Secrets = map[string]string{"a": "b"} }), creation{}},
		"btrfs":   {used(nil, formatted("btrfs")), creation{}},
		"ext4":    {used(nil, formatted("ext4")), creation{spec: snapshot.Spec{Content: meta.Ext4}}},
		"xfs":     {used(nil, formatted("xfs"), formatted("xfs")), creation{spec: snapshot.Spec{Content: meta.XFS}}},
		"block":   {used(nil, device(nodeWriter)), creation{spec: snapshot.Spec{Content: meta.Block}}},
	} {
		t.Run(what, func(t *testing.T) {
			got, err := newCreation(test.request)
			want := test.want
			want.spec.Name = "pvc-1"
			if err != nil || got.source != want.source || got.view != want.view || !equalSpecs(got.spec, want.spec) {
				t.Errorf("want %+v, got %+v, %v", want, got, err)
			}
		})
	}
}

func equalSpecs(a, b snapshot.Spec) bool {
	return a.Name == b.Name && a.Pool == b.Pool && a.Content == b.Content && a.Size == b.Size && a.Parameters == b.Parameters && maps.Equal(a.Labels, b.Labels)
}

// A StorageClass defines compression for writes. A read-only PVC may use the class, too.
func TestViewMayHaveAClassWithCompression(t *testing.T) {
	c, err := newCreation(changed(func(r *csi.CreateVolumeRequest) {
		r.VolumeContentSource, r.VolumeCapabilities, r.Parameters = fromSnapshot("s"), []*csi.VolumeCapability{reader()}, map[string]string{"compression": "lzo"}
	}))
	if err != nil || !c.view {
		t.Errorf("got view %v, %v; want a view", c.view, err)
	}
}

func TestCommitIsChecked(t *testing.T) {
	request := func(change func(*csi.CreateSnapshotRequest)) *csi.CreateSnapshotRequest {
		r := &csi.CreateSnapshotRequest{Name: "s", SourceVolumeId: "v"}
		change(r)
		return r
	}
	for what, test := range map[string]struct {
		request *csi.CreateSnapshotRequest
		says    string // expected error; empty for none
	}{
		"plain":       {request(func(*csi.CreateSnapshotRequest) {}), ""},
		"nested":      {request(func(r *csi.CreateSnapshotRequest) { r.Parameters = map[string]string{"nestedSubvolumes": "skip"} }), ""},
		"no name":     {request(func(r *csi.CreateSnapshotRequest) { r.Name = "" }), "name"},
		"no volume":   {request(func(r *csi.CreateSnapshotRequest) { r.SourceVolumeId = "" }), "source_volume_id"},
		"pool":        {request(func(r *csi.CreateSnapshotRequest) { r.Parameters = map[string]string{"pool": "fast"} }), "pool"},
		"compression": {request(func(r *csi.CreateSnapshotRequest) { r.Parameters = map[string]string{"compression": "lzo"} }), "nestedSubvolumes"},
		"topology":    {request(func(r *csi.CreateSnapshotRequest) { r.AccessibilityRequirements = topologyRequirement("x") }), "accessibility"},
	} {
		t.Run(what, func(t *testing.T) {
			_, err := newCommit(test.request)
			if test.says == "" && err != nil || test.says != "" && (status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), test.says)) {
				t.Errorf("want %q, got %v", test.says, err)
			}
		})
	}
}

func TestTokenIsReadBack(t *testing.T) {
	for _, id := range []string{"a", "pvc-1", strings.Repeat("x", 128)} {
		if got, err := readToken(tokenAfter(id)); got != id || err != nil {
			t.Errorf("%q: got %q, %v", id, got, err)
		}
	}
	for _, token := range []string{"a", "invalid-token", tokenAfter("../x"), tokenAfter(""), "dg"} {
		if _, err := readToken(token); status.Code(err) != codes.Aborted {
			t.Errorf("%q: want ABORTED, got %v", token, err)
		}
	}
}
