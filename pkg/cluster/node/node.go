// Package node has the interfaces through which all controllers read their node. What only one
// controller needs is an interface in its own package.
package node

import (
	"context"

	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
)

// State is the state of a volume or snapshot on a node.
type State string

const (
	// Ready means that it can be used.
	Ready State = "Ready"
	// Lost means that its record exists and its data does not.
	Lost State = "Lost"
	// Away means that it cannot be read now. Its objects stay as they are.
	Away State = "Away"
	// Gone means that it is not on this node.
	Gone State = "Gone"
)

// Pool is the state of a pool of this node.
type Pool struct {
	Name, ID  string // ID is "" if it cannot be used, and Message says why
	State     string // see v1alpha1.PoolStatus
	Message   string
	Quota     string
	Size      int64 // bytes
	Available int64 // bytes
	// Rescans is the number of quota rescans since the pool is in use.
	Rescans uint64
}

// Reader reads the volumes and snapshots of this node. It is safe for concurrent use.
type Reader interface {
	// Look returns a volume or snapshot. The entry is complete if Ready, without lineage if Lost,
	// else empty.
	Look(ctx context.Context, ref meta.Ref) (meta.Entry, State)
	// Walk calls fn for all volumes or snapshots until fn returns false. fn must not call the
	// Reader.
	Walk(ctx context.Context, class meta.Class, fn func(meta.Entry) bool) error
}

// Pools lists the pools of this node. It is safe for concurrent use.
type Pools interface {
	// Pools returns all pools, including those that cannot be used.
	Pools(ctx context.Context) []Pool
}

// Owner knows which pools this node owns. It is safe for concurrent use.
type Owner interface {
	Owns(poolID string) bool
	// Decided is closed once the owner of each pool of this node was decided.
	Decided() <-chan struct{}
}
