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

// bindingTime is how long Kubernetes may take to bind a new PersistentVolume to its claim.
const bindingTime = 30 * time.Second

// lineageOf returns the lineage annotations of an entry. An object must not have the keys whose
// value is "".
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

// formatID formats an ID; "" for 0, which means none.
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

// lineageWriter writes lineage annotations to PersistentVolumes and VolumeSnapshotContents.
type lineageWriter struct{ cluster *client.Cluster }

func (w lineageWriter) write(ctx context.Context, entry meta.Entry) error {
	if entry.Kind == meta.Committed {
		return w.writeContents(ctx, entry)
	}
	for _, v := range w.cluster.VolumesOf(entry.ID) {
		if isBeingBound(v) {
			continue // an update follows when it is bound
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

// isBeingBound reports whether Kubernetes is about to bind a PersistentVolume. A change meanwhile
// would make the binding fail, and Kubernetes would retry it later.
func isBeingBound(v *corev1.PersistentVolume) bool {
	return v.Spec.ClaimRef != nil && (v.Status.Phase == "" || v.Status.Phase == corev1.VolumePending || v.Status.Phase == corev1.VolumeAvailable) &&
		time.Since(v.CreationTimestamp.Time) < bindingTime
}

// writeContents also assigns the contents to the csi-snapshotter of this node. After a move of the
// pool another node has them; a content that was made by hand has none.
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
