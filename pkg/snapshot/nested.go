package snapshot

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"sync"

	"k8s.io/klog/v2"

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs"
	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
)

// nested is how many subvolumes pods have made in which volumes, as of the last look.
type nested struct {
	mu     sync.Mutex     // protects counts
	counts map[string]int // by volume ID
}

func (n *nested) volumes() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.counts)
}

// replace returns the volumes whose count has changed.
func (n *nested) replace(counts map[string]int) (changed []string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for volume, count := range counts {
		if n.counts[volume] != count {
			changed = append(changed, volume)
		}
	}
	for volume := range n.counts {
		if counts[volume] == 0 {
			changed = append(changed, volume)
		}
	}
	n.counts = counts
	return changed
}

// Nested returns the paths of the subvolumes in a volume, one level deep.
func (e *Engine) Nested(_ context.Context, volume string) ([]string, error) {
	l, err := e.find(meta.Volume(volume))
	if err != nil {
		return nil, err
	}
	paths, err := l.pool.Nested(l.slot)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", l.record.Ref(), l.explain(err))
	}
	return paths, nil
}

// hostOf follows a nested subvolume outwards to the one that is not nested.
func hostOf(parents map[uint64]uint64, id uint64) uint64 {
	for range len(parents) { // they may change while they are read: no circle holds it up
		parent, is := parents[id]
		if !is {
			break
		}
		id = parent
	}
	return id
}

// boundNested counts what pods have nested in volumes, and under full quota limits it
// to what the volume has left. The kernel does not: each subvolume is counted by
// itself, and one that a pod makes has no limit. A group for all of a volume would
// hold them together, but a snapshot that a pod takes inside would then make all
// accounting inconsistent. So each gets as its limit what neither the volume nor its
// other nested ones hold of the size, which is corrected the next time.
func (e *Engine) boundNested(ctx context.Context, p *pool) error {
	parents, err := p.Nesting()
	if err != nil {
		return err
	}
	hosts := map[uint64][]uint64{}
	for id := range parents {
		host := hostOf(parents, id)
		hosts[host] = append(hosts[host], id)
	}
	var volumes []meta.Entry
	if len(hosts) > 0 {
		volumes, err = e.volumesOf(p, func(v meta.Entry) bool { return len(hosts[v.SubvolumeID]) > 0 })
	}
	if err != nil {
		return err
	}
	status, err := p.QuotaStatus()
	if err != nil {
		return err
	}
	counts := map[string]int{}
	for _, v := range volumes {
		counts[v.ID] = len(hosts[v.SubvolumeID])
		if status.Mode != btrfs.QuotaFull {
			continue // simple quota counts them with their volume
		}
		if failed := p.boundIn(v, hosts[v.SubvolumeID]); failed != nil && !errors.Is(failed, fs.ErrNotExist) { // gone: the next time
			err = errors.Join(err, fmt.Errorf("%s: %w", v.Ref(), failed))
		}
	}
	for _, volume := range p.nested.replace(counts) {
		klog.FromContext(ctx).Info("Pods have made or removed subvolumes in a volume", "pool", p.name, "volumeID", volume, "subvolumes", counts[volume])
	}
	return err
}

// volumesOf returns those read-write volumes of a pool of which something is true.
func (e *Engine) volumesOf(p *pool, is func(meta.Entry) bool) (found []meta.Entry, err error) {
	err = e.Walk(context.Background(), meta.Volumes, "", func(entry meta.Entry) bool {
		if entry.PoolID == p.PoolID() && entry.Kind == meta.Active && is(entry) {
			found = append(found, entry)
		}
		return true
	})
	return found, err
}

// boundIn sets the limits of what is nested in one volume.
func (p *pool) boundIn(volume meta.Entry, subvolumes []uint64) error {
	all, err := p.Usage(volume.SubvolumeID)
	if err != nil {
		return err
	}
	used, usages := all.Used, map[uint64]Usage{}
	for _, id := range subvolumes {
		usage, err := p.Usage(id)
		if err != nil {
			return err
		}
		usages[id] = usage
		used += usage.Used
	}
	for id, usage := range usages {
		limit := max(1, volume.Size-(used-usage.Used)) // 0 reads as none
		if usage.Limit == limit {
			continue
		}
		if err := p.SetLimit(id, limit); err != nil {
			return err
		}
	}
	return nil
}
