// Package groups takes and deletes groups of snapshots for VolumeGroupSnapshotContents. The
// csi-snapshotter cannot: with --node-deployment it sees only contents with the label managed-by, which nobody
// gives to those of groups. So the driver of the node that has all volumes does its work. The
// snapshot-controller makes the contents, and a VolumeSnapshot for each member from their status.
package groups
