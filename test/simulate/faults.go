package simulate

import (
	"fmt"
	"slices"
	"testing/synctest"
	"time"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/btrfs-csi/btrfs-csi/pkg/cluster/client"
	"github.com/btrfs-csi/btrfs-csi/pkg/cluster/clustertest"
	"github.com/btrfs-csi/btrfs-csi/pkg/pool/pooltest"
)

// pick returns one of several.
func pick[T any](which int, of []T) (one T, ok bool) {
	if len(of) == 0 {
		return one, false
	}
	return of[which%len(of)], true
}

// which returns those for which something is so.
func which[T any](of []T, is func(T) bool) (those []T) {
	for _, one := range of {
		if is(one) {
			those = append(those, one)
		}
	}
	return those
}

// act does an action, and returns what it came to.
func (s *simulation) act(a action) string {
	for _, act := range []func(action) (string, bool){s.actOnClaims, s.actOnSnapshots, s.actOnNodes, s.actOnDisks, s.actOnObjects} {
		if done, is := act(a); is {
			return done
		}
	}
	panic("unknown action " + a.kind)
}

const nothing = "nothing to do it to"

func (s *simulation) actOnClaims(a action) (string, bool) {
	v := s.views.now()
	claim, ok := pick(a.which, which(v.claims.list, func(c *corev1.PersistentVolumeClaim) bool { return c.DeletionTimestamp == nil }))
	switch a.kind {
	case "create":
		return s.createClaim(nil), true
	case "copy":
		if ok {
			return s.createClaim(&corev1.TypedLocalObjectReference{Kind: client.KindClaim, Name: claim.Name}), true
		}
	case "restore":
		if snapshot, ok := pick(a.which, v.snapshots.list); ok {
			group := snapshotv1.GroupName
			return s.createClaim(&corev1.TypedLocalObjectReference{APIGroup: &group, Kind: client.KindSnapshot, Name: snapshot.Name}), true
		}
	case "delete":
		if ok {
			must(s.admin.remove(s.ctx, clustertest.Claims, claim.Name))
			for _, p := range s.podList() {
				if p.claim == claim.Name {
					s.deletePod(p)
				}
			}
			return claim.Name, true
		}
	case "delete pod":
		if p, ok := pick(a.which, s.podList()); ok {
			s.deletePod(p)
			return p.name, true
		}
	case "new pod":
		if ok {
			return s.createPod(claim.Name), true
		}
	case "expand":
		if claim, ok := pick(a.which, which(v.claims.list, func(c *corev1.PersistentVolumeClaim) bool {
			return c.DeletionTimestamp == nil && c.Spec.VolumeName != ""
		})); ok {
			claim = claim.DeepCopy()
			size := claim.Spec.Resources.Requests[corev1.ResourceStorage]
			size.Add(resource.MustParse("10Mi"))
			claim.Spec.Resources.Requests[corev1.ResourceStorage] = size
			must(s.admin.update(s.ctx, clustertest.Claims, claim))
			return claim.Name, true
		}
	default:
		return "", false
	}
	return nothing, true
}

// createClaim makes a claim with a pod.
func (s *simulation) createClaim(source *corev1.TypedLocalObjectReference) string {
	class := className
	s.made++
	c := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "db", Name: fmt.Sprintf("claim-%02d", s.made), Finalizers: []string{claimFinalizer}}}
	c.Spec = corev1.PersistentVolumeClaimSpec{StorageClassName: &class, DataSource: source}
	size := resource.MustParse("1Gi")
	size.Add(*resource.NewQuantity(int64(s.made)*200<<20, resource.BinarySI)) // more than any source, which may grow
	c.Spec.Resources.Requests = corev1.ResourceList{corev1.ResourceStorage: size}
	must(s.admin.create(s.ctx, clustertest.Claims, c))
	return c.Name + " for " + s.createPod(c.Name)
}

func (s *simulation) createPod(claim string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.made++
	p := &pod{name: fmt.Sprintf("pod-%02d", s.made), claim: claim}
	s.pods[p.name] = p
	return p.name
}

func (s *simulation) deletePod(p *pod) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p.deleted = true
}

