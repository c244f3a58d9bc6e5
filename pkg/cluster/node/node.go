// Package node has what the controllers of a node know of it. Each of them draws up what
// else it needs as an interface of its own.
package node

import (
	"context"

	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
)

// State is what a node finds of a volume or snapshot.
type State string

const (
	// Ready is one that can be used.
	Ready State = "Ready"
	// Lost is one whose record is there and whose data is not.
	Lost State = "Lost"
	// Away is one that cannot be looked at now. What was published of it stays.
	Away State = "Away"
	// Gone is one that is not, or not any more, on this node.
	Gone State = "Gone"
)

// Pool is the state of a pool of this node.
type Pool struct {
	Name, ID  string // no ID: it cannot be used, and Message says why
	State     string // see v1alpha1.PoolStatus
	Message   string
	Quota     string
	Size      int64 // bytes
	Available int64 // bytes
	// Rescans is how often the quota was found inconsistent since the pool is in use.
	Rescans uint64
}

// Reader finds volumes and snapshots of this node. It may be used by any number of
// goroutines.
type Reader interface {
	// Look returns a volume or snapshot. The entry is whole only with Ready; with Lost
	// it lacks its lineage.
	Look(ctx context.Context, ref meta.Ref) (meta.Entry, State)
	// Walk calls fn for all volumes or snapshots until it returns false. fn must
	// not call the Reader.
	Walk(ctx context.Context, class meta.Class, fn func(meta.Entry) bool) error
}

// Pools lists the pools of this node. It may be used by any number of goroutines.
type Pools interface {
	// Pools returns all pools, also those that cannot be used.
	Pools(ctx context.Context) []Pool
}

// Owner says which pools this node owns. It may be used by any number of goroutines.
type Owner interface {
	Owns(poolID string) bool
	// Decided is closed when the cluster has said of each pool of this node whose it is.
	Decided() <-chan struct{}
}
