// Package wiring joins the engine of a node, its driver and its controllers. Each of them
// knows the others by interfaces of its own.
package wiring

import (
	"github.com/btrfs-csi/btrfs-csi/pkg/cluster"
	"github.com/btrfs-csi/btrfs-csi/pkg/cluster/client"
	"github.com/btrfs-csi/btrfs-csi/pkg/driver"
	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
	"github.com/btrfs-csi/btrfs-csi/pkg/snapshot"
)

// Cluster is the Kubernetes that a node is in.
type Cluster struct {
	Clients *client.Clients
	cluster.Options
}

// Join makes the driver over an engine, and the controllers of its node where it is in a
// cluster, else c and m are nil. Both then follow the changes of the engine. Join sets
// options.Cluster.
func Join(e *snapshot.Engine, options driver.Options, c *Cluster) (d *driver.Driver, m *cluster.Manager, err error) {
	node := &localNode{engine: e}
	if c != nil {
		id := client.Identity{NodeName: options.NodeID, Driver: driver.Name, TopologyPrefix: driver.TopologyPrefix, TopologyValue: driver.TopologyValue}
		m = cluster.New(c.Clients, id, node, c.Options)
		options.Cluster = otherNodes{m}
	}
	if d, err = driver.New(e, options); err != nil {
		return nil, nil, err
	}
	node.driver = d
	e.OnChange(func(ref meta.Ref) {
		if m != nil {
			m.Changed(ref)
		}
		if ref.IsZero() {
			d.PoolsChanged()
		}
	})
	return d, m, nil
}
