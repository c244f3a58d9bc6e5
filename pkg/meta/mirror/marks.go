package mirror

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/btrfs-csi/btrfs-csi/api/v1alpha1"
	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
)

// OrphanPolicy says what is done with orphans.
type OrphanPolicy string

const (
	// ReportOrphans reports orphans and keeps them.
	ReportOrphans OrphanPolicy = "report"
	// DeleteOrphans deletes what has been an orphan for the time of grace.
	DeleteOrphans OrphanPolicy = "delete"
)

// ParseOrphanPolicy returns the policy of a name.
func ParseOrphanPolicy(name string) (OrphanPolicy, error) {
	switch p := OrphanPolicy(name); p {
	case ReportOrphans, DeleteOrphans:
		return p, nil
	}
	return "", fmt.Errorf("%q: report or delete is wanted", name)
}

// marker keeps on the Subvolume of an orphan since when it is one, and since when it is
// marked for deletion: the time of grace goes on when the driver restarts.
type marker struct {
	cluster *Cluster
	policy  OrphanPolicy
	grace   time.Duration
}

// mark returns the orphan of an entry. It is marked, with an Event, when it is first seen
// and when it is first to be deleted. What never had an object in this cluster is not to
// be deleted: it may be all there is of another cluster.
func (m marker) mark(ctx context.Context, e meta.Entry) (Orphan, error) {
	orphan := Orphan{Ref: e.Ref(), Pool: e.Pool, PoolID: e.PoolID}
	s, ok := m.cluster.Subvolumes.Get(SubvolumeName(e.Ref()))
	if !ok {
		return orphan, errors.New("not mirrored yet")
	}
	marks, now := map[string]*string{}, time.Now().UTC()
	text := now.Format(time.RFC3339)
	since := func(key string, wanted bool) time.Time {
		at, err := time.Parse(time.RFC3339, s.Annotations[key])
		switch {
		case !wanted && s.Annotations[key] != "":
			marks[key] = nil
		case wanted && err != nil:
			marks[key] = &text
			return now
		}
		return at
	}
	orphan.Since = since(v1alpha1.AnnotationOrphanedSince, true)
	toDelete := m.policy == DeleteOrphans && s.Annotations[v1alpha1.AnnotationObject] != ""
	if at := since(v1alpha1.AnnotationCondemnedSince, toDelete); toDelete {
		orphan.marked = at
	}
	if len(marks) == 0 {
		return orphan, nil
	}
	fate := "it is kept until somebody deletes it"
	if toDelete {
		fate = fmt.Sprintf("it is deleted after %v", m.grace)
	}
	m.cluster.Events.Eventf(s, corev1.EventTypeWarning, "Orphaned", "No PersistentVolume or VolumeSnapshotContent stands for %s in pool %q of node %q; %s",
		e.Ref(), e.Pool, m.cluster.NodeName, fate)
	return orphan, m.patch(ctx, s.Name, marks)
}

// unmark takes the marks from an entry for which something stands again. If that fails it
// is done at the next look.
func (m marker) unmark(ctx context.Context, e meta.Entry) {
	s, ok := m.cluster.Subvolumes.Get(SubvolumeName(e.Ref()))
	if ok && s.Annotations[v1alpha1.AnnotationOrphanedSince] != "" {
		_ = m.patch(ctx, s.Name, map[string]*string{v1alpha1.AnnotationOrphanedSince: nil, v1alpha1.AnnotationCondemnedSince: nil})
	}
}

func (m marker) patch(ctx context.Context, name string, marks map[string]*string) error {
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"annotations": marks}})
	if err != nil {
		return err
	}
	_, err = m.cluster.API.Subvolumes().Patch(ctx, name, types.MergePatchType, patch, metav1.PatchOptions{})
	return err
}
