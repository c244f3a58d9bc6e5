// Package e2e are the end-to-end tests: our image and our chart in a real
// Kubernetes of two nodes (package cluster), as users have them. `make e2e` runs
// them; they need root. All share one cluster. Each test has a namespace of its
// own and leaves nothing behind, neither in the cluster nor on a node.
package e2e
