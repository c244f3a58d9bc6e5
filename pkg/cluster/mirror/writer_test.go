package mirror

import (
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/btrfs-csi/btrfs-csi/api/v1alpha1"
	"github.com/btrfs-csi/btrfs-csi/pkg/cluster/client"
	"github.com/btrfs-csi/btrfs-csi/pkg/cluster/clustertest"
	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
)

func quantity(n int64) *resource.Quantity { return resource.NewQuantity(n, resource.BinarySI) }

func TestDescribe(t *testing.T) {
	w := writer{cluster: client.New(clustertest.Nowhere(t), client.Identity{NodeName: "node-1"})}
	entry := meta.Entry{
		Record: meta.Record{
			ID: "pvc-2", Kind: meta.Active, Size: 5 << 20, Created: time.Unix(1, 0), Source: meta.Snapshot("snapshot-1"),
			Labels: map[string]string{"pvc/name": "data", "pvc/namespace": "db"},
		},
		Lineage: meta.Lineage{SubvolumeID: 257, UUID: "u", ParentUUID: "p", CreatedTransid: 9}, Pool: "fast", PoolID: "id",
	}
	s := &v1alpha1.Subvolume{}
	s.Annotations = map[string]string{"other": "stays", v1alpha1.AnnotationReceivedUUID: "of somebody's hand"}
	w.describe(s, entry)
	want := v1alpha1.SubvolumeSpec{ID: "pvc-2", Kind: "Volume", NodeName: "node-1", Pool: "fast", PoolID: "id", Size: quantity(5 << 20)}
	if !equality.Semantic.DeepEqual(s.Spec, want) {
		t.Errorf("want %+v, got %+v", want, s.Spec)
	}
	for key, value := range map[string]string{
		v1alpha1.AnnotationParent: "snapshot-1", v1alpha1.AnnotationUUID: "u", v1alpha1.AnnotationParentUUID: "p", v1alpha1.AnnotationSubvolumeID: "257", v1alpha1.AnnotationCreatedTransid: "9", v1alpha1.AnnotationRequestedBy: "db/data", "other": "stays",
	} {
		if s.Annotations[key] != value {
			t.Errorf("annotation %s: want %q, got %q", key, value, s.Annotations[key])
		}
	}
	if _, there := s.Annotations[v1alpha1.AnnotationReceivedUUID]; there {
		t.Error("an annotation without a value is there")
	}
	s.Spec.Size = quantity(9 << 20) // a request to expand, which the writer must keep
	w.describe(s, entry)
	if s.Spec.Size.Value() != 9<<20 {
		t.Errorf("the wish for a larger size is gone: %v", s.Spec.Size)
	}
}
