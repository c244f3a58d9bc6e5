package simulate

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/btrfs-csi/btrfs-csi/pkg/cluster/client"
	"github.com/btrfs-csi/btrfs-csi/pkg/cluster/clustertest"
	"github.com/btrfs-csi/btrfs-csi/pkg/driver"
)

// className is the StorageClass of all claims.
const className = "btrfs"

var errWaits = errors.New("what it needs is not there yet")

// writer is the capability of all volumes.
var writer = &csi.VolumeCapability{
	AccessMode: &csi.VolumeCapability_AccessMode{Mode: csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER},
	AccessType: &csi.VolumeCapability_Mount{Mount: &csi.VolumeCapability_MountVolume{}},
}

// provisioner is csi-provisioner beside the driver of a node.
func (s *simulation) provisioner(n *node) *worker {
	claims := map[string]*corev1.PersistentVolumeClaim{} // by UID, of which provisioning was begun
	return s.newWorker("provisioner@"+n.name, func(w *worker, v *view) (tasks []task) {
		for _, c := range v.claims.list {
			if c.Spec.VolumeName == "" && c.DeletionTimestamp == nil && c.Annotations[client.AnnotationSelectedNode] == n.name {
				claims[string(c.UID)] = c
				tasks = append(tasks, task{"provision " + string(c.UID), func(ctx context.Context) error { return w.provision(ctx, n, v, c) }})
			}
		}
		for _, uid := range sorted(claims) { // its outcome has to be known, though the claim is gone
			c, key := claims[uid], "provision "+uid
			if w.mayHave(key) && !slices.ContainsFunc(tasks, func(t task) bool { return t.key == key }) {
				tasks = append(tasks, task{key, func(ctx context.Context) error { return w.provision(ctx, n, v, c) }})
			}
		}
		for _, pv := range v.volumes.list {
			if isToDelete(pv) && hasLabel(v, n.name, poolOf(pv)) {
				tasks = append(tasks, task{"delete " + pv.Name, func(ctx context.Context) error { return w.deleteVolume(ctx, n, pv.Name) }})
			}
		}
		return tasks
	})
}

func isToDelete(pv *corev1.PersistentVolume) bool {
	return pv.Status.Phase == corev1.VolumeReleased && pv.Spec.PersistentVolumeReclaimPolicy == corev1.PersistentVolumeReclaimDelete
}

// poolOf returns the ID of the pool of a PersistentVolume.
func poolOf(pv *corev1.PersistentVolume) string {
	if pv.Spec.NodeAffinity == nil {
		return ""
	}
	return strings.TrimPrefix(pv.Spec.NodeAffinity.Required.NodeSelectorTerms[0].MatchExpressions[0].Key, driver.TopologyPrefix)
}

func hasLabel(v *view, node, poolID string) bool {
	n, ok := v.nodes.get(node)
	return ok && n.Labels[driver.TopologyPrefix+poolID] != ""
}

func (w *worker) provision(ctx context.Context, n *node, v *view, c *corev1.PersistentVolumeClaim) error {
	key, name := "provision "+string(c.UID), "pvc-"+string(c.UID)
	if now, ok := w.views.now().claims.get(c.Name); ok && now.UID == c.UID && now.Spec.VolumeName != "" {
		w.knows(key)
		return nil
	}
	size := c.Spec.Resources.Requests[corev1.ResourceStorage]
	request := &csi.CreateVolumeRequest{
		Name: name, CapacityRange: &csi.CapacityRange{RequiredBytes: size.Value()}, VolumeCapabilities: []*csi.VolumeCapability{writer},
		Parameters: map[string]string{"csi.storage.k8s.io/pvc/name": c.Name, "csi.storage.k8s.io/pvc/namespace": c.Namespace, "csi.storage.k8s.io/pv/name": name},
	}
	if o, ok := v.nodes.get(n.name); ok {
		segments := map[string]string{}
		for key, value := range o.Labels {
			if strings.HasPrefix(key, driver.TopologyPrefix) {
				segments[key] = value
			}
		}
		request.AccessibilityRequirements = &csi.TopologyRequirement{Requisite: []*csi.Topology{{Segments: segments}}}
	}
	var from string
	if c.Spec.DataSource != nil {
		if request.VolumeContentSource, from = sourceIn(v, c); from == "" {
			return errWaits
		}
	}
	w.began(key)
	w.facts.creates(name, w.facts.content(from))
	response, err := csi.NewControllerClient(w.dial(n)).CreateVolume(ctx, request)
	switch status.Code(err) {
	case codes.OK:
		w.facts.created(name)
		w.knows(key)
		w.began(key) // until its PersistentVolume is there
		if err := w.conn.create(ctx, clustertest.PersistentVolumes, volumeFor(c, response.GetVolume())); err != nil && !errors.Is(err, errConflict) {
			return err
		}
		w.knows(key)
		return nil
	case codes.ResourceExhausted:
		w.knows(key)
		w.facts.refused(name)
		if now, ok := w.views.now().claims.get(c.Name); ok && now.UID == c.UID && now.Annotations[client.AnnotationSelectedNode] == n.name {
			now = now.DeepCopy()
			delete(now.Annotations, client.AnnotationSelectedNode)
			return errors.Join(err, w.conn.update(ctx, clustertest.Claims, now))
		}
	case codes.InvalidArgument, codes.NotFound, codes.FailedPrecondition, codes.AlreadyExists, codes.OutOfRange, codes.Internal:
		w.knows(key)
		w.facts.refused(name)
	}
	return err
}

