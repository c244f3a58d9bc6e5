package mirror

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
	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
)

// Leftover is an object that no driver looks after any more, and no other may: of a node
// that the cluster has no more, or of a pool whose disk is gone.
type Leftover struct {
	Kind  string `json:"kind"`
	Name  string `json:"name"`
	Node  string `json:"node"`            // that has it; empty where it has let go of its pool
	Claim string `json:"claim,omitempty"` // namespace and name of the PersistentVolumeClaim or VolumeSnapshot
	// Kept says why it is not to be deleted; empty for what may be.
	Kept string `json:"kept,omitempty"`
	// Message is what the cluster says of a Pool.
	Message string `json:"message,omitempty"`

	poolID string
	still  func(context.Context) error // fails where the pool is back
	remove func(context.Context) error
}

// Remove deletes the object, together with the finalizers by which the sidecars
// of its node hold it. What is on the disk stays there.
func (l Leftover) Remove(ctx context.Context) error {
	if l.Kept != "" {
		return fmt.Errorf("%s %s: %s", l.Kind, l.Name, l.Kept)
	}
	if err := l.still(ctx); err != nil {
		return fmt.Errorf("%s %s: %w", l.Kind, l.Name, err)
	}
	if err := l.remove(ctx); err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("%s %s: %w", l.Kind, l.Name, err)
	}
	return nil
}

// LeftBy says whose leftovers are wanted; those of all removed nodes without it.
type LeftBy struct {
	Node string // of this removed node
	Pool string // the ID of a pool that no node has. Its disk may come back: it has to be named
}

// Leftovers returns what is left: what stands for data first, and the pools, by which
// they are found, last.
func Leftovers(ctx context.Context, c *Clients, id Identity, by LeftBy) ([]Leftover, error) {
	s := search{Clients: c, id: id, by: by, pools: map[string]string{}, snapshots: map[string]string{}, sources: map[string]string{}}
	for _, step := range []func(context.Context) error{s.findPools, s.findSubvolumes, s.findVolumes, s.findContents} {
		if err := step(ctx); err != nil {
			return nil, err
		}
	}
	s.keepPools()
	return slices.Concat(s.volumes, s.contents, s.subvolumes, s.ofPools), nil
}

// keepPools keeps the Pools, and what is in them, of what is kept: by them it is
// found at the next search.
func (s *search) keepPools() {
	kept := map[string]bool{}
	for _, l := range slices.Concat(s.volumes, s.contents) {
		kept[l.poolID] = kept[l.poolID] || l.Kept != ""
	}
	for _, found := range [][]Leftover{s.subvolumes, s.ofPools} {
		for i := range found {
			if kept[found[i].poolID] {
				found[i].Kept = "something in its pool is kept"
			}
		}
	}
}

// search is one look through the cluster.
type search struct {
	*Clients
	id Identity
	by LeftBy

	gone  map[string]bool   // by the name of a node
	pools map[string]string // the node that had it, by pool ID
	// The ID of the pool, by handle: of snapshots, and of the volumes that may be the sources
	// of others, which were not published before the pool went.
	snapshots, sources map[string]string

	volumes, contents, subvolumes, ofPools []Leftover
}

// left reports whether a pool was left by whom is asked for. It fails for one that was
// asked for and is somebody's.
func (s *search) left(ctx context.Context, pool *v1alpha1.Pool) (bool, error) {
	node := pool.Spec.NodeName
	switch {
	case s.by.Pool != "" && pool.Name != s.by.Pool, s.by.Node != "" && node != s.by.Node:
		return false, nil
	case node == "":
		return s.by.Pool != "", nil
	}
	gone, err := s.isGone(ctx, node)
	if err == nil && !gone && s.by.Pool != "" {
		err = fmt.Errorf("pool %s is on node %q, which is in the cluster: unmount it there first, if nothing of it is wanted", pool.Name, node)
	}
	return gone, err
}

// isGone reports whether there is no Node of a name.
func (s *search) isGone(ctx context.Context, name string) (bool, error) {
	if gone, known := s.gone[name]; known {
		return gone, nil
	}
	exists, err := s.NodeExists(ctx, name)
	if err != nil {
		return false, err
	}
	if s.gone == nil {
		s.gone = map[string]bool{}
	}
	s.gone[name] = !exists
	return !exists, nil
}

// stillGone returns a check that nobody has taken a pool in the meantime: its disk may
// have been attached to a node, which serves it.
func (s *search) stillGone(poolID string) func(context.Context) error {
	node := s.pools[poolID]
	return func(ctx context.Context) error {
		pool, err := s.Clients.Pools().Get(ctx, poolID, metav1.GetOptions{})
		switch {
		case apierrors.IsNotFound(err):
			return nil // deleted before what is on it was
		case err != nil:
			return err
		case pool.Spec.NodeName != node:
			return fmt.Errorf("its pool is on node %q by now", pool.Spec.NodeName)
		}
		return nil
	}
}