func (s *simulation) actOnSnapshots(a action) (string, bool) {
	v := s.views.now()
	switch a.kind {
	case "snapshot":
		if claim, ok := pick(a.which, which(v.claims.list, func(c *corev1.PersistentVolumeClaim) bool { return c.DeletionTimestamp == nil })); ok {
			s.made++
			snapshot := &snapshotv1.VolumeSnapshot{ObjectMeta: metav1.ObjectMeta{Namespace: "db", Name: fmt.Sprintf("snap-%02d", s.made), Finalizers: []string{snapshotFinalizer}}}
			snapshot.Spec.Source.PersistentVolumeClaimName = &claim.Name
			must(s.admin.create(s.ctx, snapshotsDir, snapshot))
			return snapshot.Name + " of " + claim.Name, true
		}
	case "delete snapshot":
		if snapshot, ok := pick(a.which, which(v.snapshots.list, func(o *snapshotv1.VolumeSnapshot) bool { return o.DeletionTimestamp == nil })); ok {
			must(s.admin.remove(s.ctx, snapshotsDir, snapshot.Name))
			return snapshot.Name, true
		}
	default:
		return "", false
	}
	return nothing, true
}

func (s *simulation) actOnNodes(a action) (string, bool) {
	n := s.nodes[a.which%len(s.nodes)]
	switch a.kind {
	case "restart":
		if n.up() {
			n.stop()
			s.afterEnd(n)
		}
	case "kill":
		if n.up() {
			n.kill()
			n.start()
		}
	case "lose index":
		if n.up() {
			n.kill()
			n.forgetIndex()
			n.start()
		}
	case "power cut":
		if n.up() {
			s.powerCut(n)
		} else {
			s.boot(n)
		}
	case "partition":
		s.isolate(n, true)
	case "heal":
		s.isolate(n, false)
	case "drop watches":
		n.driver.Load().network.drop()
	case "restart sidecar":
		w := s.workers[a.which%len(s.workers)]
		w.start()
		return w.name, true
	case "two leaders":
		s.leaders[n.name] = true
	case "new leader":
		clear(s.leaders)
		s.leaders[n.name] = true
	case "wait":
		time.Sleep(time.Duration(a.which) * 10 * time.Second)
		return "", true
	default:
		return "", false
	}
	return n.name, true
}

// afterEnd starts a driver when it has ended, or is killed for taking too long.
func (s *simulation) afterEnd(n *node) {
	p := n.driver.Load()
	for range 20 {
		for _, t := range s.gate.pending() {
			if t.who == p.who {
				s.let(t)
			}
		}
		synctest.Wait()
		select {
		case <-p.ended:
			n.start()
			return
		default:
			time.Sleep(time.Second)
		}
	}
	n.kill()
	n.start()
}

