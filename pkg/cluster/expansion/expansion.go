package expansion

import (
	"context"
	"encoding/json"
	"time"

	"github.com/google/uuid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/klog/v2"

	"github.com/btrfs-csi/btrfs-csi/api/v1alpha1"
	"github.com/btrfs-csi/btrfs-csi/pkg/cluster/client"
	"github.com/btrfs-csi/btrfs-csi/pkg/cluster/node"
	"github.com/btrfs-csi/btrfs-csi/pkg/cluster/queue"
	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
)

// answerTimeout limits the wait for another node. An expansion takes milliseconds.
const answerTimeout = 5 * time.Second

// Request asks the owner of a volume to expand it to at least size bytes, waits for the answer, and
// returns the new size. Its error has the code NOT_FOUND if the cluster does not know the volume,
// ABORTED if the owner did not answer in time, and the owner's code if that refused. Errors of the
// API server have no code.
func Request(ctx context.Context, c *client.Cluster, volume string, size int64) (int64, error) {
	name := client.SubvolumeName(meta.Volume(volume))
	s, err := c.API.Subvolumes().Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		if !c.PersistentVolumes.HasSynced() || len(c.VolumesOf(volume)) > 0 {
			return 0, status.Errorf(codes.Aborted, "volume %q is not published by its node yet: no answer", volume)
		}
		return 0, status.Errorf(codes.NotFound, "%s: not found on any node", meta.Volume(volume))
	}
	if err != nil {
		return 0, err
	}
	if hasSize(s, size) {
		return s.Status.Size.Value(), nil
	}
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	answers, err := c.API.Subvolumes().Watch(ctx, metav1.ListOptions{
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
	if _, err := c.API.Subvolumes().Patch(ctx, name, types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
		return 0, err
	}
	return awaitAnswer(answers, s, size, request)
}

func awaitAnswer(answers watch.Interface, s *v1alpha1.Subvolume, size int64, request string) (int64, error) {
	for event := range answers.ResultChan() {
		now, ok := event.Object.(*v1alpha1.Subvolume)
		if !ok || event.Type == watch.Deleted {
			break
		}
		if hasSize(now, size) {
			return now.Status.Size.Value(), nil
		}
		if r := now.Status.Expansion; r != nil && r.Request == request {
			return 0, status.Error(codeNamed(r.Code), r.Message)
		}
	}
	return 0, status.Errorf(codes.Aborted, "volume %q is on node %q, whose driver was asked to expand it: no answer", s.Spec.ID, s.Spec.NodeName)
}

// codeNamed is the reverse of codes.Code.String.
func codeNamed(name string) codes.Code {
	for code := codes.OK; code <= codes.Unauthenticated; code++ {
		if code.String() == name {
			return code
		}
	}
	return codes.Unknown
}

func hasSize(s *v1alpha1.Subvolume, size int64) bool {
	return s.Status.Size != nil && s.Status.Size.Value() >= size
}

// isRequested reports whether a Subvolume asks for a size that its node has not answered yet.
func isRequested(s *v1alpha1.Subvolume) bool {
	if s.Spec.Kind != meta.Active.String() || s.Spec.Size == nil || s.Status.Size == nil || hasSize(s, s.Spec.Size.Value()) {
		return false
	}
	r := s.Status.Expansion
	return r == nil || r.Request != s.Annotations[v1alpha1.AnnotationExpandRequest] || r.Size.Cmp(*s.Spec.Size) != 0
}

// Node is what the Controller needs of its node.
type Node interface {
	node.Reader
	// Expand expands a volume to at least size bytes and returns its size. Its error has a code.
	Expand(ctx context.Context, volume string, size int64) (int64, error)
}

// Controller expands the volumes of this node whose Subvolumes ask for a larger size.
type Controller struct {
	cluster *client.Cluster
	node    Node
	owner   node.Owner
	queue   queue.Queue[string] // names of Subvolumes
}

// New returns the controller of the volumes of a node.
func New(cluster *client.Cluster, node Node, owner node.Owner) *Controller {
	c := &Controller{cluster: cluster, node: node, owner: owner, queue: queue.New[string](20*time.Millisecond, 10*time.Second)}
	cluster.Subvolumes.Handle(client.Handlers[*v1alpha1.Subvolume]{Add: c.seen, Update: func(_, s *v1alpha1.Subvolume) { c.seen(s) }})
	return c
}

func (c *Controller) seen(s *v1alpha1.Subvolume) {
	if isRequested(s) {
		c.queue.Add(s.Name)
	}
}

// Resync checks all Subvolumes of this node again.
func (c *Controller) Resync() {
	for _, s := range c.cluster.Subvolumes.List() {
		c.seen(s)
	}
}

// Run expands until ctx ends.
func (c *Controller) Run(ctx context.Context) { c.queue.Run(ctx, c.reconcile) }

// reconcile expands one volume if its Subvolume asks for that. It is idempotent.
func (c *Controller) reconcile(ctx context.Context, name string) error {
	s, ok := c.cluster.Subvolumes.Get(name)
	if !ok || !isRequested(s) || !c.owner.Owns(s.Spec.PoolID) {
		return nil // Resync comes back to it when this node owns its pool
	}
	patch := map[string]any{"expansion": nil}
	before, _ := c.node.Look(ctx, meta.Volume(s.Spec.ID))
	size, err := c.node.Expand(ctx, s.Spec.ID, s.Spec.Size.Value()) // also if it is large enough: Expand makes that durable
	switch code := status.Code(err); code {
	case codes.OK:
		if size > before.Size { // else it is a repetition
			klog.FromContext(ctx).Info("Volume expanded", "volumeID", s.Spec.ID, "size", size, "askedBy", "cluster")
		}
		patch["size"] = resource.NewQuantity(size, resource.BinarySI)
	case codes.Aborted, codes.Unavailable, codes.NotFound: // try again later
		return err
	default:
		patch["expansion"] = v1alpha1.Refusal{
			Size: *s.Spec.Size, Request: s.Annotations[v1alpha1.AnnotationExpandRequest], Code: code.String(), Message: status.Convert(err).Message(),
		}
	}
	data, err := json.Marshal(map[string]any{"status": patch})
	if err != nil {
		return err
	}
	_, err = c.cluster.API.Subvolumes().Patch(ctx, name, types.MergePatchType, data, metav1.PatchOptions{}, "status")
	return err
}