// sourceIn returns what a claim is made from, and its handle; "" while there is none.
func sourceIn(v *view, c *corev1.PersistentVolumeClaim) (*csi.VolumeContentSource, string) {
	if c.Spec.DataSource.Kind == client.KindSnapshot {
		snapshot, ok := v.snapshots.get(c.Spec.DataSource.Name)
		if !ok || !isReady(snapshot) {
			return nil, ""
		}
		content, ok := v.contents.get(*snapshot.Status.BoundVolumeSnapshotContentName)
		if !ok || content.Status == nil || content.Status.SnapshotHandle == nil {
			return nil, ""
		}
		handle := *content.Status.SnapshotHandle
		return &csi.VolumeContentSource{Type: &csi.VolumeContentSource_Snapshot{Snapshot: &csi.VolumeContentSource_SnapshotSource{SnapshotId: handle}}}, handle
	}
	pv := volumeOf(v, c.Spec.DataSource.Name)
	if pv == nil {
		return nil, ""
	}
	handle := pv.Spec.CSI.VolumeHandle
	return &csi.VolumeContentSource{Type: &csi.VolumeContentSource_Volume{Volume: &csi.VolumeContentSource_VolumeSource{VolumeId: handle}}}, handle
}

// volumeOf returns the PersistentVolume of a claim, nil while it is not bound.
func volumeOf(v *view, claim string) *corev1.PersistentVolume {
	c, ok := v.claims.get(claim)
	if !ok || c.Spec.VolumeName == "" {
		return nil
	}
	pv, _ := v.volumes.get(c.Spec.VolumeName)
	return pv
}

func volumeFor(c *corev1.PersistentVolumeClaim, made *csi.Volume) *corev1.PersistentVolume {
	var keys []corev1.NodeSelectorRequirement
	for key, value := range made.GetAccessibleTopology()[0].GetSegments() {
		keys = append(keys, corev1.NodeSelectorRequirement{Key: key, Operator: corev1.NodeSelectorOpIn, Values: []string{value}})
	}
	return &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: "pvc-" + string(c.UID)},
		Spec: corev1.PersistentVolumeSpec{
			Capacity:                      corev1.ResourceList{corev1.ResourceStorage: *resource.NewQuantity(made.GetCapacityBytes(), resource.BinarySI)},
			ClaimRef:                      &corev1.ObjectReference{Namespace: c.Namespace, Name: c.Name, UID: c.UID},
			PersistentVolumeReclaimPolicy: corev1.PersistentVolumeReclaimDelete,
			StorageClassName:              className,
			NodeAffinity:                  &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{MatchExpressions: keys}}}},
			PersistentVolumeSource: corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{
				Driver: driver.Name, VolumeHandle: made.GetVolumeId(), VolumeAttributes: made.GetVolumeContext(),
			}},
		},
	}
}

// deleteVolume deletes the volume of a PersistentVolume, which is read once more before.
func (w *worker) deleteVolume(ctx context.Context, n *node, name string) error {
	pv, ok := w.views.now().volumes.get(name)
	if !ok || !isToDelete(pv) {
		return nil
	}
	handle := pv.Spec.CSI.VolumeHandle
	w.facts.deletes(handle)
	if _, err := csi.NewControllerClient(w.dial(n)).DeleteVolume(ctx, &csi.DeleteVolumeRequest{VolumeId: handle}); err != nil {
		return err
	}
	w.facts.deleted(handle)
	if err := w.conn.remove(ctx, clustertest.PersistentVolumes, name); !errors.Is(err, errNotFound) {
		return err
	}
	return nil
}

const contentFinalizer = "snapshot.storage.kubernetes.io/volumesnapshotcontent-bound-protection"

