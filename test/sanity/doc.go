// Package sanity runs the CSI sanity tests of Kubernetes against the driver, in one process, with a
// real socket and a real btrfs. It is a separate module, so that its dependencies are not the
// driver's.
package sanity
