package mirror

import (
	"context"
	"fmt"
	"maps"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"

	"github.com/btrfs-csi/btrfs-csi/api/v1alpha1"
	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
)

// bindingTime is how long a new PersistentVolume may take to be bound to the claim
// that it was made for.
const bindingTime = 30 * time.Second

// watchSubvolumes follows the objects of this node, to bring back what somebody
// changed or deleted.
func (m *Mirror) watchSubvolumes() {
	seen := func(s *v1alpha1.Subvolume) { m.queue.AddAfter(RefOf(s), settle) }
	m.cluster.Subvolumes.Handle(Handlers[*v1alpha1.Subvolume]{
		Add: seen, Update: func(_, s *v1alpha1.Subvolume) { seen(s) }, Delete: seen,
	})
}

// watchVolumes follows the PersistentVolumes, which carry the lineage too.
func (m *Mirror) watchVolumes() {
	m.cluster.PersistentVolumes.Handle(Handlers[*corev1.PersistentVolume]{Add: m.volumeSeen, Update: m.volumeChanged})
}

func (m *Mirror) volumeSeen(v *corev1.PersistentVolume) {
	if handle := m.cluster.VolumeHandle(v); handle != "" {
		m.queue.AddAfter(meta.Volume(handle), settle)
	}
}

func (m *Mirror) volumeChanged(was, is *corev1.PersistentVolume) {
	turned := was.Status.Phase != is.Status.Phase // somebody binds, or releases
	if turned && m.cluster.VolumeHandle(is) != "" {
		m.unrest.stir(time.Now())
	}
	if turned || lineageTouched(was.Annotations, is.Annotations) {
		m.volumeSeen(is)
	}
}

// syncSubvolume brings the objects of one volume or snapshot in line with what
// is on disk.
func (m *Mirror) syncSubvolume(ctx context.Context, ref meta.Ref) error {
	var have *v1alpha1.Subvolume
	if s, ok := m.cluster.Subvolumes.Get(SubvolumeName(ref)); ok {
		have = s
	}
	entry, state := m.node.Look(ctx, ref)
	switch state {
	case Gone:
		return m.dropSubvolume(ctx, have)
	case Away:
		return nil
	}
	if !m.owner.Owns(entry.PoolID) {
		return nil // the pool is first: all of it is looked at when it is claimed
	}
	if state == Lost {
		return m.publishLost(ctx, have, entry)
	}
	if err := m.publish(ctx, have, entry); err != nil {
		return err
	}
	return m.annotate(ctx, entry)
}

// publish writes an entry. The status comes before the spec:
// a size in the spec that is larger than that of the status is a wish.
func (m *Mirror) publish(ctx context.Context, have *v1alpha1.Subvolume, entry meta.Entry) error {
	if have == nil {
		made, err := m.publishSpec(ctx, nil, entry)
		if err != nil {
			return err
		}
		have = made
	}
	status := v1alpha1.SubvolumeStatus{
		State: string(Ready), Size: resource.NewQuantity(entry.Size, resource.BinarySI),
		Created: &metav1.Time{Time: entry.Created}, Expansion: have.Status.Expansion,
	}
	if used, ok := m.node.Used(ctx, entry.Ref()); ok {
		status.Used = resource.NewQuantity(coarse(used, used*8), resource.BinarySI)
	}
	have, err := m.tellStatus(ctx, have, status)
	if err != nil {
		return err
	}
	_, err = m.publishSpec(ctx, have, entry)
	return err
}

// publishLost writes that the data of an entry is not there. What was said of that stays.
func (m *Mirror) publishLost(ctx context.Context, have *v1alpha1.Subvolume, entry meta.Entry) (err error) {
	if have == nil {
		if have, err = m.publishSpec(ctx, nil, entry); err != nil {
			return err
		}
	}
	_, err = m.tellStatus(ctx, have, v1alpha1.SubvolumeStatus{
		State: string(Lost), Size: resource.NewQuantity(entry.Size, resource.BinarySI), Created: &metav1.Time{Time: entry.Created},
	})
	return err
}

// takeOver makes this node's what another one wrote of the pools that this node
// holds now and is not to be found in them: it was deleted before, or lost with the
// data. It comes back as an object of this node; what is found is taken over when it
// is written.
func (m *Mirror) takeOver(ctx context.Context) error {
	for _, report := range m.node.Pools(ctx) {
		if report.ID == "" || !m.owner.Owns(report.ID) {
			continue
		}
		others, err := m.cluster.API.Subvolumes().List(ctx, metav1.ListOptions{FieldSelector: fields.AndSelectors(
			fields.OneTermEqualSelector("spec.poolID", report.ID), fields.OneTermNotEqualSelector("spec.nodeName", m.cluster.NodeName),
		).String()})
		if err != nil {
			return err
		}
		for i := range others.Items {
			s := &others.Items[i]
			if _, state := m.node.Look(ctx, RefOf(s)); state != Gone && state != Lost {
				continue
			}
			m.own(s, report.Name)
			if _, err := m.cluster.API.Subvolumes().Update(ctx, s, metav1.UpdateOptions{}); err != nil {
				return err
			}
		}
	}
	return nil
}

// own makes an object that of this node. What another node wrote is no reason to
// delete anything: neither for how long nothing stands for it, nor that something did.
func (m *Mirror) own(s *v1alpha1.Subvolume, pool string) {
	if s.Spec.NodeName != m.cluster.NodeName {
		for _, key := range []string{v1alpha1.AnnotationOrphanedSince, v1alpha1.AnnotationCondemnedSince, v1alpha1.AnnotationObject} {
			delete(s.Annotations, key)
		}
	}
	s.Spec.NodeName, s.Spec.Pool = m.cluster.NodeName, pool
}

