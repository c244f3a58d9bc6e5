package node

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/btrfs-csi/btrfs-csi/test/reliability/model"
	"github.com/btrfs-csi/btrfs-csi/test/testkit"
)

// Listed is a volume or snapshot in a list of the driver.
type Listed struct {
	ID, source string
	size       int64
}

// List returns all volumes and snapshots.
func List(ctx context.Context, c *testkit.Driver) ([]Listed, error) {
	const page = 7
	volumes, err := ListVolumes(ctx, c, page)
	if err != nil {
		return nil, err
	}
	snapshots, err := ListSnapshots(ctx, c, page, "")
	return append(volumes, snapshots...), err
}

// ListVolumes returns all volumes.
func ListVolumes(ctx context.Context, c *testkit.Driver, page int32) ([]Listed, error) {
	return pages(page, func(token string) (all []Listed, next string, err error) {
		response, err := c.ListVolumes(ctx, &csi.ListVolumesRequest{MaxEntries: page, StartingToken: token})
		for _, e := range response.GetEntries() {
			v := e.GetVolume()
			source := v.GetContentSource().GetVolume().GetVolumeId() + v.GetContentSource().GetSnapshot().GetSnapshotId()
			all = append(all, Listed{v.GetVolumeId(), source, v.GetCapacityBytes()})
		}
		return all, response.GetNextToken(), err
	})
}

// ListSnapshots returns the snapshots of a volume, or all where its ID is empty.
func ListSnapshots(ctx context.Context, c *testkit.Driver, page int32, of string) ([]Listed, error) {
	return pages(page, func(token string) (all []Listed, next string, err error) {
		response, err := c.ListSnapshots(ctx, &csi.ListSnapshotsRequest{MaxEntries: page, StartingToken: token, SourceVolumeId: of})
		for _, e := range response.GetEntries() {
			s := e.GetSnapshot()
			all = append(all, Listed{s.GetSnapshotId(), s.GetSourceVolumeId(), s.GetSizeBytes()})
		}
		return all, response.GetNextToken(), err
	})
}

// pages asks for one page after the other. It fails if a page has more than most entries.
func pages(most int32, ask func(token string) ([]Listed, string, error)) (all []Listed, err error) {
	for token, first := "", true; first || token != ""; first = false {
		var page []Listed
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

// CompareList compares a list with the objects that must and may exist.
func CompareList(expected map[string]model.Expectation, found []Listed) error {
	var errs []error
	have := map[string]bool{}
	for _, l := range found {
		e, ok := expected[l.ID]
		switch {
		case !ok:
			errs = append(errs, fmt.Errorf("%s is listed, and should not be there", l.ID))
		case have[l.ID]:
			errs = append(errs, fmt.Errorf("%s is listed twice", l.ID))
		case !slices.Contains(e.Sizes, l.size):
			errs = append(errs, fmt.Errorf("%s is listed with %d bytes, wanted is one of %v", l.ID, l.size, e.Sizes))
		case l.source != e.Object.SourceID():
			errs = append(errs, fmt.Errorf("%s is listed with the source %q, wanted is %q", l.ID, l.source, e.Object.SourceID()))
		}
		have[l.ID] = true
	}
	for id, e := range expected {
		if e.Must && !have[id] {
			errs = append(errs, fmt.Errorf("%s is not listed", id))
		}
	}
	return errors.Join(errs...)
}
