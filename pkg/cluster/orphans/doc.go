// Package orphans finds orphans: volumes and snapshots of a node that no PersistentVolume or
// VolumeSnapshotContent refers to. It also finds PersistentVolumes whose volume is missing. It
// deletes orphans only if the policy says so, after a time of grace, and never many at once,
// because a cluster may lose objects that are still needed.
package orphans
