package simulate

import (
	"fmt"
	"slices"

	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
	"github.com/btrfs-csi/btrfs-csi/pkg/pool"
	"github.com/btrfs-csi/btrfs-csi/pkg/pool/pooltest"
)

// disk is a disk with a pool, wherever it is.
type disk struct {
	fs     *pooltest.Filesystem
	node   *node  // nil: on no node
	name   string // of the pool there
	mount  string // ID of the mount
	copied bool   // it is a copy of another one
	silent bool
}

// attach mounts a disk on a node. Its content is that of the last commit.
func (s *simulation) attach(d *disk, n *node) {
	s.plugging.Lock()
	defer s.plugging.Unlock()
	s.mounts++
	d.fs, d.node, d.name, d.mount = d.fs.Copy(), n, poolName, fmt.Sprintf("mount-%d", s.mounts)
	for _, other := range s.disks {
		if other != d && other.node == n && other.name == poolName {
			d.name = "extra"
		}
	}
	n.host.Add(d.name, d.fs)
}

// detach unmounts a disk; false while it is in use, also by a pod.
func (s *simulation) detach(d *disk) bool {
	if d.node == nil || d.silent || d.fs.Opened() > 0 || slices.ContainsFunc(s.podList(), func(p *pod) bool {
		return p.node == d.node.name && p.tried && poolOf(p.volume) == d.fs.ID
	}) {
		return false
	}
	s.plugging.Lock()
	defer s.plugging.Unlock()
	d.fs.PeriodicCommit()
	d.node.host.Detach(d.name)
	d.node, d.mount = nil, ""
	return true
}

// replug exchanges a disk by one with its durable content, as a power cut does.
func (s *simulation) replug(d *disk) {
	if d.silent {
		d.fs.Answer()
		s.setSilent(d, false)
	}
	s.plugging.Lock()
	defer s.plugging.Unlock()
	n, old := d.node, d.fs
	s.mounts++
	d.fs, d.mount = old.Copy(), fmt.Sprintf("mount-%d", s.mounts)
	n.host.Add(d.name, d.fs)
}

// mountID returns the ID of the mount of a pool.
func (n *node) mountID(name string) string {
	n.plugging.RLock()
	defer n.plugging.RUnlock()
	for _, d := range n.disks {
		if d.node == n && d.name == name {
			return d.mount
		}
	}
	return "none"
}

// mountOf returns the ID of the mount of a pool by its ID, "" where it is not here.
func (n *node) mountOf(poolID string) string {
	n.plugging.RLock()
	defer n.plugging.RUnlock()
	for _, d := range n.disks {
		if d.node == n && d.fs.ID == poolID {
			return d.mount
		}
	}
	return ""
}

// slotsOf returns where a volume or snapshot may be.
func slotsOf(id string) []pool.Slot {
	return []pool.Slot{pool.SlotOf(meta.Active, id), pool.SlotOf(meta.Committed, id), pool.SlotOf(meta.View, id)}
}

// names returns the names in an area of a disk.
func (d *disk) names(area pool.Area) (names []string) {
	slots, err := d.fs.List()
	must(err)
	for _, slot := range slots {
		if slot.Area == area {
			names = append(names, slot.Name)
		}
	}
	return names
}

// has reports whether a volume or snapshot is on a disk, and its content.
func (d *disk) has(id string) (content string, ok bool) {
	for _, slot := range slotsOf(id) {
		if content, err := d.fs.Read(slot); err == nil {
			return content, true
		}
	}
	return "", false
}

// writeContent has a pod write into its volume, if nobody has yet, and sync.
func (s *simulation) writeContent(n *node, handle string) {
	s.plugging.RLock()
	defer s.plugging.RUnlock()
	for _, d := range s.disks {
		if content, ok := d.has(handle); ok && d.node == n && content == "" && !d.silent {
			if d.fs.Write(pool.SlotOf(meta.Active, handle), handle) == nil {
				d.fs.PeriodicCommit()
				s.facts.wrote(handle)
			}
		}
	}
}
