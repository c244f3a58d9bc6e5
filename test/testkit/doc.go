// Package testkit runs a driver as a process, as it is deployed, and calls it as
// Kubernetes does. All tests and measurements share its process, client and kubelet.
// It is in the driver's module, because the tests of cmd/btrfs-csi use it, and adds
// no dependency.
package testkit