// powerCut ends a machine. Its disks keep what was committed.
func (s *simulation) powerCut(n *node) {
	n.kill()
	n.down = time.Now()
	unmountAll(n.kubelet())
	for _, d := range s.disks {
		if d.node == n {
			s.replug(d)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.pods {
		if p.node == n.name {
			p.running, p.mounted = false, ""
		}
	}
}

// boot starts a machine again. The index was in use.
func (s *simulation) boot(n *node) {
	n.down = time.Time{}
	n.forgetIndex()
	n.start()
	for _, w := range s.workers {
		if nodeOf(w.name) == n.name {
			w.start()
		}
	}
}

func (s *simulation) isolate(n *node, isolated bool) {
	if n.isolate.Load() != isolated {
		n.isolate.Store(isolated)
		s.mu.Lock()
		s.isolated[n.name] = time.Now()
		s.mu.Unlock()
	}
}

func (s *simulation) actOnDisks(a action) (string, bool) {
	d := s.disks[a.which%len(s.disks)]
	n := s.nodes[(a.which/len(s.disks))%len(s.nodes)]
	done := nothing
	switch a.kind {
	case "move disk", "unplug":
		if from := d.node; from != nil && from.up() && s.detach(d) {
			done = fmt.Sprintf("%s from %s", d.fs.ID, from.name)
			if a.kind == "move disk" && s.hasRoom(n, d) {
				s.attach(d, n)
				done += " to " + n.name
			}
		}
	case "replug":
		if d.node == nil && s.hasRoom(n, d) {
			s.attach(d, n)
			done = d.fs.ID + " to " + n.name
		}
	case "silence":
		if d.node != nil && !d.silent {
			s.setSilent(d, true)
			done = d.fs.ID
			d.fs.Silence(pooltest.AllMethods)
		}
	case "answer":
		if d.silent {
			s.setSilent(d, false)
			done = d.fs.ID
			d.fs.Answer()
		}
	case "copy disk":
		if d.node != nil && d.node != n && !d.copied && len(s.disks) == len(s.nodes) && s.hasRoom(n, d) {
			other := &disk{fs: d.fs, copied: true}
			s.attach(other, n)
			s.plugging.Lock()
			s.disks = append(s.disks, other)
			s.plugging.Unlock()
			done = d.fs.ID + " to " + n.name
		}
	default:
		return "", false
	}
	return done, true
}

func (s *simulation) setSilent(d *disk, silent bool) {
	s.plugging.Lock()
	defer s.plugging.Unlock()
	d.silent = silent
}

// hasRoom reports whether a node runs, and has a slot for a disk; none for two with one ID,
// of which nobody can know which is the copy.
func (s *simulation) hasRoom(n *node, d *disk) bool {
	there := which(s.disks, func(other *disk) bool { return other.node == n })
	return n.up() && len(there) < 2 && !slices.ContainsFunc(there, func(other *disk) bool { return other.fs.ID == d.fs.ID })
}

func (s *simulation) actOnObjects(a action) (string, bool) {
	v := s.views.now()
	switch a.kind {
	case "second volume", "retain", "delete volume object":
		return s.actOnVolume(a, v), true
	case "delete subvolume":
		if o, ok := pick(a.which, v.subvolumes.list); ok {
			must(s.admin.remove(s.ctx, clustertest.Subvolumes, o.Name))
			return o.Name, true
		}
	case "delete pool":
		if o, ok := pick(a.which, v.pools.list); ok {
			must(s.admin.remove(s.ctx, clustertest.Pools, o.Name))
			return o.Name, true
		}
	default:
		return "", false
	}
	return nothing, true
}

func (s *simulation) actOnVolume(a action, v *view) string {
	pv, ok := pick(a.which, which(v.volumes.list, func(pv *corev1.PersistentVolume) bool {
		return a.kind != "delete volume object" || pv.Status.Phase == corev1.VolumeReleased && !isToDelete(pv) || pv.Spec.ClaimRef == nil
	}))
	if !ok {
		return nothing
	}
	switch a.kind {
	case "second volume": // as for who imports it into another namespace
		pv = pv.DeepCopy()
		s.made++
		pv.ObjectMeta = metav1.ObjectMeta{Name: fmt.Sprintf("second-%02d", s.made)}
		pv.Spec.ClaimRef, pv.Spec.PersistentVolumeReclaimPolicy = nil, corev1.PersistentVolumeReclaimRetain
		must(s.admin.create(s.ctx, clustertest.PersistentVolumes, pv))
	case "retain":
		pv = pv.DeepCopy()
		pv.Spec.PersistentVolumeReclaimPolicy = corev1.PersistentVolumeReclaimRetain
		must(s.admin.update(s.ctx, clustertest.PersistentVolumes, pv))
	default:
		must(s.admin.remove(s.ctx, clustertest.PersistentVolumes, pv.Name))
	}
	return pv.Name + " of " + pv.Spec.CSI.VolumeHandle
}

// heal ends all faults: machines run, disks are where they can be used, and answer.
func (s *simulation) heal() {
	s.note("HEAL")
	for _, n := range s.nodes {
		s.isolate(n, false)
		if !n.up() {
			s.boot(n)
		}
	}
	for _, d := range s.disks {
		if d.silent {
			s.setSilent(d, false)
			d.fs.Answer()
		}
		for _, n := range s.nodes {
			if d.node == nil && s.hasRoom(n, d) {
				s.attach(d, n)
			}
		}
	}
	leader := sorted(s.leaders)[0]
	clear(s.leaders)
	s.leaders[leader] = true
}
