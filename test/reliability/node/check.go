package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs"
	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
	"github.com/btrfs-csi/btrfs-csi/pkg/pool"
	"github.com/btrfs-csi/btrfs-csi/pkg/snapshot"
	"github.com/btrfs-csi/btrfs-csi/test/reliability/files"
	"github.com/btrfs-csi/btrfs-csi/test/reliability/model"
)

// InFlight counts what became of the requests in flight.
type InFlight struct {
	Whole  int `json:"whole"`
	Absent int `json:"absent"`
}

// Add adds the counts of another check.
func (t *InFlight) Add(other InFlight) {
	t.Whole += other.Whole
	t.Absent += other.Absent
}

// Check compares the disk, the records, the index and the findings of the driver with the model. No
// request may be in flight.
func (n *Node) Check(ctx context.Context, expected map[string]model.Expectation) (InFlight, error) {
	s, err := n.See(ctx)
	if err != nil {
		return InFlight{}, errors.Join(err, n.ReadLog())
	}
	t, err := s.Compare(expected)
	return t, errors.Join(err, n.ReadLog())
}

// Sight is the state of a node, to be compared with the model.
type Sight struct {
	findings   []snapshot.Finding
	slots      map[string]slot // by area and name
	subvolumes []uint64        // IDs
	listed     []Listed
}

// slot is one slot on disk.
type slot struct {
	area, name string
	subvolume  uint64
	record     meta.Record
	properties meta.Parameters
	content    files.Content
	err        error // of reading the slot
}

// See reads the state of a node.
func (n *Node) See(ctx context.Context) (s Sight, err error) {
	var errs [4]error
	s.findings, errs[0] = n.Findings(ctx)
	s.slots, errs[1] = n.slots()
	errs[2] = btrfs.WalkSubvolumeIDs(n.Pool(), func(id uint64) error {
		s.subvolumes = append(s.subvolumes, id)
		return nil
	})
	s.listed, errs[3] = List(ctx, n.Driver.Load())
	return s, errors.Join(errs[:]...)
}

// slots reads every slot on disk.
func (n *Node) slots() (map[string]slot, error) {
	all := map[string]slot{}
	var errs []error
	for _, area := range []string{string(meta.Active), string(meta.Committed), string(meta.View), string(pool.AreaRemoving)} {
		names, err := os.ReadDir(filepath.Join(n.Pool(), area))
		errs = append(errs, err)
		for _, name := range names {
			all[area+"/"+name.Name()] = readSlot(n.Pool(), area, name.Name())
		}
	}
	return all, errors.Join(errs...)
}

func readSlot(pool, area, name string) slot {
	s := slot{area: area, name: name}
	path := filepath.Join(pool, area, name)
	var errs [4]error
	s.record, errs[0] = RecordOf(path)
	s.properties, errs[1] = propertiesOf(filepath.Join(path, "fs"))
	s.content, errs[2] = files.Of(filepath.Join(path, "fs"))
	info, err := btrfs.Info(filepath.Join(path, "fs"))
	s.subvolume, errs[3] = info.ID, err
	s.err = errors.Join(errs[:]...)
	return s
}

// RecordOf reads the record of the slot at a path.
func RecordOf(path string) (meta.Record, error) {
	data := make([]byte, meta.MaxRecordSize)
	size, err := unix.Lgetxattr(path, meta.LedgerXattr, data)
	if err != nil {
		return meta.Record{}, fmt.Errorf("record: %w", err)
	}
	return meta.DecodeRecord(data[:size])
}

// Compare compares the state of a node with the expectations.
func (s Sight) Compare(expected map[string]model.Expectation) (InFlight, error) {
	var t InFlight
	var errs []error
	for _, f := range s.findings {
		errs = append(errs, fmt.Errorf("check finds %s", f))
	}
	found, err := s.judge(expected)
	errs = append(errs, err, s.compareSubvolumes())
	for id, e := range expected {
		_, there := found[id]
		switch {
		case there && !e.Must:
			t.Whole++
		case !there && !e.Must:
			t.Absent++
		case !there:
			errs = append(errs, fmt.Errorf("%s is lost", id))
		}
	}
	return t, errors.Join(append(errs, compareIndex(found, s.listed))...)
}

// judge checks every slot, and returns the records by ID.
func (s Sight) judge(expected map[string]model.Expectation) (map[string]meta.Record, error) {
	records := map[string]meta.Record{}
	var errs []error
	for path, found := range s.slots {
		e, ok := expected[found.name]
		if !ok || string(e.Object.Kind) != found.area {
			errs = append(errs, fmt.Errorf("%s should not be there: %s", path, found.name))
			continue
		}
		if err := found.judge(e); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", path, err))
		}
		records[found.name] = found.record
	}
	return records, errors.Join(errs...)
}

// judge compares a slot with what is expected of it.
func (found slot) judge(e model.Expectation) error {
	if found.err != nil {
		return found.err
	}
	var errs []error
	record := found.record
	if record.State != meta.Ready || record.Name != e.Object.Name || record.Source.ID != e.Object.SourceID() || record.Parameters != e.Object.Asked() {
		errs = append(errs, fmt.Errorf("has the record %+v, wanted is the name %q, the source %q and the parameters %+v",
			record, e.Object.Name, e.Object.SourceID(), e.Object.Asked()))
	}
	if want := e.Object.Properties(); found.properties != want {
		errs = append(errs, fmt.Errorf("has the properties %+v, wanted are %+v", found.properties, want))
	}
	if !slices.Contains(e.Sizes, record.Size) {
		errs = append(errs, fmt.Errorf("has %d bytes, wanted is one of %v", record.Size, e.Sizes))
	}
	if !slices.Contains(e.Contents, found.content) {
		errs = append(errs, fmt.Errorf("contains %s, wanted is one of %v", found.content, e.Contents))
	}
	return errors.Join(errs...)
}

// propertiesOf reads the properties that new files inherit from the root of a subvolume.
func propertiesOf(path string) (p meta.Parameters, err error) {
	if p.Compression, err = btrfs.Compression(path); err != nil {
		return p, err
	}
	p.NoDataCow, err = btrfs.NoDataCow(path)
	return p, err
}

// compareSubvolumes fails for a subvolume that is in no slot.
func (s Sight) compareSubvolumes() error {
	strays := slices.Clone(s.subvolumes)
	for _, found := range s.slots {
		strays = slices.DeleteFunc(strays, func(id uint64) bool { return id == found.subvolume })
	}
	if len(strays) > 0 {
		return fmt.Errorf("subvolumes %v are in no slot", strays)
	}
	return nil
}

// compareIndex compares the lists, which come from the index, with the records.
func compareIndex(ledger map[string]meta.Record, index []Listed) error {
	var errs []error
	listed := map[string]bool{}
	for _, l := range index {
		record, ok := ledger[l.ID]
		listed[l.ID] = true
		if !ok || record.Size != l.size || record.Source.ID != l.source {
			errs = append(errs, fmt.Errorf("%s is in the index as %+v, in the ledger as %+v", l.ID, l, record))
		}
	}
	for id := range ledger {
		if !listed[id] {
			errs = append(errs, fmt.Errorf("%s is in the ledger and not in the index", id))
		}
	}
	return errors.Join(errs...)
}
