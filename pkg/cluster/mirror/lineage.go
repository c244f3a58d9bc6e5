package mirror

import (
	"context"
	"fmt"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/btrfs-csi/btrfs-csi/api/v1alpha1"
	"github.com/btrfs-csi/btrfs-csi/pkg/cluster/client"
	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
)

// bindingTime is how long a new PersistentVolume may take to be bound to the claim that it
// was made for.
const bindingTime = 30 * time.Second

// lineageOf returns the lineage annotations of an entry. A key with the value "" must not be
// on the object.
func lineageOf(e meta.Entry) map[string]string {
	return map[string]string{
		v1alpha1.AnnotationParent:         e.Source.ID,
		v1alpha1.AnnotationUUID:           e.UUID,
		v1alpha1.AnnotationParentUUID:     e.ParentUUID,
		v1alpha1.AnnotationReceivedUUID:   e.ReceivedUUID,
		v1alpha1.AnnotationSubvolumeID:    formatID(e.SubvolumeID),
		v1alpha1.AnnotationCreatedTransid: formatID(e.CreatedTransid),
	}
}

// formatID returns n in digits, "" for zero, which stands for none.
func formatID(n uint64) string {
	if n == 0 {
		return ""
	}
	return strconv.FormatUint(n, 10)
}

// lineageDiffers reports whether the lineage in two sets of annotations differs.
func lineageDiffers(was, is map[string]string) bool {
	for key := range lineageOf(meta.Entry{}) {
		if was[key] != is[key] {
			return true
		}
	}
	return false
}

// lineageWriter writes the lineage of volumes and snapshots to the objects of Kubernetes
// that stand for them.
type lineageWriter struct{ cluster *client.Cluster }

func (w lineageWriter) write(ctx context.Context, entry meta.Entry) error {
	if entry.Kind == meta.Committed {
		return w.writeContents(ctx, entry)
	}
	for _, v := range w.cluster.VolumesOf(entry.ID) {
		if isBeingBound(v) {
			continue // it is seen again when it is bound
		}
		patch := client.MetadataPatch(v.Annotations, lineageOf(entry), nil, nil)
		if patch == nil {
			continue
		}
		if _, err := w.cluster.API.PersistentVolumes().Patch(ctx, v.Name, types.MergePatchType, patch, metav1.PatchOptions{}); err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("annotate PersistentVolume %s: %w", v.Name, err)
		}
	}
	return nil
}

// isBeingBound reports whether the controller of Kubernetes is about to write a
// PersistentVolume. A change in between would make that fail, and be tried again later.
func isBeingBound(v *corev1.PersistentVolume) bool {
	return v.Spec.ClaimRef != nil && (v.Status.Phase == "" || v.Status.Phase == corev1.VolumePending || v.Status.Phase == corev1.VolumeAvailable) &&
		time.Since(v.CreationTimestamp.Time) < bindingTime
}

// writeContents also hands a snapshot's content to the snapshotter of this node: that of
// another node has it if the pool was moved, and none if the content was made by hand.
func (w lineageWriter) writeContents(ctx context.Context, entry meta.Entry) error {
	for _, content := range w.cluster.ContentsOf(entry.ID) {
		patch := client.MetadataPatch(content.Annotations, lineageOf(entry), content.Labels, map[string]string{client.LabelManagedBy: w.cluster.NodeName})
		if patch == nil {
			continue
		}
		_, err := w.cluster.API.Contents().Patch(ctx, content.Name, types.MergePatchType, patch, metav1.PatchOptions{})
		if err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("annotate VolumeSnapshotContent %s: %w", content.Name, err)
		}
	}
	return nil
}