// dropSubvolume deletes the object of what is gone from a pool that is here.
// Where the pool itself is not, its objects are those of whoever has it.
func (m *Mirror) dropSubvolume(ctx context.Context, have *v1alpha1.Subvolume) error {
	if have == nil || !m.owner.Owns(have.Spec.PoolID) {
		return nil
	}
	err := m.cluster.API.Subvolumes().Delete(ctx, have.Name, metav1.DeleteOptions{
		Preconditions: &metav1.Preconditions{UID: &have.UID, ResourceVersion: &have.ResourceVersion},
	})
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

// publishSpec makes the object, or updates what it says apart from its status. One
// of another node is taken over: the pool was moved, and the claim to it is ours.
func (m *Mirror) publishSpec(ctx context.Context, have *v1alpha1.Subvolume, entry meta.Entry) (*v1alpha1.Subvolume, error) {
	want := &v1alpha1.Subvolume{ObjectMeta: metav1.ObjectMeta{Name: SubvolumeName(entry.Ref())}}
	if have != nil {
		want = have.DeepCopy()
	}
	m.describe(want, entry, m.objectOf(entry))
	if have == nil {
		made, err := m.cluster.API.Subvolumes().Create(ctx, want, metav1.CreateOptions{})
		if !apierrors.IsAlreadyExists(err) {
			return made, err
		}
		if have, err = m.cluster.API.Subvolumes().Get(ctx, want.Name, metav1.GetOptions{}); err != nil {
			return nil, err
		}
		if other := have.Spec; other.PoolID != entry.PoolID {
			return nil, fmt.Errorf("%s is in pool %s here, and in pool %s of node %q: one of them has to be removed by hand", entry.Ref(), entry.PoolID, other.PoolID, other.NodeName)
		}
		want = have.DeepCopy()
		m.describe(want, entry, m.objectOf(entry))
	}
	if equality.Semantic.DeepEqual(have.Spec, want.Spec) && maps.Equal(have.Annotations, want.Annotations) {
		return have, nil
	}
	return m.cluster.API.Subvolumes().Update(ctx, want, metav1.UpdateOptions{})
}

// describe writes an entry into an object. A size in the spec that is larger
// than that of the volume is somebody's wish, and stays.
func (m *Mirror) describe(s *v1alpha1.Subvolume, entry meta.Entry, object string) {
	m.own(s, entry.Pool)
	wish := s.Spec.Size
	if wish == nil || wish.Value() < entry.Size {
		wish = resource.NewQuantity(entry.Size, resource.BinarySI)
	}
	s.Spec.ID, s.Spec.Kind, s.Spec.PoolID, s.Spec.Size = entry.ID, Kinds[entry.Kind], entry.PoolID, wish
	if s.Annotations == nil {
		s.Annotations = map[string]string{}
	}
	set := lineage(entry)
	set[v1alpha1.AnnotationClaim] = claimOf(entry)
	if object != "" { // it is remembered when it is gone
		set[v1alpha1.AnnotationObject] = object
	}
	for key, value := range set {
		if value == "" {
			delete(s.Annotations, key)
		} else {
			s.Annotations[key] = value
		}
	}
}

// objectOf returns the name of the PersistentVolume or VolumeSnapshotContent that
// stands for an entry, "" for none.
func (m *Mirror) objectOf(entry meta.Entry) string {
	if entry.Kind == meta.Committed {
		for _, content := range m.cluster.ContentsOf(entry.ID) {
			return content.Name
		}
		return ""
	}
	for _, v := range m.cluster.VolumesOf(entry.ID) {
		return v.Name
	}
	return ""
}

// tellStatus writes the status where it says anything new.
func (m *Mirror) tellStatus(ctx context.Context, have *v1alpha1.Subvolume, want v1alpha1.SubvolumeStatus) (*v1alpha1.Subvolume, error) {
	if want.Created != nil { // an API server keeps whole seconds
		want.Created = &metav1.Time{Time: want.Created.Truncate(1e9)}
	}
	if equality.Semantic.DeepEqual(have.Status, want) {
		return have, nil
	}
	s := have.DeepCopy()
	s.Status = want
	return m.cluster.API.Subvolumes().UpdateStatus(ctx, s, metav1.UpdateOptions{})
}

// annotate writes the lineage to the objects of Kubernetes.
func (m *Mirror) annotate(ctx context.Context, entry meta.Entry) error {
	if entry.Kind == meta.Committed {
		return m.annotateContents(ctx, entry)
	}
	for _, v := range m.cluster.VolumesOf(entry.ID) {
		if beingBound(v) {
			continue // it comes again when it is bound
		}
		patch := metadataPatch(v.Annotations, lineage(entry), nil, nil)
		if patch == nil {
			continue
		}
		if _, err := m.cluster.API.PersistentVolumes().Patch(ctx, v.Name, types.MergePatchType, patch, metav1.PatchOptions{}); err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("annotate PersistentVolume %s: %w", v.Name, err)
		}
	}
	m.warnOfWrongClass(entry)
	return m.adopt(ctx, entry)
}

// beingBound reports whether the controller of Kubernetes is about to write a
// PersistentVolume. A change in between would have it fail, and try again later.
func beingBound(v *corev1.PersistentVolume) bool {
	return v.Spec.ClaimRef != nil && (v.Status.Phase == "" || v.Status.Phase == corev1.VolumePending || v.Status.Phase == corev1.VolumeAvailable) &&
		time.Since(v.CreationTimestamp.Time) < bindingTime
}
