package reliability

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs"
	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs/btrfstest"
	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
	"github.com/btrfs-csi/btrfs-csi/pkg/pool"
	"github.com/btrfs-csi/btrfs-csi/pkg/snapshot"
)

// InFlight counts what became of the requests in flight.
type InFlight struct {
	Whole  int `json:"whole"`
	Absent int `json:"absent"`
}

// check compares the disk, the records, the index and the findings of the driver with the model. No
// request may be in flight.
func (n *node) check(ctx context.Context, expected map[string]expectation) (InFlight, error) {
	s, err := n.see(ctx)
	if err != nil {
		return InFlight{}, errors.Join(err, n.readLog())
	}
	t, err := s.compare(expected)
	return t, errors.Join(err, n.readLog())
}

// sight is the state of a node, to be compared with the model.
type sight struct {
	findings   []snapshot.Finding
	slots      map[string]slot // by area and name
	subvolumes []uint64        // the IDs of all
	listed     []listed
}

// slot is one slot on disk.
type slot struct {
	area, name string
	subvolume  uint64
	record     meta.Record
	properties meta.Parameters
	content    content
	err        error // the error of what could not be read
}

// see reads the state of a node.
func (n *node) see(ctx context.Context) (s sight, err error) {
	var errs [4]error
	s.findings, errs[0] = n.findings(ctx)
	s.slots, errs[1] = n.slots()
	errs[2] = btrfs.WalkSubvolumeIDs(n.Pool(), func(id uint64) error {
		s.subvolumes = append(s.subvolumes, id)
		return nil
	})
	s.listed, errs[3] = list(ctx, n.driver.Load())
	return s, errors.Join(errs[:]...)
}

// slots reads every slot on disk.
func (n *node) slots() (map[string]slot, error) {
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
	s.record, errs[0] = recordOf(path)
	s.properties, errs[1] = propertiesOf(filepath.Join(path, "fs"))
	s.content, errs[2] = contentOf(filepath.Join(path, "fs"))
	info, err := btrfs.Info(filepath.Join(path, "fs"))
	s.subvolume, errs[3] = info.ID, err
	s.err = errors.Join(errs[:]...)
	return s
}

func recordOf(path string) (meta.Record, error) {
	data := make([]byte, meta.MaxRecordSize)
	size, err := unix.Lgetxattr(path, meta.LedgerXattr, data)
	if err != nil {
		return meta.Record{}, fmt.Errorf("record: %w", err)
	}
	return meta.DecodeRecord(data[:size])
}

// compare compares the state of a node with the expectations.
func (s sight) compare(expected map[string]expectation) (InFlight, error) {
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
		case there && !e.must:
			t.Whole++
		case !there && !e.must:
			t.Absent++
		case !there:
			errs = append(errs, fmt.Errorf("%s is lost", id))
		}
	}
	return t, errors.Join(append(errs, compareIndex(found, s.listed))...)
}

// judge checks every slot, and returns the records by ID.
func (s sight) judge(expected map[string]expectation) (map[string]meta.Record, error) {
	records := map[string]meta.Record{}
	var errs []error
	for path, found := range s.slots {
		e, ok := expected[found.name]
		if !ok || string(e.object.kind) != found.area {
			errs = append(errs, fmt.Errorf("%s should not be there: %s", path, found.name))
			continue
		}
		if err := e.judge(found); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", path, err))
		}
		records[found.name] = found.record
	}
	return records, errors.Join(errs...)
}

