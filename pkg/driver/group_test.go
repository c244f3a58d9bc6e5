package driver

import (
	"context"
	"slices"
	"strings"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs/btrfstest"
	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
)

// apart is a cluster in which all volumes that are not on this node are on another one.
type apart struct{ noCluster }

func (apart) Owner(context.Context, meta.Ref) (node, poolID string, err error) {
	return "node-2", "their-pool", nil
}

// TestGroup makes, looks up and deletes a group, each again.
func TestGroup(t *testing.T) {
	btrfstest.SnapshotsShare.Need(t)
	r := newRig(t, rigOptions{})
	group := csi.NewGroupControllerClient(dial(t, r.socket))
	volumes := []string{r.create("b"), r.create("a")}
	request := &csi.CreateVolumeGroupSnapshotRequest{
		Name: "group", SourceVolumeIds: volumes,
		Parameters: map[string]string{"csi.storage.k8s.io/volumegroupsnapshot/name": "nightly"},
	}
	var ids []string
	for range 2 {
		created, err := group.CreateVolumeGroupSnapshot(t.Context(), request)
		for status.Code(err) == codes.Aborted { // the snapshots have missed each other
			created, err = group.CreateVolumeGroupSnapshot(t.Context(), request)
		}
		if err != nil {
			t.Fatal(err)
		}
		got := created.GetGroupSnapshot()
		ids = nil
		for i, snapshot := range got.GetSnapshots() {
			ids = append(ids, snapshot.GetSnapshotId())
			if snapshot.GetGroupSnapshotId() != "group" || !snapshot.GetReadyToUse() || snapshot.GetSourceVolumeId() != []string{"a", "b"}[i] {
				t.Errorf("got %v", snapshot)
			}
		}
		if got.GetGroupSnapshotId() != "group" || !got.GetReadyToUse() || got.GetCreationTime() == nil || len(ids) != 2 {
			t.Errorf("got %v", got)
		}
		again, err := group.GetVolumeGroupSnapshot(t.Context(), &csi.GetVolumeGroupSnapshotRequest{GroupSnapshotId: "group", SnapshotIds: ids})
		if err != nil || again.GetGroupSnapshot().String() != got.String() {
			t.Errorf("got %v, %v, wanted %v", again, err, got)
		}
	}
	_, err := r.DeleteSnapshot(t.Context(), &csi.DeleteSnapshotRequest{SnapshotId: ids[0]})
	wantCode(t, err, codes.InvalidArgument)
	for _, wrong := range [][]string{ids[:1], {ids[0], "other"}, append(slices.Clone(ids), "more")} {
		_, err = group.DeleteVolumeGroupSnapshot(t.Context(), &csi.DeleteVolumeGroupSnapshotRequest{GroupSnapshotId: "group", SnapshotIds: wrong})
		wantCode(t, err, codes.InvalidArgument)
		_, err = group.GetVolumeGroupSnapshot(t.Context(), &csi.GetVolumeGroupSnapshotRequest{GroupSnapshotId: "group", SnapshotIds: wrong})
		wantCode(t, err, codes.InvalidArgument)
	}
	_, err = group.DeleteVolumeGroupSnapshot(t.Context(), &csi.DeleteVolumeGroupSnapshotRequest{GroupSnapshotId: "none", SnapshotIds: ids})
	wantCode(t, err, codes.InvalidArgument)
	for range 2 {
		if _, err := group.DeleteVolumeGroupSnapshot(t.Context(), &csi.DeleteVolumeGroupSnapshotRequest{GroupSnapshotId: "group", SnapshotIds: ids}); err != nil {
			t.Error(err)
		}
		_, err = group.GetVolumeGroupSnapshot(t.Context(), &csi.GetVolumeGroupSnapshotRequest{GroupSnapshotId: "group", SnapshotIds: ids})
		wantCode(t, err, codes.NotFound)
	}
}

// TestGroupApart asks for groups whose volumes are not all in one pool of this node.
func TestGroupApart(t *testing.T) {
	r := newRig(t, rigOptions{Options: Options{Cluster: apart{}}, pools: []string{"fast"}})
	group := csi.NewGroupControllerClient(dial(t, r.socket))
	here := r.create("here")
	fast := r.createAs(&csi.CreateVolumeRequest{Name: "fast", Parameters: map[string]string{"pool": "fast"}}).GetVolumeId()
	for _, c := range []struct {
		volumes []string
		words   []string
	}{
		{[]string{here, fast}, []string{`"fast" in pool "fast"`, `"here" in pool "default"`}},
		{[]string{here, "far"}, []string{`"far" in pool their-pool of node "node-2"`, `"here" in pool`, `of node "node-1"`}},
		{[]string{"far"}, []string{`"far" in pool their-pool of node "node-2"`}},
	} {
		_, err := group.CreateVolumeGroupSnapshot(t.Context(), &csi.CreateVolumeGroupSnapshotRequest{Name: "group", SourceVolumeIds: c.volumes})
		wantCode(t, err, codes.FailedPrecondition)
		for _, word := range c.words {
			if !strings.Contains(err.Error(), word) {
				t.Errorf("%q is missing from %v", word, err)
			}
		}
	}
	alone := newRig(t, rigOptions{})
	_, err := csi.NewGroupControllerClient(dial(t, alone.socket)).CreateVolumeGroupSnapshot(t.Context(),
		&csi.CreateVolumeGroupSnapshotRequest{Name: "group", SourceVolumeIds: []string{"absent"}})
	wantCode(t, err, codes.NotFound)
}

func TestGroupRequests(t *testing.T) {
	r := newRig(t, rigOptions{})
	group := csi.NewGroupControllerClient(dial(t, r.socket))
	for name, request := range map[string]*csi.CreateVolumeGroupSnapshotRequest{
		"no name":         {SourceVolumeIds: []string{"v"}},
		"no volumes":      {Name: "group"},
		"an empty volume": {Name: "group", SourceVolumeIds: []string{""}},
		"a volume twice":  {Name: "group", SourceVolumeIds: []string{"v", "v"}},
		"a parameter":     {Name: "group", SourceVolumeIds: []string{"v"}, Parameters: map[string]string{"pool": "fast"}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := group.CreateVolumeGroupSnapshot(t.Context(), request)
			wantCode(t, err, codes.InvalidArgument)
		})
	}
}
