// Package sanity runs the CSI sanity tests of Kubernetes against the driver, in
// one process, on a real socket and a real btrfs. It is a module of its own so
// that what the tests import is no dependency of the driver.
package sanity
