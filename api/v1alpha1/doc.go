// Package v1alpha1 is the API of btrfs-csi in the cluster: what each node has,
// written by the node itself, for people and for the drivers of other nodes.
//
// +kubebuilder:object:generate=true
// +groupName=btrfs-csi.github.io
package v1alpha1
