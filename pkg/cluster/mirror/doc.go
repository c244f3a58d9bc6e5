// Package mirror publishes the pools, volumes and snapshots of a node. It writes the state of each
// Pool, a Subvolume for each volume and snapshot, and their lineage on PersistentVolumes and
// VolumeSnapshotContents. It is one-way, from the disk to the cluster: if somebody changes or
// deletes an object, mirror writes it again, and no volume changes.
//
//	pools.go       the state of pools; events.go their Events
//	subvolumes.go  when a volume or snapshot is published; debounce.go postpones it
//	writer.go      the contents of a Subvolume
//	lineage.go     the lineage, on all objects
package mirror
