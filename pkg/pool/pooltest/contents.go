package pooltest

import (
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs"
	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
	"github.com/btrfs-csi/btrfs-csi/pkg/pool"
)

// The methods below do what pods and administrators do without the engine. None of them is a
// step.

func (f *Filesystem) behind(at pool.Slot, do func(*state) error) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return wrap("behind the engine", at, do(f.current))
}

// Write replaces the content of a subvolume by data; EDQUOT beyond its limit.
func (f *Filesystem) Write(at pool.Slot, data string) error {
	return f.behind(at, func(s *state) error {
		sub, err := s.in(at)
		if err != nil {
			return err
		}
		if limit := s.groups[sub.ID]; f.Mode != btrfs.QuotaNone && limit > 0 && int64(len(data)) > limit {
			return unix.EDQUOT
		}
		if sub.ReadOnly || f.readOnly {
			return unix.EROFS
		}
		sub.data = data
		return nil
	})
}

// Read returns the content of a subvolume.
func (f *Filesystem) Read(at pool.Slot) (data string, err error) {
	err = f.behind(at, func(s *state) error {
		sub, err := s.in(at)
		if err == nil {
			data = sub.data
		}
		return err
	})
	return data, err
}

// Nest makes a subvolume inside the subvolume of a slot.
func (f *Filesystem) Nest(at pool.Slot, name string) error {
	return f.behind(at, func(s *state) error {
		sub, err := s.in(at)
		if err == nil {
			sub.nested, sub.nestedAt = append(sub.nested, name), append(sub.nestedAt, s.transid)
		}
		return err
	})
}

// CutDisk makes the disk file of a subvolume size bytes large, or removes it if size is 0.
func (f *Filesystem) CutDisk(at pool.Slot, size int64) error {
	return f.behind(at, func(s *state) error {
		sub, err := s.in(at)
		if err == nil {
			sub.disk.size = size
		}
		if err == nil && size == 0 {
			sub.disk = disk{}
		}
		return err
	})
}

// Vanish destroys a subvolume and leaves its slot.
func (f *Filesystem) Vanish(at pool.Slot) error {
	return f.behind(at, func(s *state) error {
		sub, err := s.in(at)
		if err != nil {
			return err
		}
		found := s.slots[at]
		found.subvolume, found.changed = nil, s.transid
		delete(s.groups, sub.ID)
		return nil
	})
}

// RollBack does to a slot what a roll back of the filesystem does: its subvolume is outside of
// the pool, and a stub takes the place.
func (f *Filesystem) RollBack(at pool.Slot) error {
	return f.behind(at, func(s *state) error {
		if _, err := s.in(at); err != nil {
			return err
		}
		s.outside = append(s.outside, outside{at, s.slots[at].clone()})
		s.slots[at].subvolume, s.slots[at].stub = nil, true
		return nil
	})
}

// PlantSlot sets the record of a slot, nil for none. It makes the slot if it does not exist.
func (f *Filesystem) PlantSlot(at pool.Slot, record []byte) error {
	return f.behind(at, func(s *state) error {
		if s.slots[at] == nil {
			s.makeSlot(at)
		}
		s.slots[at].record = slices.Clone(record)
		return nil
	})
}

// PlantSubvolume makes a subvolume with data in a slot.
func (f *Filesystem) PlantSubvolume(at pool.Slot, data string) error {
	return f.behind(at, func(s *state) error {
		to, err := s.room(at)
		if err == nil {
			s.add(to, subvolume{data: data})
		}
		return err
	})
}

// PlantFile puts a file into a slot.
func (f *Filesystem) PlantFile(at pool.Slot) error {
	return f.behind(at, func(s *state) error {
		to, err := s.at(at)
		if err == nil && to.file {
			err = fs.ErrExist
		}
		if err == nil {
			to.file = true
		}
		return err
	})
}

// PlantGroup makes the qgroup of a subvolume that does not exist.
func (f *Filesystem) PlantGroup(subvolume uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.current.groups[subvolume], f.durable.groups[subvolume] = 0, 0
}

// RemoveFile removes the file that PlantFile made.
func (f *Filesystem) RemoveFile(at pool.Slot) error {
	return f.behind(at, func(s *state) error {
		from, err := s.at(at)
		if err == nil {
			from.file = false
		}
		return err
	})
}

// SetWritable clears or sets the read-only flag of a subvolume.
func (f *Filesystem) SetWritable(at pool.Slot, writable bool) error {
	return f.behind(at, func(s *state) error {
		sub, err := s.in(at)
		if err == nil {
			sub.ReadOnly = !writable
		}
		return err
	})
}

// SetReadOnly remounts the pool, which commits.
func (f *Filesystem) SetReadOnly(readOnly bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.commit()
	f.readOnly = readOnly
}

// SetInconsistent makes the quota inconsistent.
func (f *Filesystem) SetInconsistent() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.inconsistent = true
}

// Dump returns the content of the filesystem, one slot per line, without IDs and times, which
// differ between two runs of one request.
func (f *Filesystem) Dump() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var lines []string
	for _, at := range slices.SortedFunc(maps.Keys(f.current.slots), func(a, b pool.Slot) int {
		return strings.Compare(a.String(), b.String())
	}) {
		lines = append(lines, fmt.Sprintf("%s: %s", at, f.current.describe(f.current.slots[at])))
	}
	for _, o := range f.current.outside {
		lines = append(lines, fmt.Sprintf("outside, %s: %s", o.at, f.current.describe(o.slot)))
	}
	return strings.Join(lines, "\n")
}

func (s *state) describe(found *slot) string {
	text := "no record"
	if record, err := meta.DecodeRecord(found.record); err == nil {
		text = fmt.Sprintf("%s %s %s %d %v %+v %v", record.Name, record.Kind, record.Content, record.Size, record.Source, record.Parameters, record.Labels)
		if found.subvolume == nil || record.Content.IsDisk() && record.Source.IsZero() { // else an older state is no fault
			text += " " + string(record.State)
		}
	} else if found.record != nil {
		text = fmt.Sprintf("record %q", found.record)
	}
	if found.file {
		text += ", file"
	}
	if found.stub {
		text += ", stub"
	}
	if sub := found.subvolume; sub != nil {
		if sub.disk != (disk{}) {
			text += fmt.Sprintf(", disk of %d bytes with %s", sub.disk.size, sub.disk.content)
		}
		text += fmt.Sprintf(", subvolume %q readonly=%v limit=%d nested=%q %+v", sub.data, sub.ReadOnly, s.groups[sub.ID], sub.nested, sub.properties)
	}
	return text
}
