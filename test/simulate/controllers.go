package simulate

import (
	"context"
	"errors"
	"slices"
	"strings"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/btrfs-csi/btrfs-csi/pkg/cluster/client"
	"github.com/btrfs-csi/btrfs-csi/pkg/cluster/clustertest"
	"github.com/btrfs-csi/btrfs-csi/pkg/driver"
)

const (
	claimFinalizer    = "kubernetes.io/pvc-protection"
	snapshotFinalizer = "snapshot.storage.kubernetes.io/volumesnapshot-bound-protection"
)

// binder is what Kubernetes does about claims and their volumes.
func (s *simulation) binder() *worker {
	return s.newWorker("binder", func(w *worker, v *view) (tasks []task) {
		add := func(key string, do func(ctx context.Context) error) { tasks = append(tasks, task{key, do}) }
		for _, pv := range v.volumes.list {
			ref := pv.Spec.ClaimRef
			if ref == nil {
				continue
			}
			c, ok := v.claims.get(ref.Name)
			switch own := ok && c.UID == ref.UID; {
			case own && c.Spec.VolumeName == "" && c.DeletionTimestamp == nil:
				add("bind "+c.Name, func(ctx context.Context) error {
					c := c.DeepCopy()
					c.Spec.VolumeName = pv.Name
					return w.conn.update(ctx, clustertest.Claims, c)
				})
			case own && c.Spec.VolumeName == pv.Name && pv.Status.Phase != corev1.VolumeBound:
				add("bound "+pv.Name, func(ctx context.Context) error { return w.setPhase(ctx, pv, corev1.VolumeBound) })
			case !own && pv.Status.Phase != corev1.VolumeReleased:
				add("release "+pv.Name, func(ctx context.Context) error {
					if now, ok := w.views.now().claims.get(ref.Name); ok && now.UID == ref.UID {
						return errWaits
					}
					return w.setPhase(ctx, pv, corev1.VolumeReleased)
				})
			}
		}
		for _, c := range v.claims.list {
			if c.DeletionTimestamp != nil && !s.isUsed(c.Name) {
				add("unprotect "+c.Name, func(ctx context.Context) error {
					c := c.DeepCopy()
					c.Finalizers = nil
					return w.conn.update(ctx, clustertest.Claims, c)
				})
			}
		}
		return tasks
	})
}

func (w *worker) setPhase(ctx context.Context, pv *corev1.PersistentVolume, phase corev1.PersistentVolumePhase) error {
	pv = pv.DeepCopy()
	pv.Status.Phase = phase
	return w.conn.updateStatus(ctx, clustertest.PersistentVolumes, pv)
}

// placer is the scheduler: it selects nodes for claims of pods, and for pods.
func (s *simulation) placer() *worker {
	return s.newWorker("scheduler", func(w *worker, v *view) (tasks []task) {
		for _, p := range s.podList() {
			c, ok := v.claims.get(p.claim)
			if !ok || p.node != "" || c.DeletionTimestamp != nil {
				continue
			}
			if pv := volumeOf(v, c.Name); pv != nil {
				s.placePod(v, p, pv)
				continue
			}
			nodes := placesIn(v, "")
			if c.Spec.VolumeName != "" || c.Annotations[client.AnnotationSelectedNode] != "" || len(nodes) == 0 {
				continue
			}
			chosen := nodes[s.rand.IntN(len(nodes))]
			tasks = append(tasks, task{"place " + c.Name, func(ctx context.Context) error {
				c := c.DeepCopy()
				metav1.SetMetaDataAnnotation(&c.ObjectMeta, client.AnnotationSelectedNode, chosen)
				return w.conn.update(ctx, clustertest.Claims, c)
			}})
		}
		return tasks
	})
}

// placesIn returns the ready nodes that have a pool: that one, or any with "".
func placesIn(v *view, poolID string) (names []string) {
	for _, n := range v.nodes.list {
		if !nodeIsReady(n) {
			continue
		}
		for key := range n.Labels {
			if id, ok := strings.CutPrefix(key, driver.TopologyPrefix); ok && (poolID == "" || id == poolID) && !slices.Contains(names, n.Name) {
				names = append(names, n.Name)
			}
		}
	}
	return names
}

