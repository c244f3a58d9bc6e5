// Package cluster connects a node to its Kubernetes. The Manager starts the controllers in the
// packages below. Only these packages import client-go. The engine and the driver work without
// them: while the API server does not answer, volumes are served, and the controllers catch up
// later.
//
//	client/     the clients, caches and indexes that all controllers share
//	node/       what the controllers read of their node
//	queue/      the work queue of a controller
//	ownership/  decides which node serves a pool, and sets the topology labels of the Node
//	mirror/     publishes pools, volumes and snapshots; one way
//	placement/  selects the node for a clone or a snapshot, and records Events where none can make it
//	expansion/  expands a volume from any node
//	groups/     takes and deletes groups of snapshots
//	orphans/    finds volumes without a PersistentVolume, and the reverse
//	prune/      deletes the objects of a removed node or a lost disk
//
// Each controller is level-triggered: it compares an object with the state of the node, and writes
// the object if it differs. Two nodes never write one object, except to take over a pool that was
// moved, and to ask for an expansion.
package cluster
