package expansion

import (
	"slices"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/btrfs-csi/btrfs-csi/api/v1alpha1"
	"github.com/btrfs-csi/btrfs-csi/pkg/cluster/clustertest"
	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
)

func quantity(n int64) *resource.Quantity { return resource.NewQuantity(n, resource.BinarySI) }

func TestIsRequested(t *testing.T) {
	for _, c := range []struct {
		name       string
		want, have *resource.Quantity
		refused    *v1alpha1.Refusal
		request    string
		wants      bool
	}{
		{name: "larger", want: quantity(2), have: quantity(1), request: "a", wants: true},
		{name: "larger, by hand", want: quantity(2), have: quantity(1), wants: true},
		{name: "as it is", want: quantity(1), have: quantity(1)},
		{name: "smaller", want: quantity(1), have: quantity(2)},
		{name: "nothing said", have: quantity(2)},
		{name: "status not written yet", want: quantity(2)},
		{name: "refused", want: quantity(2), have: quantity(1), refused: &v1alpha1.Refusal{Size: *quantity(2), Request: "a"}, request: "a"},
		{name: "refused, asked again", want: quantity(2), have: quantity(1), refused: &v1alpha1.Refusal{Size: *quantity(2), Request: "a"}, request: "b", wants: true},
		{name: "refused, asked for less", want: quantity(2), have: quantity(1), refused: &v1alpha1.Refusal{Size: *quantity(3), Request: "a"}, request: "a", wants: true},
	} {
		s := &v1alpha1.Subvolume{Spec: v1alpha1.SubvolumeSpec{Kind: "Volume", Size: c.want}, Status: v1alpha1.SubvolumeStatus{Size: c.have, Expansion: c.refused}}
		s.Annotations = map[string]string{v1alpha1.AnnotationExpandRequest: c.request}
		if got := isRequested(s); got != c.wants {
			t.Errorf("%s: want %v, got %v", c.name, c.wants, got)
		}
	}
}

// TestExpansionIsAnswered: the answer is the new size or the reason of a refusal. A temporary error is
// retried without an answer.
func TestExpansionIsAnswered(t *testing.T) {
	for _, c := range []struct {
		name    string
		err     error
		foreign bool // another node owns its pool
		size    int64
		refused string // the code of the refusal
		again   bool
	}{
		{name: "expanded", size: 2 << 30},
		{name: "refused", err: status.Error(codes.OutOfRange, "too large"), size: 1 << 30, refused: "OutOfRange"},
		{name: "busy", err: status.Error(codes.Aborted, "busy"), size: 1 << 30, again: true},
		{name: "its pool is away", err: status.Error(codes.Unavailable, "away"), size: 1 << 30, again: true},
		{name: "of another node", foreign: true, size: 1 << 30},
	} {
		t.Run(c.name, func(t *testing.T) {
			entry := clustertest.Entry(meta.Volume("pvc-1"))
			l := clustertest.New(t, clustertest.NewNode(entry))
			controller := New(l.Cluster, l.Node, l.Owner)
			l.Node.Refuses = c.err
			if c.foreign {
				l.Owner.IDs = nil
			}
			s := clustertest.Subvolume(entry, map[string]string{v1alpha1.AnnotationExpandRequest: "request"})
			s.Spec.Size, s.Status.Size = quantity(2<<30), quantity(1<<30)
			l.API.Put(clustertest.Subvolumes, s)
			l.See()
			if err := controller.reconcile(t.Context(), "pvc-1"); (err != nil) != c.again {
				t.Errorf("want it tried again: %v, got %v", c.again, err)
			}
			if written := l.API.Written(); slices.Contains(written, "PATCH "+clustertest.Subvolumes+"/pvc-1/status") == (c.again || c.foreign) {
				t.Errorf("got the writes %q", written)
			}
			s, err := l.Cluster.API.Subvolumes().Get(t.Context(), "pvc-1", metav1.GetOptions{})
			l.No(err)
			if s.Status.Size.Value() != c.size {
				t.Errorf("want the size %d, got %v", c.size, s.Status.Size)
			}
			if r := s.Status.Expansion; (r != nil) != (c.refused != "") || r != nil && (r.Code != c.refused || r.Message != "too large" || r.Request != "request") {
				t.Errorf("want it refused with %q, got %+v", c.refused, r)
			}
		})
	}
}
