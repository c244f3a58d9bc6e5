package prune

import (
	"context"
	"fmt"
	"slices"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/btrfs-csi/btrfs-csi/api/v1alpha1"
	"github.com/btrfs-csi/btrfs-csi/pkg/cluster/client"
	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
)

// Object is an object that no driver handles any more: that of a node that was removed from the
// cluster, or of a pool whose disk is lost.
type Object struct {
	Kind        string `json:"kind"`
	Name        string `json:"name"`
	Node        string `json:"node"`                  // the last owner of its pool; empty for none
	RequestedBy string `json:"requestedBy,omitempty"` // namespace and name of the PersistentVolumeClaim or VolumeSnapshot
	// Kept says why Remove refuses to delete it; empty if it may be deleted.
	Kept string `json:"kept,omitempty"`
	// Message is the message in the status of a Pool.
	Message string `json:"message,omitempty"`

	poolID string
	still  func(context.Context) error // fails if a node has the pool again
	remove func(context.Context) error
}

// Remove deletes the object with its finalizers, which the sidecars of its node would remove. Data
// on the disk stays.
func (o Object) Remove(ctx context.Context) error {
	if o.Kept != "" {
		return fmt.Errorf("%s %s: %s", o.Kind, o.Name, o.Kept)
	}
	if err := o.still(ctx); err != nil {
		return fmt.Errorf("%s %s: %w", o.Kind, o.Name, err)
	}
	if err := o.remove(ctx); err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("%s %s: %w", o.Kind, o.Name, err)
	}
	return nil
}

// Filter selects the objects of a node or of a pool. The zero value selects those of all removed
// nodes.
type Filter struct {
	Node string // the name of a removed node
	Pool string // the ID of a pool that no node has. It has to be named, since its disk may come back
}

// Find returns the objects in the order in which to delete them. The Pools, by which the others are
// found, come last.
func Find(ctx context.Context, api *client.Clients, id client.Identity, filter Filter) ([]Object, error) {
	s := search{api: api, id: id, filter: filter, pools: map[string]string{}, snapshots: map[string]string{}, sources: map[string]string{}}
	for _, step := range []func(context.Context) error{s.findPools, s.findSubvolumes, s.findVolumes, s.findContents} {
		if err := step(ctx); err != nil {
			return nil, err
		}
	}
	s.keepPools()
	return slices.Concat(s.volumes, s.contents, s.subvolumes, s.ofPools), nil
}

// keepPools keeps the Pools, and their Subvolumes, of objects that are kept. The next search needs
// them.
func (s *search) keepPools() {
	kept := map[string]bool{}
	for _, l := range slices.Concat(s.volumes, s.contents) {
		kept[l.poolID] = kept[l.poolID] || l.Kept != ""
	}
	for _, found := range [][]Object{s.subvolumes, s.ofPools} {
		for i := range found {
			if kept[found[i].poolID] {
				found[i].Kept = "another object of its pool is kept"
			}
		}
	}
}

// search is the state of one Find.
type search struct {
	api    *client.Clients
	id     client.Identity
	filter Filter

	gone  map[string]bool   // by the name of a node
	pools map[string]string // the node that owned it, by pool ID
	// Pool IDs by the handle of a snapshot or volume. A snapshot that was not published yet is found
	// by the volume that is its source.
	snapshots, sources map[string]string

	volumes, contents, subvolumes, ofPools []Object
}

// selects reports whether the filter selects a pool. It fails if the filter names a pool that a node
// of the cluster owns.
func (s *search) selects(ctx context.Context, pool *v1alpha1.Pool) (bool, error) {
	node := pool.Spec.NodeName
	switch {
	case s.filter.Pool != "" && pool.Name != s.filter.Pool, s.filter.Node != "" && node != s.filter.Node:
		return false, nil
	case node == "":
		return s.filter.Pool != "", nil
	}
	gone, err := s.isGone(ctx, node)
	if err == nil && !gone && s.filter.Pool != "" {
		err = fmt.Errorf("pool %s is on node %q, which is in the cluster: unmount it there first, if nothing of it is wanted", pool.Name, node)
	}
	return gone, err
}

// isGone reports whether a Node does not exist.
func (s *search) isGone(ctx context.Context, name string) (bool, error) {
	if gone, known := s.gone[name]; known {
		return gone, nil
	}
	exists, err := s.api.NodeExists(ctx, name)
	if err != nil {
		return false, err
	}
	if s.gone == nil {
		s.gone = map[string]bool{}
	}
	s.gone[name] = !exists
	return !exists, nil
}

// stillGone returns a function that fails if a node has taken over the pool since the search.
func (s *search) stillGone(poolID string) func(context.Context) error {
	node := s.pools[poolID]
	return func(ctx context.Context) error {
		pool, err := s.api.Pools().Get(ctx, poolID, metav1.GetOptions{})
		switch {
		case apierrors.IsNotFound(err):
			return nil // it may be deleted before its volumes
		case err != nil:
			return err
		case pool.Spec.NodeName != node:
			return fmt.Errorf("its pool is on node %q now", pool.Spec.NodeName)
		}
		return nil
	}
}

