package simulate

import (
	"fmt"
	"slices"
	"strings"
	"time"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	corev1 "k8s.io/api/core/v1"

	"github.com/btrfs-csi/btrfs-csi/pkg/cluster/client"
	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
	"github.com/btrfs-csi/btrfs-csi/pkg/pool"
	"github.com/btrfs-csi/btrfs-csi/pkg/pool/pooltest"
)

// knows is within what a node that reaches the API server knows what is written there.
const knows = 3 * time.Minute

// check looks at what has to hold at each step.
func (s *simulation) check() error {
	s.watchKeepers()
	s.mu.Lock()
	broken := s.broken
	s.mu.Unlock()
	if broken != nil {
		return broken
	}
	handles, of := s.facts.all()
	for _, handle := range handles {
		x := of[handle]
		content, there := s.find(handle)
		switch {
		case x.made && !x.deleting && !there:
			return fmt.Errorf("%s is lost: it was acknowledged, and is on no disk", handle)
		case x.deleted && there && !s.hasCopies():
			return fmt.Errorf("%s is left over: its deletion was acknowledged, and it is on a disk", handle)
		case x.made && !x.deleting && x.content != "" && !s.hasCopies() && content != x.content:
			return fmt.Errorf("%s has the content %q, wanted %q", handle, content, x.content)
		}
	}
	return nil
}

// find returns whether a volume or snapshot is on a disk, and its content.
func (s *simulation) find(handle string) (content string, ok bool) {
	for _, d := range s.disks {
		if found, there := d.has(handle); there {
			return found, true
		}
	}
	return "", false
}

func (s *simulation) hasCopies() bool {
	return slices.ContainsFunc(s.disks, func(d *disk) bool { return d.copied })
}

// watchKeepers notes since when each PersistentVolume keeps its volume.
func (s *simulation) watchKeepers() {
	now := map[string]time.Time{}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, pv := range s.views.now().volumes.list {
		if isToDelete(pv) {
			continue
		}
		now[pv.Name] = time.Now()
		if since, known := s.kept[pv.Name]; known {
			now[pv.Name] = since
		}
	}
	s.kept = now
}

