package mirror

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/btrfs-csi/btrfs-csi/api/v1alpha1"
	"github.com/btrfs-csi/btrfs-csi/pkg/cluster/clustertest"
	"github.com/btrfs-csi/btrfs-csi/pkg/cluster/node"
	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
)

// lab is a lab with the controller of volumes and snapshots.
type lab struct {
	*clustertest.Lab
	subvolumes *Subvolumes
}

func newLab(l *clustertest.Lab) *lab {
	c := NewSubvolumes(l.Cluster, l.Node, l.Owner)
	l.Cleanup(c.queue.ShutDown)
	return &lab{l, c}
}

// TestBeingBound: a PersistentVolume that Kubernetes is about to bind is not written before it is
// bound, or bindingTime is over.
func TestBeingBound(t *testing.T) {
	entry, patched := clustertest.Entry(meta.Volume("pvc-1")), "PATCH "+clustertest.PersistentVolumes+"/pvc-1"
	entry.UUID = "u-1"
	for _, c := range []struct {
		name    string
		claimed bool
		phase   corev1.PersistentVolumePhase
		patched bool
	}{
		{name: "just made", claimed: true},
		{name: "pending", claimed: true, phase: corev1.VolumePending},
		{name: "available, for a claim", claimed: true, phase: corev1.VolumeAvailable},
		{name: "available, for any claim", phase: corev1.VolumeAvailable, patched: true},
		{name: "bound", claimed: true, phase: corev1.VolumeBound, patched: true},
	} {
		l := newLab(clustertest.New(t, clustertest.NewNode(entry)))
		v := clustertest.Volume("pvc-1", l.Cluster.Driver)
		v.CreationTimestamp, v.Status.Phase = metav1.Now(), c.phase
		if c.claimed {
			v.Spec.ClaimRef = &corev1.ObjectReference{Name: "data"}
		}
		l.API.Put(clustertest.PersistentVolumes, v)
		l.See()
		l.No(l.subvolumes.Publish(t.Context(), entry.Ref()))
		if written := l.API.Written(); slices.Contains(written, patched) != c.patched {
			t.Errorf("%s: want it patched: %v, got %q", c.name, c.patched, written)
		}
	}
}

// TestBoundIsLookedAt: the lineage is written when the PersistentVolume is bound.
func TestBoundIsLookedAt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(clustertest.NewOf(t, "node-1", nil, clustertest.Nowhere(t), clustertest.NewNode()))
		was := clustertest.Volume("pvc-1", l.Cluster.Driver)
		is := was.DeepCopy()
		is.Status.Phase = corev1.VolumeBound
		l.subvolumes.volumeChanged(was, is)
		time.Sleep(calm)
		synctest.Wait()
		if l.subvolumes.queue.Len() != 1 {
			t.Error("it is not looked at")
		}
	})
}

// TestLostComesBack: a deleted Subvolume of a lost volume is written again.
func TestLostComesBack(t *testing.T) {
	entry := clustertest.Entry(meta.Volume("pvc-1"))
	l := newLab(clustertest.New(t, clustertest.NewNode(entry)))
	l.Node.Lost = map[meta.Ref]bool{entry.Ref(): true}
	l.No(l.subvolumes.Publish(t.Context(), entry.Ref()))
	s, err := l.Cluster.API.Subvolumes().Get(t.Context(), "pvc-1", metav1.GetOptions{})
	l.No(err)
	if s.Status.State != string(node.Lost) || s.Status.Size.Value() != entry.Size || s.Spec.PoolID != "pool-1" || s.Annotations[v1alpha1.AnnotationSubvolumeID] != "" {
		t.Errorf("got %+v", s)
	}
}
