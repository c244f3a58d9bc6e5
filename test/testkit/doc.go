// Package testkit runs a driver as it is deployed, a process of its own, and asks it
// as Kubernetes does: one process, one client and one kubelet for all tests and
// measurements. It is part of the driver's module, since the tests of cmd/btrfs-csi
// use it, and adds nothing to go.mod.
package testkit
