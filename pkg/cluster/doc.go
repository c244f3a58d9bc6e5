// Package cluster is where a node meets its Kubernetes. The Manager starts one controller
// each from the rooms below. Only these rooms know client-go. The engine and the driver
// work without them, and an API server that does not answer harms no request: what was
// missed is caught up.
//
//	client/     clients, caches and indexes: what all controllers read, and write through
//	node/       what the controllers know of their node
//	queue/      keys that are reconciled
//	ownership/  which node serves a pool, and the topology labels of a Node
//	mirror/     what is published of pools, volumes and snapshots; one way
//	placement/  on which node a clone or a snapshot is made, and Events where none can
//	expansion/  the one request that comes from the cluster: a larger size
//	orphans/    volumes without a PersistentVolume, and the reverse
//	prune/      what a removed node or a lost disk has left in the cluster
//
// Each controller is level-triggered: it compares an object with what the node has, whatever
// happened to either, and writes it if it differs. Two nodes never write one object, except
// in taking over a pool that was moved, and in asking for an expansion.
package cluster
