// Package mirror publishes what a node has: a Pool for each of its pools, a Subvolume for
// each volume and snapshot, and their lineage on the PersistentVolumes and
// VolumeSnapshotContents. It is one-way: the disk is the truth. An object that somebody
// deletes or changes is written again, and none makes or removes a volume.
//
//	pools.go       the state of pools; events.go their Events
//	subvolumes.go  when a volume or snapshot is published; debounce.go puts it off
//	writer.go      what a Subvolume says
//	lineage.go     the lineage, on all objects
package mirror
