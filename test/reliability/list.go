package reliability

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/btrfs-csi/btrfs-csi/test/testkit"
)

// listed is a volume or snapshot as the driver lists it.
type listed struct {
	id, source string
	size       int64
}

// list returns all volumes and snapshots.
func list(ctx context.Context, c *testkit.Driver) ([]listed, error) {
	const page = 7
	volumes, err := listVolumes(ctx, c, page)
	if err != nil {
		return nil, err
	}
	snapshots, err := listSnapshots(ctx, c, page, "")
	return append(volumes, snapshots...), err
}

func listVolumes(ctx context.Context, c *testkit.Driver, page int32) ([]listed, error) {
	return pages(page, func(token string) (all []listed, next string, err error) {
		response, err := c.ListVolumes(ctx, &csi.ListVolumesRequest{MaxEntries: page, StartingToken: token})
		for _, e := range response.GetEntries() {
			v := e.GetVolume()
			source := v.GetContentSource().GetVolume().GetVolumeId() + v.GetContentSource().GetSnapshot().GetSnapshotId()
			all = append(all, listed{v.GetVolumeId(), source, v.GetCapacityBytes()})
		}
		return all, response.GetNextToken(), err
	})
}

// listSnapshots lists those of a volume; of all where that is empty.
func listSnapshots(ctx context.Context, c *testkit.Driver, page int32, of string) ([]listed, error) {
	return pages(page, func(token string) (all []listed, next string, err error) {
		response, err := c.ListSnapshots(ctx, &csi.ListSnapshotsRequest{MaxEntries: page, StartingToken: token, SourceVolumeId: of})
		for _, e := range response.GetEntries() {
			s := e.GetSnapshot()
			all = append(all, listed{s.GetSnapshotId(), s.GetSourceVolumeId(), s.GetSizeBytes()})
		}
		return all, response.GetNextToken(), err
	})
}

// pages asks for one page after the other. None may be longer than it was to be.
func pages(most int32, ask func(token string) ([]listed, string, error)) (all []listed, err error) {
	for token, first := "", true; first || token != ""; first = false {
		var page []listed
		if page, token, err = ask(token); err != nil {
			return nil, err
		}
		if most > 0 && len(page) > int(most) {
			return nil, fmt.Errorf("a page has %d entries, at most %d were asked for", len(page), most)
		}
		all = append(all, page...)
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
		case l.source != e.object.sourceID():
			errs = append(errs, fmt.Errorf("%s is listed with the source %q, wanted is %q", l.id, l.source, e.object.sourceID()))
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
