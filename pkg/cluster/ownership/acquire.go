package ownership

import (
	"context"
	"fmt"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/klog/v2"

	"github.com/btrfs-csi/btrfs-csi/api/v1alpha1"
	"github.com/btrfs-csi/btrfs-csi/pkg/cluster/client"
)

const (
	// stateAway is the state of a pool that no node owns.
	stateAway = "Away"
	// unknownNode stands for a node that may have owned a pool without this node's knowledge. No
	// node has that name.
	unknownNode = "*"
)

// acquirer writes this node into the Pools that it owns.
type acquirer struct {
	cluster *client.Cluster
	// takenFrom is the previous owner of a pool, who may take it back, or unknownNode; by pool ID.
	takenFrom map[string]string
}

// aliveFunc reports whether a node may still serve its pools.
type aliveFunc func(ctx context.Context, node string) (bool, error)

// candidate is what this node knows of a pool that it may own.
type candidate struct {
	id, name string
	owned    bool   // by this node at the last round
	rival    string // the other node that owned it at the last round, "" for none
	alive    aliveFunc
}

// acquire makes this node the owner of a pool if no other node owns it or its owner is not alive, and
// returns the Pool. A live owner keeps its pool, except from a node that owned it before and was only
// unavailable. Of two live nodes, the one that the annotation taken-from names gets the pool. A node
// that takes a Pool from another must write that node into the annotation, which an admission policy
// enforces.
func (a *acquirer) acquire(ctx context.Context, have *v1alpha1.Pool, want candidate) (*v1alpha1.Pool, error) {
	if have == nil {
		return a.create(ctx, want)
	}
	me, owner, from := a.cluster.NodeName, have.Spec.NodeName, have.Annotations[v1alpha1.AnnotationTakenFrom]
	takenFrom := a.takenFrom[want.id]
	logger := klog.FromContext(ctx).WithValues("pool", want.name, "poolID", want.id, "node", owner)
	switch {
	case owner == me && have.Spec.Pool == want.name:
		a.takenFrom[want.id] = from
		return have, nil
	case owner == me, owner == "":
		if from == me {
			from = "" // this node has its pool again
		}
	case from == me && (want.rival != "" || takenFrom == unknownNode):
		logger.Info("Leaving a pool to a node that had it before")
		return a.update(ctx, have, have.Spec, "")
	case from == me:
		from = ""
		logger.Info("Taking back a pool from a node that has a copy of its disk")
	case want.owned && takenFrom == "":
		from = owner
		logger.Info("Taking back a pool from a node that did not say whom it took it from")
	default:
		if alive, err := want.alive(ctx, owner); alive || err != nil {
			return have, err
		}
		from = owner
		logger.Info("Taking over a pool from a node that is not ready")
	}
	have, err := a.update(ctx, have, v1alpha1.PoolSpec{NodeName: me, Pool: want.name}, from)
	if err == nil {
		a.takenFrom[want.id] = from
	}
	return have, err
}

// create creates the Pool of a pool that the cluster does not know. If somebody has deleted the Pool,
// the rival may still serve the pool.
func (a *acquirer) create(ctx context.Context, want candidate) (*v1alpha1.Pool, error) {
	pool := &v1alpha1.Pool{ObjectMeta: metav1.ObjectMeta{Name: want.id}, Spec: v1alpha1.PoolSpec{NodeName: a.cluster.NodeName, Pool: want.name}}
	noteTakenFrom(pool, want.rival)
	made, err := a.cluster.API.Pools().Create(ctx, pool, metav1.CreateOptions{})
	if err != nil {
		return nil, err
	}
	a.takenFrom[want.id] = ""
	if !want.owned {
		a.takenFrom[want.id] = unknownNode // until the next round. By then any other node that serves the pool has seen the Pool
	}
	return made, nil
}

// update writes the owner of a Pool, and the node that the pool was taken from.
func (a *acquirer) update(ctx context.Context, have *v1alpha1.Pool, spec v1alpha1.PoolSpec, from string) (*v1alpha1.Pool, error) {
	want := have.DeepCopy()
	want.Spec = spec
	noteTakenFrom(want, from)
	return a.cluster.API.Pools().Update(ctx, want, metav1.UpdateOptions{})
}

func noteTakenFrom(pool *v1alpha1.Pool, from string) {
	if from == "" {
		delete(pool.Annotations, v1alpha1.AnnotationTakenFrom)
		return
	}
	metav1.SetMetaDataAnnotation(&pool.ObjectMeta, v1alpha1.AnnotationTakenFrom, from)
}

// release gives up a pool that has left this node, or that it refuses. It writes the status first,
// which only the owner may.
func (a *acquirer) release(ctx context.Context, pool *v1alpha1.Pool, refused string) error {
	message := fmt.Sprintf("node %s had it and no longer has it", a.cluster.NodeName)
	if refused != "" {
		message = fmt.Sprintf("node %s had it and refuses it: %s", a.cluster.NodeName, refused)
	}
	want := pool.DeepCopy()
	want.Status = v1alpha1.PoolStatus{
		State: stateAway, Message: message,
		Size: want.Status.Size, Quota: want.Status.Quota, Subvolumes: want.Status.Subvolumes,
	}
	want, err := a.cluster.API.Pools().UpdateStatus(ctx, want, metav1.UpdateOptions{})
	if err != nil {
		return err
	}
	want.Spec.NodeName = ""
	if _, err = a.cluster.API.Pools().Update(ctx, want, metav1.UpdateOptions{}); err != nil {
		return err
	}
	klog.FromContext(ctx).Info("Ownership of a pool given up", "pool", pool.Spec.Pool, "poolID", pool.Name)
	return nil
}