func (s *search) findPools(ctx context.Context) error {
	list, err := s.Clients.Pools().List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	for i := range list.Items {
		pool := &list.Items[i]
		left, err := s.left(ctx, pool)
		if err != nil {
			return err
		}
		if !left {
			continue
		}
		s.pools[pool.Name] = pool.Spec.NodeName
		s.ofPools = append(s.ofPools, Leftover{Kind: "Pool", Name: pool.Name, Node: pool.Spec.NodeName, Message: pool.Status.Message, poolID: pool.Name, still: s.stillGone(pool.Name), remove: func(ctx context.Context) error {
			return s.Clients.Pools().Delete(ctx, pool.Name, metav1.DeleteOptions{})
		}})
	}
	if s.by.Pool != "" && len(s.ofPools) == 0 {
		return fmt.Errorf("the cluster knows no pool %s: kubectl get pools.%s lists them", s.by.Pool, v1alpha1.GroupVersion.Group)
	}
	return nil
}

func (s *search) findSubvolumes(ctx context.Context) error {
	list, err := s.Clients.Subvolumes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	for _, subvolume := range list.Items {
		node, ok := s.pools[subvolume.Spec.PoolID]
		if !ok {
			continue
		}
		if subvolume.Spec.Kind == Kinds[meta.Committed] {
			s.snapshots[subvolume.Spec.ID] = subvolume.Spec.PoolID
		} else {
			s.sources[subvolume.Spec.ID] = subvolume.Spec.PoolID
		}
		s.subvolumes = append(s.subvolumes, Leftover{
			Kind: "Subvolume", Name: subvolume.Name, Node: node, Claim: subvolume.Annotations[v1alpha1.AnnotationClaim],
			poolID: subvolume.Spec.PoolID, still: s.stillGone(subvolume.Spec.PoolID),
			remove: func(ctx context.Context) error {
				return s.Clients.Subvolumes().Delete(ctx, subvolume.Name, metav1.DeleteOptions{})
			},
		})
	}
	return nil
}

func (s *search) findVolumes(ctx context.Context) error {
	list, err := s.Clients.PersistentVolumes().List(ctx, metav1.ListOptions{})
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
		l := Leftover{Kind: "PersistentVolume", Name: v.Name, Node: node, poolID: poolID, still: s.stillGone(poolID), remove: func(ctx context.Context) error {
			if err := s.Clients.PersistentVolumes().Delete(ctx, v.Name, metav1.DeleteOptions{}); err != nil {
				return err
			}
			return release(v.Finalizers, func(patch []byte) error {
				_, err := s.Clients.PersistentVolumes().Patch(ctx, v.Name, types.JSONPatchType, patch, metav1.PatchOptions{})
				return err
			})
		}}
		if claim := v.Spec.ClaimRef; claim != nil {
			l.Claim = claim.Namespace + "/" + claim.Name
		}
		if v.Status.Phase == corev1.VolumeBound {
			l.Kept = "delete the PersistentVolumeClaim " + l.Claim + " first, if its data need not come back"
		}
		s.volumes = append(s.volumes, l)
	}
	return nil
}

func (s *search) findContents(ctx context.Context) error {
	if !s.SnapshotsServed(ctx) {
		return nil
	}
	list, err := s.Clients.Contents().List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	held, err := s.heldContents(ctx)
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
		l := Leftover{
			Kind: "VolumeSnapshotContent", Name: content.Name, Node: s.pools[poolID], Claim: ref.Namespace + "/" + ref.Name,
			poolID: poolID, still: s.stillGone(poolID),
			remove: func(ctx context.Context) error {
				if err := s.Clients.Contents().Delete(ctx, content.Name, metav1.DeleteOptions{}); err != nil {
					return err
				}
				return release(content.Finalizers, func(patch []byte) error {
					_, err := s.Clients.Contents().Patch(ctx, content.Name, types.JSONPatchType, patch, metav1.PatchOptions{})
					return err
				})
			},
		}
		if held[content.Name] {
			l.Kept = "delete the VolumeSnapshot " + l.Claim + " first, if its data need not come back"
		}
		s.contents = append(s.contents, l)
	}
	return nil
}

// poolOfContent returns the pool that the snapshot of a content is in: that of its source,
// where the snapshot itself was not published.
func (s *search) poolOfContent(content *snapshotv1.VolumeSnapshotContent) (poolID string, ok bool) {
	if content.Spec.Driver != s.id.Driver {
		return "", false
	}
	if poolID, ok = s.snapshots[s.id.SnapshotHandle(content)]; !ok && content.Spec.Source.VolumeHandle != nil {
		poolID, ok = s.sources[*content.Spec.Source.VolumeHandle]
	}
	return poolID, ok
}

// heldContents returns the contents that a VolumeSnapshot stands for which
// nobody has asked to delete.
func (s *search) heldContents(ctx context.Context) (map[string]bool, error) {
	list, err := s.Clients.Snapshots().List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	held := map[string]bool{}
	for _, snapshot := range list.Items {
		if snapshot.DeletionTimestamp == nil && snapshot.Status != nil && snapshot.Status.BoundVolumeSnapshotContentName != nil {
			held[*snapshot.Status.BoundVolumeSnapshotContentName] = true
		}
	}
	return held, nil
}

// release takes all finalizers away; nobody is left to do what they wait for.
func release(finalizers []string, patch func([]byte) error) error {
	if len(finalizers) == 0 {
		return nil
	}
	return patch([]byte(`[{"op":"remove","path":"/metadata/finalizers"}]`))
}
