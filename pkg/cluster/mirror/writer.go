package mirror

import (
	"context"
	"fmt"
	"maps"

	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/btrfs-csi/btrfs-csi/api/v1alpha1"
	"github.com/btrfs-csi/btrfs-csi/pkg/cluster/client"
	"github.com/btrfs-csi/btrfs-csi/pkg/cluster/node"
	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
)

// writer writes Subvolumes if they differ from what they should be.
type writer struct {
	cluster *client.Cluster
	used    func(ctx context.Context, ref meta.Ref) (bytes int64, ok bool)
}

// write publishes an entry. It writes the status before the spec, because a size in the spec that
// is larger than that in the status is a request to expand.
func (w writer) write(ctx context.Context, have *v1alpha1.Subvolume, entry meta.Entry) (err error) {
	if have == nil {
		if have, err = w.writeSpec(ctx, nil, entry); err != nil {
			return err
		}
	}
	status := v1alpha1.SubvolumeStatus{
		State: string(node.Ready), Size: resource.NewQuantity(entry.Size, resource.BinarySI),
		Created: &metav1.Time{Time: entry.Created}, Expansion: have.Status.Expansion,
	}
	if used, ok := w.used(ctx, entry.Ref()); ok {
		status.Used = resource.NewQuantity(coarse(used, used*8), resource.BinarySI)
	}
	if have, err = w.writeStatus(ctx, have, status); err != nil {
		return err
	}
	_, err = w.writeSpec(ctx, have, entry)
	return err
}

// writeLost publishes that the data of an entry is lost. The spec stays as it is.
func (w writer) writeLost(ctx context.Context, have *v1alpha1.Subvolume, entry meta.Entry) (err error) {
	if have == nil {
		if have, err = w.writeSpec(ctx, nil, entry); err != nil {
			return err
		}
	}
	_, err = w.writeStatus(ctx, have, v1alpha1.SubvolumeStatus{
		State: string(node.Lost), Size: resource.NewQuantity(entry.Size, resource.BinarySI), Created: &metav1.Time{Time: entry.Created},
	})
	return err
}

// remove deletes the Subvolume of a volume or snapshot that is gone.
func (w writer) remove(ctx context.Context, have *v1alpha1.Subvolume) error {
	err := w.cluster.API.Subvolumes().Delete(ctx, have.Name, metav1.DeleteOptions{
		Preconditions: &metav1.Preconditions{UID: &have.UID, ResourceVersion: &have.ResourceVersion},
	})
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

// takeOver makes this node the owner of a Subvolume.
func (w writer) takeOver(ctx context.Context, s *v1alpha1.Subvolume, pool string) error {
	w.own(s, pool)
	_, err := w.cluster.API.Subvolumes().Update(ctx, s, metav1.UpdateOptions{})
	return err
}

// writeSpec creates the Subvolume, or updates its spec and annotations. It takes over that of another
// node: the pool was moved, and this node owns it now.
func (w writer) writeSpec(ctx context.Context, have *v1alpha1.Subvolume, entry meta.Entry) (*v1alpha1.Subvolume, error) {
	want := &v1alpha1.Subvolume{ObjectMeta: metav1.ObjectMeta{Name: client.SubvolumeName(entry.Ref())}}
	if have != nil {
		want = have.DeepCopy()
	}
	w.describe(want, entry)
	if have == nil {
		made, err := w.cluster.API.Subvolumes().Create(ctx, want, metav1.CreateOptions{})
		if !apierrors.IsAlreadyExists(err) {
			return made, err
		}
		if have, err = w.cluster.API.Subvolumes().Get(ctx, want.Name, metav1.GetOptions{}); err != nil {
			return nil, err
		}
		if other := have.Spec; other.PoolID != entry.PoolID {
			return nil, fmt.Errorf("%s is in pool %s here, and in pool %s of node %q: one of them has to be removed by hand", entry.Ref(), entry.PoolID, other.PoolID, other.NodeName)
		}
		want = have.DeepCopy()
		w.describe(want, entry)
	}
	if equality.Semantic.DeepEqual(have.Spec, want.Spec) && maps.Equal(have.Annotations, want.Annotations) {
		return have, nil
	}
	return w.cluster.API.Subvolumes().Update(ctx, want, metav1.UpdateOptions{})
}

func (w writer) writeStatus(ctx context.Context, have *v1alpha1.Subvolume, want v1alpha1.SubvolumeStatus) (*v1alpha1.Subvolume, error) {
	if want.Created != nil { // the API server stores whole seconds
		want.Created = &metav1.Time{Time: want.Created.Truncate(1e9)}
	}
	if equality.Semantic.DeepEqual(have.Status, want) {
		return have, nil
	}
	s := have.DeepCopy()
	s.Status = want
	return w.cluster.API.Subvolumes().UpdateStatus(ctx, s, metav1.UpdateOptions{})
}

// describe sets the spec and annotations of an entry. A larger size in the spec stays, because it
// is a request to expand.
func (w writer) describe(s *v1alpha1.Subvolume, entry meta.Entry) {
	w.own(s, entry.Pool)
	size := s.Spec.Size
	if size == nil || size.Value() < entry.Size {
		size = resource.NewQuantity(entry.Size, resource.BinarySI)
	}
	s.Spec.ID, s.Spec.Kind, s.Spec.PoolID, s.Spec.Size = entry.ID, entry.Kind.String(), entry.PoolID, size
	if s.Annotations == nil {
		s.Annotations = map[string]string{}
	}
	set := lineageOf(entry)
	set[v1alpha1.AnnotationRequestedBy] = entry.RequestedBy()
	if object := w.objectOf(entry); object != "" { // the name stays after the object is gone
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

// own makes this node the owner of a Subvolume. It removes the annotations by which orphans are
// deleted: what another node wrote must not cause a deletion here.
func (w writer) own(s *v1alpha1.Subvolume, pool string) {
	if s.Spec.NodeName != w.cluster.NodeName {
		for _, key := range []string{v1alpha1.AnnotationOrphanedSince, v1alpha1.AnnotationMarkedForDeletionSince, v1alpha1.AnnotationObject} {
			delete(s.Annotations, key)
		}
	}
	s.Spec.NodeName, s.Spec.Pool = w.cluster.NodeName, pool
}

// objectOf returns the name of the PersistentVolume or VolumeSnapshotContent of an entry, "" for
// none.
func (w writer) objectOf(entry meta.Entry) string {
	if entry.Kind == meta.Committed {
		for _, content := range w.cluster.ContentsOf(entry.ID) {
			return content.Name
		}
		return ""
	}
	for _, v := range w.cluster.VolumesOf(entry.ID) {
		return v.Name
	}
	return ""
}
