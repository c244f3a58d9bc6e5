// Package e2e has the end-to-end tests of the image and the chart in a real Kubernetes
// with two nodes (package cluster). `make e2e` runs them. They need root. All tests
// share one cluster. Each has its own namespace and leaves nothing behind, neither in
// the cluster nor on a node.
package e2e
