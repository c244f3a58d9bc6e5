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
	// unknownNode stands for a node that may own a pool unknown to this one: no node has
	// that name.
	unknownNode = "*"
)

// acquirer writes into Pools which of them this node owns.
type acquirer struct {
	cluster *client.Cluster
	// takenFrom is the node that owned a pool before this one, and may want it back, or
	// unknownNode; by pool ID.
	takenFrom map[string]string
}

// aliveFunc reports whether a node may serve its pools still.
type aliveFunc func(ctx context.Context, node string) (bool, error)

// candidate is what this node knows of a pool that it may own.
type candidate struct {
	id, name string
	owned    bool   // by this node, as far as it knows
	rival    string // the node that owned it at the last look in place of this one, else ""
	alive    aliveFunc
}

// acquire returns the Pool of an ID with its owner: this node, if no other owns it, or the
// one that does is not alive. A node that is alive keeps its pool, unless this node owned it
// before, and was only away for a while. One of two live nodes always gives way, also after a
// restart: the one that TakenFrom does not name. Who takes a Pool from another node names
// that one, so that it can be taken back: a policy of the cluster asks for it.
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
			from = "" // it has it again
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

// create makes the Pool of a pool of which the cluster knows nothing. If somebody has
// deleted it, the rival may serve the pool still.
func (a *acquirer) create(ctx context.Context, want candidate) (*v1alpha1.Pool, error) {
	pool := &v1alpha1.Pool{ObjectMeta: metav1.ObjectMeta{Name: want.id}, Spec: v1alpha1.PoolSpec{NodeName: a.cluster.NodeName, Pool: want.name}}
	noteTakenFrom(pool, want.rival)
	made, err := a.cluster.API.Pools().Create(ctx, pool, metav1.CreateOptions{})
	if err != nil {
		return nil, err
	}
	a.takenFrom[want.id] = ""
	if !want.owned {
		a.takenFrom[want.id] = unknownNode // until the next look: who served it unknown to this node has seen it by then
	}
	return made, nil
}

// update writes an owner, and the node that the pool was taken from.
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

// release gives up a pool that this node has no more, or refuses. The status comes first:
// only the owner of a Pool may write it.
func (a *acquirer) release(ctx context.Context, pool *v1alpha1.Pool, refused string) error {
	message := fmt.Sprintf("node %s had it and has it no more", a.cluster.NodeName)
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
