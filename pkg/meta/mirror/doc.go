// Package mirror is where the driver meets the cluster. It is the only room that
// knows of client-go; the engine and the driver work without it, and an API
// server that is away harms no request: what was missed is caught up.
//
// What each node has is written, by the node itself, to a Subvolume for each
// volume and snapshot and a Pool for each pool (package v1alpha1), and its
// lineage to annotations there and on the PersistentVolume or
// VolumeSnapshotContent (lineage.go). That way is one-way and level-triggered: an
// object is compared with the ledger and brought in line, whatever happened to
// either. Objects that somebody deletes come back, and none makes or removes a
// volume.
//
//	cluster.go        the caches and clients that all controllers share
//	manager.go        starts the controllers
//	ownership.go      the node that owns a pool: claim.go, conflicts.go
//	labels.go         the topology label by which pods come to a pool
//	poolstatus.go     a Pool for each pool, with its room and state
//	subvolumes.go     a Subvolume for each volume and snapshot, and their lineage
//	placement.go      restores and clones are made on the node of their source
//	unschedulable.go  Events say where no node can take a claim
//	expansion.go      the one thing that goes the other way: a larger size
//	orphans.go        volumes without a PersistentVolume, and the reverse
//	leftovers.go      what a node that was removed has left in the cluster
//
// Two nodes never write one object, except in taking over a pool that was moved
// (claim.go) and in asking for an expansion (expansion.go).
package mirror