// snapshotter is csi-snapshotter beside the driver of a node.
func (s *simulation) snapshotter(n *node) *worker {
	return s.newWorker("snapshotter@"+n.name, func(w *worker, v *view) (tasks []task) {
		for _, content := range v.contents.list {
			switch {
			case content.Labels[client.LabelManagedBy] != n.name:
			case content.DeletionTimestamp != nil && slices.Contains(content.Finalizers, contentFinalizer):
				tasks = append(tasks, task{content.Name, func(ctx context.Context) error { return w.deleteSnapshot(ctx, n, content) }})
			case content.DeletionTimestamp == nil && (content.Status == nil || content.Status.SnapshotHandle == nil):
				tasks = append(tasks, task{content.Name, func(ctx context.Context) error { return w.createSnapshot(ctx, n, content) }})
			}
		}
		return tasks
	})
}

func (w *worker) createSnapshot(ctx context.Context, n *node, content *snapshotv1.VolumeSnapshotContent) error {
	name, volume := "snapshot-"+string(content.Spec.VolumeSnapshotRef.UID), *content.Spec.Source.VolumeHandle
	w.began(content.Name)
	w.facts.creates(name, w.facts.content(volume))
	response, err := csi.NewControllerClient(w.dial(n)).CreateSnapshot(ctx, &csi.CreateSnapshotRequest{Name: name, SourceVolumeId: volume})
	switch status.Code(err) {
	case codes.OK:
		w.facts.created(name)
	case codes.InvalidArgument, codes.NotFound, codes.FailedPrecondition, codes.AlreadyExists, codes.Internal:
		w.knows(content.Name)
		w.facts.refused(name)
		return err
	default:
		return err
	}
	now, ok := w.views.now().contents.get(content.Name)
	if !ok {
		return errWaits // to be deleted by its name
	}
	now = now.DeepCopy()
	created, size, ready, handle := time.Now().UnixNano(), response.GetSnapshot().GetSizeBytes(), true, response.GetSnapshot().GetSnapshotId()
	now.Status = &snapshotv1.VolumeSnapshotContentStatus{SnapshotHandle: &handle, CreationTime: &created, RestoreSize: &size, ReadyToUse: &ready}
	if err := w.conn.updateStatus(ctx, clustertest.Contents, now); err != nil {
		return err
	}
	w.knows(content.Name)
	return nil
}

func (w *worker) deleteSnapshot(ctx context.Context, n *node, content *snapshotv1.VolumeSnapshotContent) error {
	now, ok := w.views.now().contents.get(content.Name)
	if !ok {
		return nil
	}
	known := now.Status != nil && now.Status.SnapshotHandle != nil
	if now.Spec.DeletionPolicy == snapshotv1.VolumeSnapshotContentDelete && (known || w.mayHave(content.Name)) {
		handle := "snapshot-" + string(now.Spec.VolumeSnapshotRef.UID)
		w.facts.deletes(handle)
		if _, err := csi.NewControllerClient(w.dial(n)).DeleteSnapshot(ctx, &csi.DeleteSnapshotRequest{SnapshotId: handle}); err != nil {
			return err
		}
		w.facts.deleted(handle)
		w.knows(content.Name)
	}
	now = now.DeepCopy()
	now.Finalizers = slices.DeleteFunc(now.Finalizers, func(f string) bool { return f == contentFinalizer })
	return w.conn.update(ctx, clustertest.Contents, now)
}

// resizer is csi-resizer, which asks the driver of its own node if it is elected.
func (s *simulation) resizer(n *node) *worker {
	return s.newWorker("resizer@"+n.name, func(w *worker, v *view) (tasks []task) {
		if !s.leaders[n.name] {
			return nil
		}
		for _, c := range v.claims.list {
			pv := volumeOf(v, c.Name)
			if pv == nil || c.DeletionTimestamp != nil {
				continue
			}
			wanted, have := c.Spec.Resources.Requests[corev1.ResourceStorage], pv.Spec.Capacity[corev1.ResourceStorage]
			if wanted.Cmp(have) > 0 {
				tasks = append(tasks, task{pv.Name, func(ctx context.Context) error { return w.expand(ctx, n, pv, wanted) }})
			}
		}
		return tasks
	})
}

func (w *worker) expand(ctx context.Context, n *node, pv *corev1.PersistentVolume, wanted resource.Quantity) error {
	response, err := csi.NewControllerClient(w.dial(n)).ControllerExpandVolume(ctx, &csi.ControllerExpandVolumeRequest{
		VolumeId: pv.Spec.CSI.VolumeHandle, CapacityRange: &csi.CapacityRange{RequiredBytes: wanted.Value()}, VolumeCapability: writer,
	})
	if err != nil {
		return err
	}
	w.facts.grown(pv.Spec.CSI.VolumeHandle, response.GetCapacityBytes())
	now, ok := w.views.now().volumes.get(pv.Name)
	if !ok {
		return nil
	}
	now = now.DeepCopy()
	now.Spec.Capacity[corev1.ResourceStorage] = *resource.NewQuantity(response.GetCapacityBytes(), resource.BinarySI)
	return w.conn.update(ctx, clustertest.PersistentVolumes, now)
}