// beforeStep looks whether a step removes what somebody has.
func (p *process) beforeStep(step pooltest.Step) error {
	if step.Method != "Move" || step.Slot.Area != pool.AreaRemoving {
		return nil
	}
	_, id, _ := strings.Cut(step.Slot.Name, "-")
	if !isReferenced(p.views.now(), id) { // asked for by a sidecar, or an orphan
		p.facts.deletes(id)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, other := range p.pods {
		if other.running && other.node == p.name && other.volume.Spec.CSI.VolumeHandle == id && other.mounted == p.mountID(step.Pool) && p.broken == nil {
			p.broken = fmt.Errorf("%s removes %s, which %s has mounted", p.who, id, other.name)
		}
	}
	connected := !p.isolate.Load() && time.Since(p.isolated[p.name]) > knows
	for _, pv := range p.views.now().volumes.list {
		since, keeps := p.kept[pv.Name]
		if pv.Spec.CSI.VolumeHandle == id && keeps && time.Since(since) > knows && connected && p.broken == nil {
			p.broken = fmt.Errorf("%s removes %s, which PersistentVolume %s keeps (%s, %s)", p.who, id, pv.Name, pv.Status.Phase, pv.Spec.PersistentVolumeReclaimPolicy)
		}
	}
	return nil
}

// isReferenced reports whether something in the cluster stands for a volume or snapshot.
func isReferenced(v *view, handle string) bool {
	return slices.ContainsFunc(v.volumes.list, func(pv *corev1.PersistentVolume) bool { return pv.Spec.CSI.VolumeHandle == handle }) ||
		slices.ContainsFunc(v.contents.list, func(c *snapshotv1.VolumeSnapshotContent) bool {
			return c.Status != nil && c.Status.SnapshotHandle != nil && *c.Status.SnapshotHandle == handle
		})
}

// owners returns which node owns which pool.
func (s *simulation) owners() string {
	var owners []string
	for _, p := range s.views.now().pools.list {
		owners = append(owners, p.Name+"="+p.Spec.NodeName)
	}
	return strings.Join(owners, " ")
}

// differs returns where the cluster, the nodes and the disks do not agree; "" if they do.
func (s *simulation) differs() string {
	v := s.views.now()
	served, why := s.served(v)
	if why != "" {
		return why
	}
	for _, find := range []func(*view, map[string]*disk) string{s.differsInClaims, s.differsInVolumes, s.differsInSnapshots, s.differsInSubvolumes, s.differsInPods} {
		if why := find(v, served); why != "" {
			return why
		}
	}
	return ""
}

// served returns the disk that is served of each pool. One is, of those with its ID.
func (s *simulation) served(v *view) (served map[string]*disk, why string) {
	served = map[string]*disk{}
	labels := map[string][]string{}
	for _, n := range s.nodes {
		if p := n.driver.Load(); !p.serving.Load() {
			return nil, fmt.Sprintf("%s does not serve: %v", p.who, p.failed)
		}
		for name, id := range n.driver.Load().engine.PoolIDs() {
			if other := served[id]; other != nil {
				return nil, fmt.Sprintf("pool %s is served by %s and by %s", id, other.node.name, n.name)
			}
			for _, d := range s.disks {
				if d.node == n && d.name == name {
					served[id] = d
				}
			}
			labels[n.name] = append(labels[n.name], id)
		}
	}
	for _, d := range s.disks {
		if served[d.fs.ID] == nil {
			return nil, fmt.Sprintf("pool %s is served by no node", d.fs.ID)
		}
		o, ok := v.pools.get(d.fs.ID)
		if on := served[d.fs.ID].node.name; !ok || o.Spec.NodeName != on || o.Status.State != "Ready" {
			return nil, fmt.Sprintf("pool %s is served by %s, and its Pool says %+v", d.fs.ID, on, o)
		}
	}
	for _, n := range s.nodes {
		o, _ := v.nodes.get(n.name)
		for _, d := range s.disks {
			if has := hasLabel(v, n.name, d.fs.ID); has != slices.Contains(labels[n.name], d.fs.ID) {
				return nil, fmt.Sprintf("the labels of %s are %v, its pools %v", n.name, o.Labels, labels[n.name])
			}
		}
	}
	return served, ""
}

func (s *simulation) differsInClaims(v *view, _ map[string]*disk) string {
	for _, c := range v.claims.list {
		switch pv := volumeOf(v, c.Name); {
		case c.DeletionTimestamp != nil:
			return "claim " + c.Name + " is still being deleted"
		case pv == nil && c.Spec.VolumeName == "" && s.canBeMade(v, c):
			return fmt.Sprintf("claim %s has no volume (selected node %q)", c.Name, c.Annotations[client.AnnotationSelectedNode])
		case pv == nil:
		default:
			wanted, have := c.Spec.Resources.Requests[corev1.ResourceStorage], pv.Spec.Capacity[corev1.ResourceStorage]
			if wanted.Cmp(have) > 0 {
				return fmt.Sprintf("claim %s wants %s, and has %s", c.Name, wanted.String(), have.String())
			}
		}
	}
	return ""
}

// canBeMade reports whether a claim has a pod, and what it is made from. One whose volume was
// made without the answer being heard, and whose disk was then moved, waits for the disk to come
// back: see docs/limitations.md.
func (s *simulation) canBeMade(v *view, c *corev1.PersistentVolumeClaim) bool {
	if s.isElsewhere("pvc-"+string(c.UID), c.Annotations[client.AnnotationSelectedNode]) {
		return false
	}
	used := slices.ContainsFunc(s.podList(), func(p *pod) bool { return p.claim == c.Name && !p.deleted })
	if c.Spec.DataSource == nil {
		return used || c.Annotations[client.AnnotationSelectedNode] != ""
	}
	_, from := sourceIn(v, c)
	_, there := s.find(from)
	return used && there && !s.hasCopies()
}

// isElsewhere reports whether a volume or snapshot is on a disk of another node than the one
// whose sidecar looks after it.
func (s *simulation) isElsewhere(handle, node string) bool {
	return slices.ContainsFunc(s.disks, func(d *disk) bool {
		_, made := d.has(handle)
		return made && d.node.name != node
	})
}

func (s *simulation) differsInVolumes(v *view, served map[string]*disk) string {
	handles := map[string]bool{}
	for _, c := range v.claims.list {
		handles["pvc-"+string(c.UID)] = true // it may become its own
	}
	_, known := s.facts.all()
	for _, pv := range v.volumes.list {
		handle := pv.Spec.CSI.VolumeHandle
		handles[handle] = true
		if isToDelete(pv) && !s.isKept(v, pv) && !s.hasCopies() {
			return "PersistentVolume " + pv.Name + " is not deleted"
		}
		if d := served[poolOf(pv)]; d != nil && !s.hasCopies() {
			if _, ok := d.has(handle); !ok && !known[handle].deleting { // deleted, as one that was made just then could not stop
				return fmt.Sprintf("PersistentVolume %s has no volume", pv.Name)
			}
		}
	}
	return s.unaccounted(served, meta.Active, handles)
}

// isKept reports whether another PersistentVolume keeps the volume of one that is to go.
func (s *simulation) isKept(v *view, pv *corev1.PersistentVolume) bool {
	return slices.ContainsFunc(v.volumes.list, func(other *corev1.PersistentVolume) bool {
		return other.Name != pv.Name && other.Spec.CSI.VolumeHandle == pv.Spec.CSI.VolumeHandle && !isToDelete(other)
	})
}

// unaccounted returns a volume or snapshot on a disk for which nothing stands, and that its
// node does not report as an orphan.
func (s *simulation) unaccounted(served map[string]*disk, kind meta.Kind, handles map[string]bool) string {
	for _, id := range sorted(served) {
		d := served[id]
		orphaned := map[string]bool{}
		found, _ := d.node.driver.Load().manager.Orphans()
		for _, o := range found {
			orphaned[o.ID] = true
		}
		for _, name := range d.names(pool.Area(kind)) {
			if !handles[name] && !orphaned[name] {
				return fmt.Sprintf("%s is on the disk of %s, nothing stands for it, and nobody reports it", name, d.node.name)
			}
		}
		if left := d.names(pool.AreaRemoving); len(left) > 0 {
			return fmt.Sprintf("on the disk of %s %v is being removed", d.node.name, left)
		}
	}
	return ""
}

func (s *simulation) differsInSnapshots(v *view, served map[string]*disk) string {
	handles := map[string]bool{}
	for _, content := range v.contents.list {
		if content.DeletionTimestamp != nil && !s.hasCopies() && !s.isElsewhere("snapshot-"+string(content.Spec.VolumeSnapshotRef.UID), content.Labels[client.LabelManagedBy]) {
			return "VolumeSnapshotContent " + content.Name + " is still being deleted"
		}
		handles["snapshot-"+string(content.Spec.VolumeSnapshotRef.UID)] = true
	}
	for _, o := range v.snapshots.list {
		pv := volumeOf(v, *o.Spec.Source.PersistentVolumeClaimName)
		if s.hasCopies() {
			break
		}
		if o.DeletionTimestamp != nil || pv != nil && !isReady(o) {
			return fmt.Sprintf("VolumeSnapshot %s is not ready, or not gone: %+v", o.Name, o.Status)
		}
	}
	return s.unaccounted(served, meta.Committed, handles)
}

// differsInSubvolumes compares what is published with what is on the disks.
func (s *simulation) differsInSubvolumes(v *view, served map[string]*disk) string {
	published := map[string]bool{}
	for _, o := range v.subvolumes.list {
		published[o.Name] = true
		d := served[o.Spec.PoolID]
		if d == nil {
			return fmt.Sprintf("Subvolume %s is in pool %s, which there is not", o.Name, o.Spec.PoolID)
		}
		if _, ok := d.has(o.Spec.ID); !ok || o.Spec.NodeName != d.node.name || o.Status.State != "Ready" {
			return fmt.Sprintf("Subvolume %s of node %s is %s; it is on the disk of %s: %v", o.Name, o.Spec.NodeName, o.Status.State, d.node.name, ok)
		}
	}
	for _, id := range sorted(served) {
		for _, kind := range []meta.Kind{meta.Active, meta.Committed} {
			for _, name := range served[id].names(pool.Area(kind)) {
				ref := meta.Volume(name)
				if kind == meta.Committed {
					ref = meta.Snapshot(name)
				}
				if !published[client.SubvolumeName(ref)] {
					return fmt.Sprintf("%s on the disk of %s is not published", ref, served[id].node.name)
				}
			}
		}
	}
	return ""
}

func (s *simulation) differsInPods(v *view, served map[string]*disk) string {
	for _, p := range s.podList() {
		c, ok := v.claims.get(p.claim)
		switch {
		case p.deleted:
			return fmt.Sprintf("pod %s is still being deleted", p.name)
		case !ok || p.volume == nil || p.running:
		case s.hasCopies():
		case c.UID == p.volume.Spec.ClaimRef.UID:
			if d := served[poolOf(p.volume)]; d != nil && d.node.name == p.node {
				return fmt.Sprintf("pod %s does not run", p.name)
			}
		}
	}
	return ""
}
