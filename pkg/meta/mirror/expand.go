package mirror

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/klog/v2"

	"github.com/btrfs-csi/btrfs-csi/api/v1alpha1"
	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
)

// answerTimeout is how long a node may take to expand a volume of its own. It is
// the matter of milliseconds.
const answerTimeout = 5 * time.Second

// ErrUnknown is returned for a volume that the cluster knows nothing of.
var ErrUnknown = errors.New("not known in the cluster")

// ErrNoAnswer is returned where the owner of a volume did not answer in time; it
// may still do what it was asked.
var ErrNoAnswer = errors.New("no answer")

// Refused is the answer of a volume's owner, where asking again is of no use.
type Refused struct {
	Code    string // of grpc
	Message string
}

func (r *Refused) Error() string { return r.Message }

// Expand asks the node that owns a volume to grow it to size bytes, and waits
// for that. Errors are ErrUnknown, ErrNoAnswer, a *Refused, or those of the API
// server.
func (m *Mirror) Expand(ctx context.Context, volume string, size int64) (int64, error) {
	name := SubvolumeName(meta.Volume(volume))
	s, err := m.cluster.API.Subvolumes().Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		if !m.cluster.PersistentVolumes.HasSynced() || len(m.cluster.VolumesOf(volume)) > 0 {
			return 0, fmt.Errorf("volume %q is not mirrored by its node yet: %w", volume, ErrNoAnswer)
		}
		return 0, fmt.Errorf("volume %q: %w", volume, ErrUnknown)
	}
	if err != nil {
		return 0, err
	}
	if has(s, size) {
		return s.Status.Size.Value(), nil
	}
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	answers, err := m.cluster.API.Subvolumes().Watch(ctx, metav1.ListOptions{
		FieldSelector: fields.OneTermEqualSelector("metadata.name", name).String(), ResourceVersion: s.ResourceVersion,
	})
	if err != nil {
		return 0, err
	}
	defer answers.Stop()
	request := uuid.NewString()
	patch, _ := json.Marshal(map[string]any{
		"metadata": map[string]any{"annotations": map[string]string{v1alpha1.AnnotationExpandRequest: request}},
		"spec":     map[string]any{"size": resource.NewQuantity(size, resource.BinarySI)},
	})
	if _, err := m.cluster.API.Subvolumes().Patch(ctx, name, types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
		return 0, err
	}
	return awaitAnswer(ctx, answers, s, size, request)
}

func awaitAnswer(ctx context.Context, answers watch.Interface, s *v1alpha1.Subvolume, size int64, request string) (int64, error) {
	for event := range answers.ResultChan() {
		now, ok := event.Object.(*v1alpha1.Subvolume)
		if !ok || event.Type == watch.Deleted {
			break
		}
		if has(now, size) {
			return now.Status.Size.Value(), nil
		}
		if r := now.Status.Expansion; r != nil && r.Request == request {
			return 0, &Refused{Code: r.Code, Message: r.Message}
		}
	}
	return 0, fmt.Errorf("volume %q is on node %q, whose driver was asked to grow it: %w", s.Spec.ID, s.Spec.NodeName, ErrNoAnswer)
}

func has(s *v1alpha1.Subvolume, size int64) bool {
	return s.Status.Size != nil && s.Status.Size.Value() >= size
}

// wantsExpansion reports whether an object asks for a size that its node has not
// answered yet.
func wantsExpansion(s *v1alpha1.Subvolume) bool {
	if s.Spec.Kind != Kinds[meta.Active] || s.Spec.Size == nil || s.Status.Size == nil || has(s, s.Spec.Size.Value()) {
		return false
	}
	r := s.Status.Expansion
	return r == nil || r.Request != s.Annotations[v1alpha1.AnnotationExpandRequest] || r.Size.Cmp(*s.Spec.Size) != 0
}

// expandHere does what somebody asked for in the spec of a volume of this node.
// Done twice, or again after a crash, it is done once.
func (m *Mirror) expandHere(ctx context.Context, name string) error {
	s, ok := m.cluster.Subvolumes.Get(name)
	if !ok {
		return nil
	}
	if !wantsExpansion(s) || !m.owner.Owns(s.Spec.PoolID) {
		return nil // it comes again with the claim
	}
	status := map[string]any{"expansion": nil}
	before, _ := m.node.Look(ctx, meta.Volume(s.Spec.ID))
	size, err := m.node.Expand(ctx, s.Spec.ID, s.Spec.Size.Value()) // also of what is large enough: it makes that durable
	var refused *Refused
	switch {
	case errors.As(err, &refused):
		status["expansion"] = v1alpha1.Refusal{
			Size: *s.Spec.Size, Request: s.Annotations[v1alpha1.AnnotationExpandRequest], Code: refused.Code, Message: refused.Message,
		}
	case err != nil:
		return err
	default:
		if size > before.Size { // else the cluster asks again what it has not seen answered
			klog.FromContext(ctx).Info("Volume expanded", "volumeID", s.Spec.ID, "size", size, "askedBy", "cluster")
		}
		status["size"] = resource.NewQuantity(size, resource.BinarySI)
	}
	patch, err := json.Marshal(map[string]any{"status": status})
	if err != nil {
		return err
	}
	_, err = m.cluster.API.Subvolumes().Patch(ctx, name, types.MergePatchType, patch, metav1.PatchOptions{}, "status")
	return err
}
