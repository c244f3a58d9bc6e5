package mirror

import (
	"context"
	"fmt"
	"time"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"

	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
)

const (
	// unlabelled indexes the contents that no node's snapshotter looks after, by the
	// volume that they are to be made of.
	unlabelled = "unlabelled"
	// misled indexes the contents of other drivers by the volume that they are to be
	// made of, which may be of this one.
	misled = "misled"
)

// watchContents follows the VolumeSnapshotContents, which carry the lineage too.
func (m *Mirror) watchContents() {
	_ = m.cluster.Contents.AddIndexers(cache.Indexers{unlabelled: indexer(m.unlabelledOf), misled: indexer(m.misledOf)})
	seen := func(content *snapshotv1.VolumeSnapshotContent) {
		if handle := m.cluster.SnapshotHandle(content); handle != "" {
			m.queue.AddAfter(meta.Snapshot(handle), settle)
		}
		if volume := m.unlabelledOf(content) + m.misledOf(content); volume != "" { // one or the other
			m.queue.AddAfter(meta.Volume(volume), settle)
		}
	}
	m.cluster.Contents.Handle(Handlers[*snapshotv1.VolumeSnapshotContent]{Add: seen, Update: func(was, is *snapshotv1.VolumeSnapshotContent) {
		if m.cluster.SnapshotHandle(was) == "" || lineageTouched(was.Annotations, is.Annotations) || was.Labels[LabelManagedBy] != is.Labels[LabelManagedBy] {
			seen(is)
		}
	}})
	m.cluster.Snapshots.Handle(Handlers[*snapshotv1.VolumeSnapshot]{Update: func(was, is *snapshotv1.VolumeSnapshot) {
		if isReady(was) != isReady(is) {
			m.unrest.stir(time.Now())
		}
	}})
}

func isReady(snapshot *snapshotv1.VolumeSnapshot) bool {
	status := snapshot.Status
	return status != nil && status.ReadyToUse != nil && *status.ReadyToUse
}

// unlabelledOf returns the volume of which a snapshot is to be made by nobody in
// particular, "" for all others.
func (m *Mirror) unlabelledOf(content *snapshotv1.VolumeSnapshotContent) string {
	if content.Spec.Driver != m.cluster.Driver || content.Spec.Source.VolumeHandle == nil || content.Labels[LabelManagedBy] != "" {
		return ""
	}
	return *content.Spec.Source.VolumeHandle
}

// misledOf returns the volume of which another driver is to make a snapshot and has
// not, "" for all others.
func (m *Mirror) misledOf(content *snapshotv1.VolumeSnapshotContent) string {
	if content.Spec.Driver == m.cluster.Driver || content.Spec.Source.VolumeHandle == nil || content.Status != nil && content.Status.SnapshotHandle != nil {
		return ""
	}
	return *content.Spec.Source.VolumeHandle
}

// annotateContents writes the lineage to a snapshot's content, and hands it to the
// snapshotter of this node: that of another has it where the pool was moved, and
// none where the content was made by hand.
func (m *Mirror) annotateContents(ctx context.Context, entry meta.Entry) error {
	for _, content := range m.cluster.ContentsOf(entry.ID) {
		patch := metadataPatch(content.Annotations, lineage(entry), content.Labels, map[string]string{LabelManagedBy: m.cluster.NodeName})
		if patch == nil {
			continue
		}
		_, err := m.cluster.API.Contents().Patch(ctx, content.Name, types.MergePatchType, patch, metav1.PatchOptions{})
		if err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("annotate VolumeSnapshotContent %s: %w", content.Name, err)
		}
	}
	return nil
}

// adopt has the snapshotter of this node make the snapshots of a volume that
// nobody makes: the snapshot-controller finds no node for a volume whose pool has
// no label on a Node yet, and does not look again.
func (m *Mirror) adopt(ctx context.Context, entry meta.Entry) error {
	for _, content := range m.cluster.Contents.ByIndex(unlabelled, entry.ID) {
		patch := metadataPatch(nil, nil, content.Labels, map[string]string{LabelManagedBy: m.cluster.NodeName})
		_, err := m.cluster.API.Contents().Patch(ctx, content.Name, types.MergePatchType, patch, metav1.PatchOptions{})
		if err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("label VolumeSnapshotContent %s: %w", content.Name, err)
		}
	}
	return nil
}

// warnOfWrongClass records an Event on snapshots of a volume whose class is that of another driver: that
// one, if there is such a one, knows nothing of the volume, and nobody else says so.
func (m *Mirror) warnOfWrongClass(entry meta.Entry) {
	for _, content := range m.cluster.Contents.ByIndex(misled, entry.ID) {
		class := ""
		if content.Spec.VolumeSnapshotClassName != nil {
			class = *content.Spec.VolumeSnapshotClassName
		}
		m.cluster.Events.Eventf(&content.Spec.VolumeSnapshotRef, corev1.EventTypeWarning, "WrongSnapshotClass",
			"VolumeSnapshotClass %q is of the driver %q, the volume is of %q: delete this snapshot, and make it with a class of that driver",
			class, content.Spec.Driver, m.cluster.Driver)
	}
}