// judge compares a slot with its expectation.
func (e expectation) judge(found slot) error {
	if found.err != nil {
		return found.err
	}
	var errs []error
	record := found.record
	if record.State != meta.Ready || record.Name != e.object.name || record.Source.ID != sourceID(e.object) || record.Parameters != e.object.asked() {
		errs = append(errs, fmt.Errorf("has the record %+v, wanted is the name %q, the source %q and the parameters %+v",
			record, e.object.name, sourceID(e.object), e.object.asked()))
	}
	if want := e.object.properties(); found.properties != want {
		errs = append(errs, fmt.Errorf("has the properties %+v, wanted are %+v", found.properties, want))
	}
	if !slices.Contains(e.sizes, record.Size) {
		errs = append(errs, fmt.Errorf("has %d bytes, wanted is one of %v", record.Size, e.sizes))
	}
	if !slices.Contains(e.contents, found.content) {
		errs = append(errs, fmt.Errorf("contains %s, wanted is one of %v", found.content, e.contents))
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
func (s sight) compareSubvolumes() error {
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
func compareIndex(ledger map[string]meta.Record, index []listed) error {
	var errs []error
	listed := map[string]bool{}
	for _, l := range index {
		record, ok := ledger[l.id]
		listed[l.id] = true
		if !ok || record.Size != l.size || record.Source.ID != l.source {
			errs = append(errs, fmt.Errorf("%s is in the index as %+v, in the ledger as %+v", l.id, l, record))
		}
	}
	for id := range ledger {
		if !listed[id] {
			errs = append(errs, fmt.Errorf("%s is in the ledger and not in the index", id))
		}
	}
	return errors.Join(errs...)
}

// checkMounts compares the mounts of the node with the expected ones, and fails for stray loop devices. A nil
// model expects no mounts of volumes.
func (n *node) checkMounts(m *model) error {
	points, err := mountedBelow(n.dir)
	if err != nil {
		return err
	}
	var errs []error
	if root := points[n.Pool()]; root != "/" {
		errs = append(errs, fmt.Errorf("%q is mounted as the pool, wanted is / once", root))
	}
	delete(points, n.Pool())
	if m != nil {
		errs = append(errs, n.takeWanted(points, m))
	}
	for at, root := range points {
		errs = append(errs, fmt.Errorf("stray mount of %s at %s", root, at))
	}
	return errors.Join(append(errs, n.checkLoops())...)
}

// takeWanted removes the expected mounts from points, and reports those that are missing or wrong.
func (n *node) takeWanted(points map[string]string, m *model) error {
	var errs []error
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, o := range m.living {
		for at, p := range map[string]presence{n.staging(o): o.staged, n.target(o): o.published} {
			root, there := points[at]
			delete(points, at)
			switch want := fmt.Sprintf("/%s/%s/fs", string(o.kind), o.id); {
			case there && (p == absent || root != want):
				errs = append(errs, fmt.Errorf("%s: %s is mounted at %s, wanted is %s %v", o.id, root, at, want, p))
			case !there && p == present:
				errs = append(errs, fmt.Errorf("%s is not mounted at %s any more", o.id, at))
			}
		}
	}
	return errors.Join(errs...)
}

// checkLoops fails unless the pool's image has one loop device, and no other file of the node has one.
func (n *node) checkLoops() error {
	all, err := loops()
	if err != nil {
		return err
	}
	ours := slices.DeleteFunc(all, func(file string) bool {
		return file != n.image && !strings.HasPrefix(file, n.dir+"/")
	})
	if want := []string{n.image}; !slices.Equal(ours, want) {
		return fmt.Errorf("loop devices on %q, wanted are those on %q", ours, want)
	}
	return nil
}

// sweep restarts the driver after the kernel's cleaner is done. Then no stale qgroups may be left, except, in
// simple mode, those of data that a snapshot still has. A running driver sweeps only every 30 s.
func (n *node) sweep(ctx context.Context) error {
	if err := n.settle(ctx); err != nil {
		return err
	}
	if err := errors.Join(n.stop(), n.serve(ctx)); err != nil {
		return err
	}
	return n.staleQuota()
}

// checkQuota sweeps, and checks again after the driver has ended.
func (n *node) checkQuota(ctx context.Context) error {
	if err := errors.Join(n.sweep(ctx), n.stop()); err != nil {
		return err
	}
	findings, err := n.findings(ctx)
	for _, f := range findings {
		err = errors.Join(err, fmt.Errorf("check without a driver finds %s", f))
	}
	return errors.Join(err, n.staleQuota(), n.readLog())
}

// staleQuota returns the stale qgroups.
func (n *node) staleQuota() error {
	if n.quota == btrfs.QuotaNone {
		return nil
	}
	subvolumes := map[uint64]bool{fsTree: true}
	err := btrfs.WalkSubvolumeIDs(n.Pool(), func(id uint64) error {
		subvolumes[id] = true
		return nil
	})
	if err != nil {
		return err
	}
	var stale []string
	err = btrfs.WalkQgroups(n.Pool(), func(q btrfs.Qgroup) error {
		inUse := n.quota == btrfs.QuotaSimple && q.Referenced > 0
		if !subvolumes[q.ID.Subvolume()] && !inUse {
			stale = append(stale, q.ID.String())
		}
		return nil
	})
	if len(stale) > 0 {
		err = errors.Join(err, fmt.Errorf("quota groups %v are of subvolumes that are gone", stale))
	}
	return err
}

// fsTree is the ID of a filesystem's top level.
const fsTree = 5

// settle waits until the kernel's cleaner has dropped all destroyed subvolumes and their qgroups.
func (n *node) settle(ctx context.Context) error {
	return btrfstest.Settle(ctx, n.Pool(), btrfs.DyingIDs)
}