func (s *search) findPools(ctx context.Context) error {
	list, err := s.api.Pools().List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	for i := range list.Items {
		pool := &list.Items[i]
		selected, err := s.selects(ctx, pool)
		if err != nil {
			return err
		}
		if !selected {
			continue
		}
		s.pools[pool.Name] = pool.Spec.NodeName
		s.ofPools = append(s.ofPools, Object{Kind: "Pool", Name: pool.Name, Node: pool.Spec.NodeName, Message: pool.Status.Message, poolID: pool.Name, still: s.stillGone(pool.Name), remove: func(ctx context.Context) error {
			return s.api.Pools().Delete(ctx, pool.Name, metav1.DeleteOptions{})
		}})
	}
	if s.filter.Pool != "" && len(s.ofPools) == 0 {
		return fmt.Errorf("the cluster knows no pool %s: kubectl get pools.%s lists them", s.filter.Pool, v1alpha1.GroupVersion.Group)
	}
	return nil
}

func (s *search) findSubvolumes(ctx context.Context) error {
	list, err := s.api.Subvolumes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	for _, subvolume := range list.Items {
		node, ok := s.pools[subvolume.Spec.PoolID]
		if !ok {
			continue
		}
		if subvolume.Spec.Kind == meta.Committed.String() {
			s.snapshots[subvolume.Spec.ID] = subvolume.Spec.PoolID
		} else {
			s.sources[subvolume.Spec.ID] = subvolume.Spec.PoolID
		}
		s.subvolumes = append(s.subvolumes, Object{
			Kind: "Subvolume", Name: subvolume.Name, Node: node, RequestedBy: subvolume.Annotations[v1alpha1.AnnotationRequestedBy],
			poolID: subvolume.Spec.PoolID, still: s.stillGone(subvolume.Spec.PoolID),
			remove: func(ctx context.Context) error {
				return s.api.Subvolumes().Delete(ctx, subvolume.Name, metav1.DeleteOptions{})
			},
		})
	}
	return nil
}

func (s *search) findVolumes(ctx context.Context) error {
	list, err := s.api.PersistentVolumes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	for i := range list.Items {
		v := &list.Items[i]
		poolID := s.id.PoolID(v)
		node, ok := s.pools[poolID]
		if !ok {
			continue
		}
		s.sources[v.Spec.CSI.VolumeHandle] = poolID
		l := Object{Kind: "PersistentVolume", Name: v.Name, Node: node, poolID: poolID, still: s.stillGone(poolID), remove: func(ctx context.Context) error {
			if err := s.api.PersistentVolumes().Delete(ctx, v.Name, metav1.DeleteOptions{}); err != nil {
				return err
			}
			return removeFinalizers(v.Finalizers, func(patch []byte) error {
				_, err := s.api.PersistentVolumes().Patch(ctx, v.Name, types.JSONPatchType, patch, metav1.PatchOptions{})
				return err
			})
		}}
		if claim := v.Spec.ClaimRef; claim != nil {
			l.RequestedBy = claim.Namespace + "/" + claim.Name
		}
		if v.Status.Phase == corev1.VolumeBound {
			l.Kept = "delete the PersistentVolumeClaim " + l.RequestedBy + " first, if its data need not come back"
		}
		s.volumes = append(s.volumes, l)
	}
	return nil
}

func (s *search) findContents(ctx context.Context) error {
	if !s.api.SnapshotsServed(ctx) {
		return nil
	}
	list, err := s.api.Contents().List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	needed, err := s.neededContents(ctx)
	if err != nil {
		return err
	}
	for i := range list.Items {
		content := &list.Items[i]
		poolID, ok := s.poolOfContent(content)
		if !ok {
			continue
		}
		ref := content.Spec.VolumeSnapshotRef
		l := Object{
			Kind: "VolumeSnapshotContent", Name: content.Name, Node: s.pools[poolID], RequestedBy: ref.Namespace + "/" + ref.Name,
			poolID: poolID, still: s.stillGone(poolID),
			remove: func(ctx context.Context) error {
				if err := s.api.Contents().Delete(ctx, content.Name, metav1.DeleteOptions{}); err != nil {
					return err
				}
				return removeFinalizers(content.Finalizers, func(patch []byte) error {
					_, err := s.api.Contents().Patch(ctx, content.Name, types.JSONPatchType, patch, metav1.PatchOptions{})
					return err
				})
			},
		}
		if needed[content.Name] {
			l.Kept = "delete the VolumeSnapshot " + l.RequestedBy + " first, if its data need not come back"
		}
		s.contents = append(s.contents, l)
	}
	return nil
}

// poolOfContent returns the pool of the snapshot of a content. If the snapshot was not published, it
// is the pool of its source.
func (s *search) poolOfContent(content *snapshotv1.VolumeSnapshotContent) (poolID string, ok bool) {
	if content.Spec.Driver != s.id.Driver {
		return "", false
	}
	if poolID, ok = s.snapshots[s.id.SnapshotHandle(content)]; !ok && content.Spec.Source.VolumeHandle != nil {
		poolID, ok = s.sources[*content.Spec.Source.VolumeHandle]
	}
	return poolID, ok
}

// neededContents returns the contents whose VolumeSnapshot exists and is not being deleted.
func (s *search) neededContents(ctx context.Context) (map[string]bool, error) {
	list, err := s.api.Snapshots().List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	needed := map[string]bool{}
	for _, snapshot := range list.Items {
		if snapshot.DeletionTimestamp == nil && snapshot.Status != nil && snapshot.Status.BoundVolumeSnapshotContentName != nil {
			needed[*snapshot.Status.BoundVolumeSnapshotContentName] = true
		}
	}
	return needed, nil
}

// removeFinalizers removes all finalizers, because the sidecars that would do so are gone.
func removeFinalizers(finalizers []string, patch func([]byte) error) error {
	if len(finalizers) == 0 {
		return nil
	}
	return patch([]byte(`[{"op":"remove","path":"/metadata/finalizers"}]`))
}
