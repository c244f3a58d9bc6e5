// Package v1alpha1 has the custom resources of btrfs-csi. Each node publishes its pools, volumes and
// snapshots, for people and for the drivers of other nodes.
//
// +kubebuilder:object:generate=true
// +groupName=btrfs-csi.github.io
package v1alpha1
