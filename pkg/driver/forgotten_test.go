package driver

import (
	"context"
	"errors"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"

	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
	"github.com/btrfs-csi/btrfs-csi/pkg/snapshot"
)

// forgetful is an engine that has lost its index while a pool was absent.
type forgetful struct{ Engine }

func (forgetful) Stat(context.Context, meta.Ref) (meta.Entry, error) {
	return meta.Entry{}, snapshot.ErrForgotten
}

func (forgetful) Mounts(context.Context, string) (snapshot.Mount, error) {
	return snapshot.Mount{}, snapshot.ErrForgotten
}

func (forgetful) GroupMembers(context.Context, string) ([]meta.Ref, error) {
	return nil, snapshot.ErrForgotten
}

func (forgetful) Remove(context.Context, meta.Ref) error { return snapshot.ErrForgotten }
func (forgetful) PoolIDs() map[string]string             { return map[string]string{"default": "here"} }

// oneOwner is a Cluster that returns one owner for everything.
type oneOwner struct {
	noCluster
	node, poolID string
	err          error
}

func (c oneOwner) Owner(context.Context, meta.Ref) (node, poolID string, err error) {
	return c.node, c.poolID, c.err
}

// TestDeleteOfTheForgotten: when the engine does not know whether a volume is gone, the
// cluster decides. Without a cluster the delete fails.
func TestDeleteOfTheForgotten(t *testing.T) {
	for name, c := range map[string]struct {
		cluster Cluster
		want    codes.Code
	}{
		"no cluster":                     {nil, codes.Unavailable},
		"the cluster knows of none":      {oneOwner{}, codes.OK},
		"it is in the pool that is away": {oneOwner{node: "node", poolID: "away"}, codes.Unavailable},
		"it is on another node":          {oneOwner{node: "other"}, codes.Unavailable},
		"the cluster does not answer":    {oneOwner{err: errors.New("no route")}, codes.Unavailable},
	} {
		d, err := New(forgetful{}, Options{NodeID: "node", Version: "test", KubeletDir: t.TempDir(), Cluster: c.cluster})
		if err != nil {
			t.Fatal(err)
		}
		for _, ref := range []meta.Ref{meta.Volume("pvc"), meta.Snapshot("snap")} {
			if err := d.Delete(t.Context(), ref); Code(err) != c.want {
				t.Errorf("%s: %s: got %v, want %v", name, ref, err, c.want)
			}
		}
		for _, members := range [][]string{nil, {"group-0", "group-1"}} {
			if err := d.DeleteGroup(t.Context(), "group", members); Code(err) != c.want {
				t.Errorf("%s: group with members %q: got %v, want %v", name, members, err, c.want)
			}
		}
	}
}

// TestLookUpOfTheForgotten: no request for a forgotten volume or snapshot returns
// NOT_FOUND.
func TestLookUpOfTheForgotten(t *testing.T) {
	d, err := New(forgetful{}, Options{NodeID: "node", Version: "test", KubeletDir: t.TempDir()})
	must(t, err)
	s, ctx := &controller{Driver: d}, t.Context()
	for what, do := range map[string]func() error{
		"volume": func() error {
			_, err := s.ControllerGetVolume(ctx, &csi.ControllerGetVolumeRequest{VolumeId: "pvc"})
			return err
		},
		"snapshot": func() error {
			_, err := s.GetSnapshot(ctx, &csi.GetSnapshotRequest{SnapshotId: "snap"})
			return err
		},
		"list": func() error {
			_, err := s.ListSnapshots(ctx, &csi.ListSnapshotsRequest{SnapshotId: "snap"})
			return err
		},
	} {
		if err := do(); Code(err) != codes.Unavailable {
			t.Errorf("%s: %v", what, err)
		}
	}
	health, err := s.ControllerGetVolumeHealth(ctx, &csi.ControllerGetVolumeHealthRequest{VolumeId: "pvc"})
	must(t, err)
	if all := health.GetVolumeHealth().GetHealthStatuses(); len(all) != 1 || all[0].GetStatus() != csi.VolumeHealthErrorType_INACCESSIBLE {
		t.Errorf("health is %v", all)
	}
}