func nodeIsReady(n *corev1.Node) bool {
	return slices.ContainsFunc(n.Status.Conditions, func(c corev1.NodeCondition) bool {
		return c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue
	})
}

// placePod chooses a node for a pod whose volume is there.
func (s *simulation) placePod(v *view, p *pod, pv *corev1.PersistentVolume) {
	if nodes := placesIn(v, poolOf(pv)); len(nodes) > 0 {
		s.mu.Lock()
		defer s.mu.Unlock()
		p.node, p.volume = nodes[s.rand.IntN(len(nodes))], pv
	}
}

// snapshotController is the snapshot-controller.
func (s *simulation) snapshotController() *worker {
	return s.newWorker("snapshot-controller", func(w *worker, v *view) (tasks []task) {
		for _, snapshot := range v.snapshots.list {
			name := "snapcontent-" + string(snapshot.UID)
			content, made := v.contents.get(name)
			do := func(do func(ctx context.Context) error) { tasks = append(tasks, task{snapshot.Name, do}) }
			switch {
			case snapshot.DeletionTimestamp != nil && made && content.DeletionTimestamp == nil:
				do(func(ctx context.Context) error { return w.conn.remove(ctx, clustertest.Contents, name) })
			case snapshot.DeletionTimestamp != nil && !made:
				do(func(ctx context.Context) error {
					if _, made := w.views.now().contents.get(name); made {
						return errWaits
					}
					snapshot := snapshot.DeepCopy()
					snapshot.Finalizers = nil
					return w.conn.update(ctx, snapshotsDir, snapshot)
				})
			case snapshot.DeletionTimestamp != nil:
			case !made:
				do(func(ctx context.Context) error { return w.createContent(ctx, v, snapshot) })
			case snapshot.Status == nil || snapshot.Status.BoundVolumeSnapshotContentName == nil:
				do(func(ctx context.Context) error { return w.setSnapshot(ctx, snapshot, name, false) })
			case !isReady(snapshot) && content.Status != nil && content.Status.SnapshotHandle != nil:
				do(func(ctx context.Context) error { return w.setSnapshot(ctx, snapshot, name, true) })
			}
		}
		return tasks
	})
}

func isReady(snapshot *snapshotv1.VolumeSnapshot) bool {
	return snapshot.Status != nil && snapshot.Status.ReadyToUse != nil && *snapshot.Status.ReadyToUse
}

func (w *worker) createContent(ctx context.Context, v *view, snapshot *snapshotv1.VolumeSnapshot) error {
	pv := volumeOf(v, *snapshot.Spec.Source.PersistentVolumeClaimName)
	if pv == nil {
		return errWaits
	}
	if now, ok := w.views.now().snapshots.get(snapshot.Name); !ok || now.DeletionTimestamp != nil {
		return nil
	}
	content := &snapshotv1.VolumeSnapshotContent{ObjectMeta: metav1.ObjectMeta{Name: "snapcontent-" + string(snapshot.UID), Finalizers: []string{contentFinalizer}}}
	if nodes := placesIn(v, poolOf(pv)); len(nodes) > 0 {
		content.Labels = map[string]string{client.LabelManagedBy: nodes[0]}
	}
	content.Spec = snapshotv1.VolumeSnapshotContentSpec{
		Driver: driver.Name, DeletionPolicy: snapshotv1.VolumeSnapshotContentDelete,
		VolumeSnapshotRef: corev1.ObjectReference{Namespace: snapshot.Namespace, Name: snapshot.Name, UID: snapshot.UID},
		Source:            snapshotv1.VolumeSnapshotContentSource{VolumeHandle: &pv.Spec.CSI.VolumeHandle},
	}
	if err := w.conn.create(ctx, clustertest.Contents, content); !errors.Is(err, errConflict) {
		return err
	}
	return nil
}

func (w *worker) setSnapshot(ctx context.Context, snapshot *snapshotv1.VolumeSnapshot, content string, ready bool) error {
	snapshot = snapshot.DeepCopy()
	snapshot.Status = &snapshotv1.VolumeSnapshotStatus{BoundVolumeSnapshotContentName: &content, ReadyToUse: &ready}
	return w.conn.updateStatus(ctx, snapshotsDir, snapshot)
}
