package mirror

import (
	"context"
	"fmt"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"

	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
)

const (
	// unassigned indexes the contents that no node's snapshotter looks after, by the volume
	// that they are to be made of.
	unassigned = "unassigned"
	// wrongDriver indexes the contents of other drivers by the volume that they are to be
	// made of, which may be of this one.
	wrongDriver = "wrongDriver"
)

// adopter looks after the snapshots of this node's volumes that no snapshotter makes.
type adopter struct{ cluster *Cluster }

func newAdopter(cluster *Cluster) adopter {
	a := adopter{cluster}
	_ = cluster.Contents.AddIndexers(cache.Indexers{unassigned: Indexer(a.unassignedOf), wrongDriver: Indexer(a.wrongDriverOf)}) // fails only while it runs
	return a
}

// volumeOf returns the volume of which a snapshot is to be made that has no snapshotter, ""
// for all other snapshots.
func (a adopter) volumeOf(content *snapshotv1.VolumeSnapshotContent) string {
	return a.unassignedOf(content) + a.wrongDriverOf(content) // at most one of them
}

func (a adopter) unassignedOf(content *snapshotv1.VolumeSnapshotContent) string {
	if content.Spec.Driver != a.cluster.Driver || content.Spec.Source.VolumeHandle == nil || content.Labels[LabelManagedBy] != "" {
		return ""
	}
	return *content.Spec.Source.VolumeHandle
}

func (a adopter) wrongDriverOf(content *snapshotv1.VolumeSnapshotContent) string {
	if content.Spec.Driver == a.cluster.Driver || content.Spec.Source.VolumeHandle == nil || content.Status != nil && content.Status.SnapshotHandle != nil {
		return ""
	}
	return *content.Spec.Source.VolumeHandle
}

// adopt has the snapshotter of this node make the snapshots of a volume that no other one
// makes. The snapshot-controller finds no node for a volume whose pool has no label on a
// Node yet, and does not look again.
func (a adopter) adopt(ctx context.Context, volume meta.Entry) error {
	if volume.Kind == meta.Committed {
		return nil
	}
	a.warn(volume)
	for _, content := range a.cluster.Contents.ByIndex(unassigned, volume.ID) {
		patch := MetadataPatch(nil, nil, content.Labels, map[string]string{LabelManagedBy: a.cluster.NodeName})
		_, err := a.cluster.API.Contents().Patch(ctx, content.Name, types.MergePatchType, patch, metav1.PatchOptions{})
		if err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("label VolumeSnapshotContent %s: %w", content.Name, err)
		}
	}
	return nil
}

// warn records an Event on the snapshots of a volume whose class is of another driver. That
// one, if there is one, knows nothing of the volume, and nothing else says so.
func (a adopter) warn(volume meta.Entry) {
	for _, content := range a.cluster.Contents.ByIndex(wrongDriver, volume.ID) {
		class := ""
		if content.Spec.VolumeSnapshotClassName != nil {
			class = *content.Spec.VolumeSnapshotClassName
		}
		a.cluster.Events.Eventf(&content.Spec.VolumeSnapshotRef, corev1.EventTypeWarning, "WrongSnapshotClass",
			"VolumeSnapshotClass %q is of the driver %q, the volume is of %q: delete this snapshot, and make it with a class of that driver",
			class, content.Spec.Driver, a.cluster.Driver)
	}
}
